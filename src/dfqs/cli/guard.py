"""No verb replaces what it reads, nor, unless told to, what is there already."""

from collections.abc import Iterable
from pathlib import Path

from dfqs.errors import UsageError
from dfqs.gguf.shard_names import files_of
from dfqs.storage.atomic import check_output_path, find_same_file


def check_output(path: Path, inputs: Iterable[Path | None], *, overwrite: bool | None = None) -> None:
    """Refuse a file to write before work is spent on it.

    Args:
        inputs: what the verb reads, as given: a shard stands for its whole set.
        overwrite: as asked for; None: the verb does not offer it.

    Raises:
        UsageError: it is one of the inputs (through links too), it exists and may not be replaced, it is no
            regular file, or its directory is missing or closed to us.
    """
    files = [file for entry in inputs if entry is not None for file in files_of(entry)]
    if overwrite is False and path.is_file() and find_same_file(path, files) is None:
        raise UsageError(f"{path} exists already; choose another name, or replace it with --overwrite")
    check_output_path(path, overwrite=bool(overwrite), inputs=files)
