"""What only some systems offer, each looked for when it is first used, so that everything imports everywhere.

A call that is not here raises `OSError(ENOSYS)`, as a kernel without it does; one that is only a hint does nothing.
What Python has no name for is in `dfqs.storage.libc`.
"""

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Sequence

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CLOEXEC: int = getattr(os, "O_CLOEXEC", 0)
NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
BINARY: int = getattr(os, "O_BINARY", 0)
"""Windows only: without it line ends are translated."""
DIRECTORY: int | None = getattr(os, "O_DIRECTORY", None)
"""None where directories cannot be opened, and so not be synced."""

_LEASE_POLL_S = 0.05
"""So long who opens a file may wait; the kernel would have them wait for most of a minute."""


def usable_cpus() -> int:
    """CPUs that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def copy_file_range(source: int, destination: int, length: int, source_offset: int, offset: int) -> int:
    """Bytes that the kernel copied, 0 at the source's end.

    Raises:
        OSError: the kernel's refusal.
    """
    copy = getattr(os, "copy_file_range", None)
    if copy is None:
        raise missing("copy_file_range")
    return int(copy(source, destination, length, source_offset, offset))


def advise_sequential(handle: int) -> None:
    """Say that a file will be read from end to end. A hint."""
    if advise := getattr(os, "posix_fadvise", None):
        advise(handle, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def advise_soon(handle: int, offset: int, length: int) -> None:
    """Say that a range will be read next. A hint."""
    if advise := getattr(os, "posix_fadvise", None):
        advise(handle, offset, length, os.POSIX_FADV_WILLNEED)


def is_opened_elsewhere(handle: int) -> bool:
    """Ask the kernel, which knows of every user's processes and mappings, by taking a write lease for an instant.

    It counts those who may write; with a kernel that keeps count, readers too. False where nothing can be told (network
    file systems, another owner, a system without leases): what `/proc` shows has to do there.
    """
    if fcntl is None or not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        # Somebody who opens it in this instant breaks the lease; the signal for that ends a process by default.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class Lease:
    """Tells whether anybody else opened files since: the kernel knows, and lets nobody in without a word to who has a
    lease. Whoever comes is let in at once, and the lease is gone.

    Args:
        handles: open for reading and writing, and by nobody else.
    """

    def __init__(self, handles: Sequence[int]) -> None:
        self._handles = tuple(handles)
        self._over = threading.Event()
        self._kept = all(map(_take_lease, handles))
        self._watcher = threading.Thread(target=self._watch, name="lease", daemon=True)
        self._watcher.start()

    def is_kept(self) -> bool:
        """Whether nobody came; False where no lease was to be had."""
        return self._kept and all(map(_has_lease, self._handles))

    def end(self) -> None:
        """Let everybody in. Before the handles are closed; safe to repeat."""
        self._over.set()
        self._watcher.join()

    def _watch(self) -> None:
        while self.is_kept() and not self._over.wait(_LEASE_POLL_S):
            continue
        self._kept = False
        for handle in self._handles:
            with contextlib.suppress(OSError, AttributeError):
                fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _take_lease(handle: int) -> bool:
    try:
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except (OSError, AttributeError):
        # Somebody has it open, or the system or the file system has no leases.
        return False
    return True


def _has_lease(handle: int) -> bool:
    try:
        return fcntl.fcntl(handle, fcntl.F_GETLEASE) == fcntl.F_WRLCK
    except (OSError, AttributeError):
        return False


def flock(handle: int, *, shared: bool, wait: bool) -> None:
    """Lock an open file until its handle is closed.

    Raises:
        BlockingIOError: another has it, and `wait` is false.
        OSError: the file system or the system knows no locks.
    """
    if fcntl is None:
        raise missing("flock")
    fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def missing(name: str) -> OSError:
    """What a call raises that is not here."""
    return OSError(errno.ENOSYS, f"this system has no {name}")
