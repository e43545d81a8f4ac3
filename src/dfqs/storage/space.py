"""Whether the disk has room, asked before the work and not after hours of it."""

import shutil
from pathlib import Path

from dfqs.errors import SpaceError, UsageError
from dfqs.units import format_bytes

MARGIN_BYTES = 4 << 20
"""What a file system needs for itself while files grow, and for our journals and records."""
_BLOCK_BYTES = 512
"""The unit of `st_blocks`, whatever the file system's."""


def free_bytes(directory: Path) -> int:
    """Bytes that this user may still write in `directory`."""
    return shutil.disk_usage(directory).free


def allocated_bytes(path: Path) -> int:
    """Bytes that a file takes on disk, holes not counted; 0 where there is none."""
    if not path.is_file():
        return 0
    state = path.stat()
    return state.st_blocks * _BLOCK_BYTES if hasattr(state, "st_blocks") else state.st_size


def require_space(directory: Path, needed_bytes: int, advice: str, *, free: int | None = None) -> None:
    """Refuse work that the disk cannot hold.

    Args:
        needed_bytes: more than is on disk already.
        advice: what to do then; the end of the sentence.
        free: of another disk than this machine's.

    Raises:
        SpaceError: `directory` has less free than that and the margin. (Work that writes nothing more needs no margin.)
        UsageError: there is no such directory.
    """
    if free is None:
        if not directory.is_dir():
            raise UsageError(f"no such directory: {directory}")
        free = free_bytes(directory)
    if needed_bytes > 0 and free < needed_bytes + MARGIN_BYTES:
        needed = format_bytes(needed_bytes)
        raise SpaceError(f"{directory} has {format_bytes(free)} free, {needed} are needed; {advice}")
