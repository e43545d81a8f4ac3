"""What is looked at before llama.cpp sees a file: it asserts, or reads past the end, where a sentence would do."""

from pathlib import Path

from dfqs.model.files import ModelFiles, open_model


def check_model(model: Path | ModelFiles) -> ModelFiles:
    """Open a GGUF file, or a set of shards given by its first, and make sure that llama.cpp finds a model there.

    Raises:
        UsageError: no such file, not readable, a later shard given, or a GGUF of another kind than a model.
        FormatError: not a GGUF file, or cut short.
        ShardError: a shard is missing or not named as llama.cpp looks for it.
    """
    opened = open_model(model)
    opened.require_loadable()
    return opened
