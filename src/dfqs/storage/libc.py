"""Calls of the C library that Python has no name for; apart from `dfqs.storage.linux`, as a look at a file needs none.

Numbers: Linux, `fcntl.h`, `linux/falloc.h`, `linux/fs.h`, `linux/prctl.h`.
"""

import ctypes
import errno
import functools
import os
import signal
from pathlib import Path

from dfqs.storage.linux import missing

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, INSERT_RANGE = 0x01, 0x02, 0x08, 0x20
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_SYNC_FILE_RANGE_WRITE = 2
_PR_SET_PDEATHSIG = 1


def fallocate(handle: int, mode: int, offset: int, length: int) -> None:
    """Take (mode 0), free, insert or remove blocks of an open file.

    Raises:
        OSError: the file system's refusal.
    """
    # musl has the one name, glibc on 32 bits means the other.
    name = "fallocate64" if hasattr(_libc(), "fallocate64") else "fallocate"
    _call(name, handle, mode, ctypes.c_int64(offset), ctypes.c_int64(length))


def rename_without_replacing(source: Path, destination: Path) -> None:
    """Rename in one step with the check that nothing has the name yet.

    Raises:
        FileExistsError: something has it.
        OSError: EINVAL or ENOSYS where the file system or the system knows no such step.
    """
    arguments = (_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(destination), ctypes.c_uint(_RENAME_NOREPLACE))
    _call("renameat2", *arguments, path=destination)


def start_writeback(handle: int, offset: int, length: int) -> None:
    """Ask the kernel to begin writing a range to disk, without waiting. Only a hint: failure is no failure."""
    function = getattr(_libc(), "sync_file_range", None)
    if function is not None:
        function(handle, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)


def die_with_starting_thread() -> None:
    """Have the kernel kill this process when the thread that started it ends. Where it cannot, nothing."""
    function = getattr(_libc(), "prctl", None)
    if function is not None:
        function(_PR_SET_PDEATHSIG, signal.SIGKILL)


@functools.cache
def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):  # Windows has no library of that kind.
        return None


def _call(name: str, *arguments: object, path: Path | None = None) -> None:
    function = getattr(_libc(), name, None)
    if function is None:
        raise missing(name)
    while function(*arguments) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code), *([str(path)] if path is not None else []))
