"""What is looked at before llama.cpp sees a file: it asserts, or reads past the end, where a sentence would do."""

from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import ShardError, printable
from dfqs.gguf import Header
from dfqs.gguf.kinds import require_model
from dfqs.gguf.shard import SPLIT_COUNT, STALE_COUNT_FIX, Shard, is_whole_model, read_model_shards

_DEMONSTRATION = "dfqs.embedded."
"""Keys of the model that dfqs builds to show itself with, and of what is quantized from it."""


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model whose headers are sound."""

    path: Path
    header: Header
    """Of the file, or of the first shard."""
    file_bytes: int

    @property
    def name(self) -> str:
        """`general.name`, or the file's stem."""
        name = self.header.metadata.text("general.name")
        return printable(name) if name and name.strip() else self.path.stem

    @property
    def label(self) -> str | None:
        """What a demonstration model says of itself, so that nobody takes it for more: shown wherever it runs.

        A model that somebody quantized with dfqs is theirs, and so is its description.
        """
        if not any(key.startswith(_DEMONSTRATION) for key in self.header.metadata):
            return None
        text = self.header.metadata.text("general.description")
        return printable(text, 300) if text else "a demonstration model of dfqs"


def check_model(path: Path) -> CheckedModel:
    """Read the header of a GGUF file, or of every shard of a set given by its first.

    Raises:
        UsageError: no such file, not readable, a later shard given, or a GGUF of another kind than a model.
        FormatError: not a GGUF file, or cut short.
        ShardError: a shard is missing or not named as llama.cpp looks for it.
    """
    shards = _loadable_shards(path)
    return CheckedModel(path, shards[0].header, sum(shard.header.file_size for shard in shards))


def shard_paths(path: Path) -> tuple[Path, ...]:
    """The files of the model that `path` begins: itself, or a complete set of shards as llama.cpp looks for them.

    Raises:
        As `check_model`.
    """
    return tuple(shard.path for shard in _loadable_shards(path))


def _loadable_shards(path: Path) -> tuple[Shard, ...]:
    """The shards of a model; refused where llama.cpp would look for others, or would find something else."""
    shards = read_model_shards(path)
    require_model(shards[0].header)
    if is_whole_model(shards[0].header, path):
        raise ShardError(
            f"it holds the whole model and calls itself one of several shards, which llama.cpp would look for; "
            f"{STALE_COUNT_FIX}",
            path=path,
            name=SPLIT_COUNT,
        )
    return shards
