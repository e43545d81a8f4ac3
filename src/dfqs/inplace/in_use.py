"""Whether a file may be taken apart: nobody else has it open or mapped, and no other name leads to its bytes."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from dfqs.errors import UsageError
from dfqs.storage.disk import Disk
from dfqs.storage.files import open_regular
from dfqs.storage.linux import is_opened_elsewhere

_PROC = Path("/proc")


def refuse_in_use(disk: Disk, paths: Iterable[Path]) -> None:
    """Refuse shards whose bytes others may need.

    Raises:
        UsageError: a shard is a symlink, has another hard link, is open or mapped elsewhere, or may not be changed.
    """
    paths = list(paths)
    for path in paths:
        found = disk.identify(path)
        if found is None or not (found.is_regular or found.is_symlink):
            raise UsageError(f"{path} is not a regular file")
        if found.is_symlink:
            raise UsageError(
                f"{path} is a symlink (to {path.readlink()}), as in the Hub's cache; its bytes are not this name's "
                "to free. Use plain merge"
            )
        if found.links > 1:
            raise UsageError(
                f"{path} has {found.links} hard links; its bytes belong to other names too. Use plain merge"
            )
        if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
            raise UsageError(f"no permission to change {path} and its directory")
    for path, holder in holders_of(paths):
        raise UsageError(f"{path} is in use by {holder}; stop it first, or use plain merge")
    for path in paths:
        if not _has_no_other_opener(path):
            raise UsageError(f"{path} is open in another process; stop it first, or use plain merge")


def holders_of(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """(path, "name (pid)") of processes that have one of the files open or mapped, as far as we may look."""
    wanted = {}
    for path in paths:
        state = path.stat()
        wanted[state.st_dev, state.st_ino] = path
    names = {str(path.resolve()): path for path in wanted.values()}
    for process in _PROC.iterdir():
        if process.name.isdigit():
            for path in _used_by(process, wanted, names):
                yield path, f"{_name_of(process)} (process {process.name})"


def _used_by(process: Path, wanted: dict[tuple[int, int], Path], names: dict[str, Path]) -> Iterator[Path]:
    # Processes come and go, and others' may not be looked at.
    with contextlib.suppress(OSError), os.scandir(process / "fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                # Not the entry's own stat, which is of the link.
                state = os.stat(entry.path)  # noqa: PTH116 - there are hundreds, and a Path costs more than the call
                if (path := wanted.get((state.st_dev, state.st_ino))) is not None:
                    yield path
    with contextlib.suppress(OSError):
        maps = os.fsdecode((process / "maps").read_bytes())
        if any(name in maps for name in names):
            for line in maps.splitlines():
                if (path := names.get(line.partition("/")[1] + line.partition("/")[2])) is not None:
                    yield path


def _has_no_other_opener(path: Path) -> bool:
    handle = open_regular(path, os.O_RDWR)
    try:
        return not is_opened_elsewhere(handle)
    finally:
        os.close(handle)


def _name_of(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "a process"
