"""Locks on files: held by an open handle, gone with its process however that ends, asked for without waiting.

Every lock of dfqs is taken here. Two handles of one process lock each other out too.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from dfqs.errors import UsageError
from dfqs.storage.files import is_foreign, open_own, open_regular
from dfqs.storage.linux import flock

_POLL_S = 0.05
_UNKNOWN = (errno.ENOLCK, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS)


class NoLocks(OSError):
    """The file system (some that reach over a network), or the system, knows no locks."""


def try_lock(handle: int, *, shared: bool = False) -> bool:
    """Lock an open file, or return False when another has it.

    Args:
        shared: with others who share.

    Raises:
        NoLocks: nothing can be locked here.
    """
    try:
        with _no_locks():
            flock(handle, shared=shared, wait=False)
    except BlockingIOError:
        return False
    return True


def lock(handle: int) -> None:
    """Lock an open file when its turn comes.

    Raises:
        NoLocks: nothing can be locked here.
    """
    with _no_locks():
        flock(handle, shared=False, wait=True)


def is_locked(path: Path) -> bool:
    """Whether a living process holds a file's lock; also when it cannot be told.

    What is no regular file (a pipe, a link) was made by no writer: nobody's lock.
    """
    try:
        handle = open_regular(path)
    except OSError as error:
        return error.errno != errno.ENOENT and not is_foreign(error)
    try:
        return not try_lock(handle)
    except OSError:
        return True
    finally:
        os.close(handle)


def open_locked(path: Path, busy: str, *, append: bool = False, wait_s: float | None = 0.0) -> int:
    """A handle to a file of ours, made where there is none, that holds its lock; for reading and writing.

    Args:
        busy: the sentence for somebody who comes second.
        append: every write goes to its end.
        wait_s: for another to let go of it; None: as long as it takes.

    Raises:
        UsageError: another has it, or what stands there is a link, a pipe or a device.
        OSError: the operating system's refusal; `NoLocks` is one.
    """
    deadline = None if wait_s is None else time.monotonic() + wait_s
    while True:
        handle = open_own(path, os.O_RDWR | os.O_CREAT | (os.O_APPEND if append else 0))
        try:
            while not try_lock(handle):
                if deadline is not None and time.monotonic() >= deadline:
                    raise UsageError(busy)
                time.sleep(_POLL_S)
            if os.fstat(handle).st_nlink:
                return handle
        except BaseException:
            os.close(handle)
            raise
        # Whoever had it took the file away between our opening and our locking.
        os.close(handle)


@contextlib.contextmanager
def _no_locks() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        raise NoLocks(error.errno, error.strerror) from error
