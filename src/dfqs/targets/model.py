"""A model on this disk, as targets are given it."""

import os
from pathlib import Path

from dfqs.errors import UsageError
from dfqs.model.files import ModelFiles
from dfqs.targets.contract import LocalModel
from dfqs.targets.quoting import identifier_of

USUAL_CONTEXT_TOKENS = 65_536
UNKNOWN_CONTEXT_TOKENS = 8192
"""Where a file does not say what it was trained for."""


def local_model(files: ModelFiles, *, name: str | None = None, context_tokens: int | None = None) -> LocalModel:
    """What targets need to know of a model.

    Args:
        name: to list it under; None: made of the file's own.
        context_tokens: None: as trained, at most 65,536.

    Raises:
        UsageError: it is no model, or the context is longer than it was trained for.
        FormatError: its header lies.
    """
    files.require_loadable()
    trained = files.spec.context_tokens
    if context_tokens is not None and trained is not None and context_tokens > trained:
        raise UsageError(f"{files.path} was trained for {trained:,} tokens; --ctx {context_tokens} is more")
    # Not resolved: a link that the user made is the name that they want.
    paths = tuple(Path(os.path.abspath(path)) for path in files.paths)  # noqa: PTH100
    return LocalModel(
        paths=paths,
        file_bytes=files.file_bytes,
        name=files.name,
        identifier=identifier_of(name if name is not None else paths[0].stem),
        architecture=files.header.metadata.text("general.architecture") or "",
        context_tokens=context_tokens or min(trained or UNKNOWN_CONTEXT_TOKENS, USUAL_CONTEXT_TOKENS),
    )
