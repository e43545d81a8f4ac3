"""The directory of a server's private socket, and what servers left that were killed.

A server holds the lock of a file in its directory for as long as it lives, however it ends. So a directory whose lock
is free is nobody's, and the next server takes it away. Between making a directory and locking it nobody looks.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dfqs.errors import UsageError
from dfqs.storage.cache import cache_lock
from dfqs.storage.locks import NoLocks, is_locked, open_locked

_PREFIX = "dfqs-serve-"
_LOCK = "lock"
_SOCKET_PATH_ROOM = 60
"""Longer names of directories leave no room in the address of a socket (108 bytes)."""


@contextlib.contextmanager
def engine_directory() -> Iterator[Path]:
    """A directory of this user's alone, gone at the end of the block."""
    parent = Path(tempfile.gettempdir() if len(tempfile.gettempdir()) < _SOCKET_PATH_ROOM else "/tmp")
    with contextlib.ExitStack() as stack:
        with contextlib.ExitStack() as alone:
            # Without a cache nothing is swept, and a server serves all the same.
            with contextlib.suppress(UsageError):
                alone.enter_context(cache_lock("serve"))
                remove_abandoned(parent)
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent)))
            with contextlib.suppress(NoLocks):
                stack.callback(os.close, open_locked(directory / _LOCK, f"{directory} is another server's"))
        yield directory


def remove_abandoned(parent: Path) -> None:
    """Take away what killed servers of this user left. One without a lock in it is not touched."""
    for directory in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = directory / _LOCK
            ours = directory.lstat().st_uid == os.geteuid() and not directory.is_symlink()
            if ours and lock.is_file() and not is_locked(lock):
                shutil.rmtree(directory)
