"""The model that a verb is given: a file, the first shard of a set, or one on the Hub by its name."""

import importlib
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dfqs.cli.output import note
from dfqs.errors import UsageError, printable
from dfqs.gguf.source import ByteSource, FileSource
from dfqs.model.files import ModelFiles, open_model
from dfqs.runtime.checks import check_model

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def require_there(source: str) -> None:
    """Refuse a local model that is not there, before what would load it is itself loaded.

    Raises:
        UsageError: as `is_local`, and where it is no file that can be read.
    """
    if is_local(source):
        FileSource(Path(source)).close()


def open_source(source: str) -> ModelFiles:
    """The model to look at: in a file, or in the shards that it is the first of; local, or on the Hub, of which only
    headers are read."""
    if is_local(source):
        return open_model(source)
    kept = importlib.import_module("dfqs.cli.fetching").find_local(source)
    if kept is not None:
        note(f"{kept.name} as it is kept here: {kept.path}")
        return open_model(kept.path)
    model: ModelFiles = importlib.import_module("dfqs.cli.remote").open_remote_model(source)
    return model


def obtain_model(
    source: str | Path,
    *,
    context_tokens: int | None = None,
    ram: str | None = None,
    force: bool = False,
    yes: bool = False,
) -> ModelFiles:
    """The model to load: one of the Hub is fetched, once, after a look at memory and disk.

    Args:
        context_tokens, ram, force: with which it will be loaded.
        yes: fetch it however large it is.

    Raises:
        As `check_model`, and as `keep_model`.
    """
    if is_local(str(source)):
        return check_model(Path(source))
    keep = importlib.import_module("dfqs.cli.fetching").keep_model
    return check_model(keep(str(source), context_tokens=context_tokens, ram=ram, force=force, yes=yes))


def kept_path(source: str) -> Path:
    """The file that is meant; of a model of the Hub the one that is kept here.

    Raises:
        UsageError: no such model is kept.
    """
    if is_local(source):
        return Path(source)
    path = find_kept_path(source)
    if path is None:
        shown = printable(source, 200)
        raise UsageError(
            f"'{shown}' is a model of the Hub that is not kept here; 'dfqs cache add {shown}' fetches it, or "
            f"'dfqs pull {shown} -o FILE' to where you want it"
        )
    return path


def find_kept_path(source: str) -> Path | None:
    """The file of a model of the Hub that is kept here; None: it is not kept."""
    kept = importlib.import_module("dfqs.cli.fetching").find_local(source)
    return None if kept is None else Path(kept.path)


def is_local(source: str) -> bool:
    """Whether a model's name is that of files here: a path always wins over a name that could be the Hub's too.

    Raises:
        UsageError: there is no such file, and it looks like a name of the Hub that lacks its `hf:`.
    """
    if Path(source).exists():
        return True
    if importlib.import_module("dfqs.shards.hub_address").names_hub_model(source):
        return False
    if _REPOSITORY.fullmatch(source) and not source.endswith(".gguf"):
        raise UsageError(f"no such file: {source}; a model of the Hub is written hf:{source}")
    return True


@contextmanager
def open_bytes(source: str) -> Iterator[tuple[ModelFiles, tuple[ByteSource, ...]]]:
    """The model to read parts of, and the bytes of its files; of one on the Hub, only what is read is fetched."""
    with ExitStack() as stack:
        kept = None if is_local(source) else importlib.import_module("dfqs.cli.fetching").find_local(source)
        if kept is None and not is_local(source):
            yield stack.enter_context(importlib.import_module("dfqs.cli.remote").open_remote_bytes(source))
        else:
            model = open_model(source if kept is None else kept.path)
            yield model, tuple(stack.enter_context(FileSource(path)) for path in model.paths)
