"""Opening files without waiting for anybody, and reading and writing at an offset.

Names of models, journals and temporary files can be planted: a pipe has no other end to wait for, a link leads
elsewhere, a device has no end.
"""

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from dfqs.errors import UsageError, printable
from dfqs.storage.linux import BINARY, CLOEXEC, NOFOLLOW, NONBLOCK

_FOREIGN = (errno.ELOOP, errno.ENXIO, errno.EINVAL, errno.EISDIR)
_ONE_CALL_BYTES = 1 << 30
"""One read returns at most 2 GiB on Linux."""


def open_regular(path: Path, flags: int = os.O_RDONLY, *, follow: bool = False, mode: int = 0o666) -> int:
    """A handle to a regular file.

    Args:
        follow: through a link at the end of `path`, too.

    Raises:
        OSError: it is not there, may not be opened, or is something else (`is_foreign`).
    """
    if not follow and not NOFOLLOW and path.is_symlink():
        raise OSError(errno.ELOOP, "a symlink", str(path))
    handle = os.open(path, flags | CLOEXEC | NONBLOCK | BINARY | (0 if follow else NOFOLLOW), mode)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return handle


def open_own(path: Path, flags: int, mode: int = 0o666) -> int:
    """A handle to a file that dfqs keeps.

    Raises:
        UsageError: what stands there is a link, a pipe or a device.
        OSError: the operating system's refusal.
    """
    try:
        return open_regular(path, flags, mode=mode)
    except OSError as error:
        if not is_foreign(error):
            raise
        raise UsageError(f"{path} is a link, a directory, a pipe or a device, not a file of its own; move it") from None


def open_to_read(path: Path, wanted: str = "a file") -> int:
    """A handle to a file that was named by the user, through links.

    Args:
        wanted: what to name in its place where it is no regular file.

    Raises:
        UsageError: it is not there, is a directory or a device, or may not be read.
    """
    try:
        return open_regular(path, follow=True)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"no such file: {path}") from None
    except PermissionError:
        raise UsageError(f"no permission to read {path}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or not is_foreign(error):
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"cannot open {printable(repr(str(path)), 300)}: {reason}") from None
        circle = "a link that leads in a circle" if error.errno == errno.ELOOP else "not a regular file"
        kind = "a directory" if path.is_dir() else circle
        raise UsageError(f"{path} is {kind}; name {wanted}") from None


def is_foreign(error: OSError) -> bool:
    """Whether a file could not be opened because it is none: a link, a directory, a pipe, a socket, a device."""
    return error.errno in _FOREIGN


def read_at(handle: int, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`; fewer only where the file ends."""
    parts: list[bytes] = []
    with naming(handle):
        while length > 0 and (part := _pread(handle, min(length, _ONE_CALL_BYTES), offset)):
            parts.append(part)
            offset += len(part)
            length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_into(handle: int, buffer: memoryview, offset: int) -> int:
    """Fill the beginning of a buffer; the number of bytes, 0 only where the file ends."""
    if hasattr(os, "preadv"):
        with naming(handle):
            return os.preadv(handle, [buffer], offset)
    data = read_at(handle, offset, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def write_at(handle: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data`."""
    view = memoryview(data).cast("B")
    with naming(handle):
        while view:
            written = _pwrite(handle, view, offset)
            view, offset = view[written:], offset + written


@contextlib.contextmanager
def naming(handle: int) -> Iterator[None]:
    """What the system says of a handle (a failing disk, a full one) gets the name of its file, where that is known."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            with contextlib.suppress(OSError):
                error.filename = str(Path(f"/proc/self/fd/{handle}").readlink())
        raise


def _pread(handle: int, length: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(handle, length, offset)
    with _position_at(handle, offset):
        return os.read(handle, length)


def _pwrite(handle: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(handle, data, offset)
    with _position_at(handle, offset):
        return os.write(handle, data)


@contextlib.contextmanager
def _position_at(handle: int, offset: int) -> Iterator[None]:
    """A handle has one position; where the system has no reading at an offset, one thread moves it at a time."""
    with _POSITIONING:
        os.lseek(handle, offset, os.SEEK_SET)
        yield


_POSITIONING = threading.Lock()
