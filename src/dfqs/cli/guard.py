"""No verb replaces what it reads, nor, unless told to, what is there already."""

from collections.abc import Iterable
from pathlib import Path

from dfqs.gguf.shard_names import files_of
from dfqs.storage.atomic import check_writable_target


def check_output(path: Path, inputs: Iterable[Path | None], *, overwrite: bool = False) -> None:
    """Refuse a file to write before work is spent on it.

    Args:
        inputs: what the verb reads, as given: a shard stands for its whole set.

    Raises:
        UsageError: it is one of the inputs (through links too), it exists and `overwrite` is false, it is no regular
            file, or its directory is missing or closed to us.
    """
    given = (entry for entry in inputs if entry is not None)
    check_writable_target(path, overwrite=overwrite, inputs=[file for entry in given for file in files_of(entry)])
