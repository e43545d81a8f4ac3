"""The few operations on files that a merge with a journal consists of.

All reading, writing, moving and freeing of such a merge goes through `Disk`, so that a test can put a recorded disk in
memory in its place and cut the power between any two operations.
"""

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dfqs.errors import UsageError
from dfqs.storage.atomic import fsync_directory, publish_file
from dfqs.storage.copying import copy_range
from dfqs.storage.files import is_foreign, open_regular, read_at, read_into, write_at
from dfqs.storage.identity import FileStamp
from dfqs.storage.libc import COLLAPSE_RANGE, INSERT_RANGE, KEEP_SIZE, PUNCH_HOLE, fallocate, start_writeback
from dfqs.storage.linux import BINARY, CLOEXEC, is_opened_elsewhere
from dfqs.storage.locks import try_lock
from dfqs.storage.space import free_bytes

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENODEV)
_LARGEST_UNIT_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells one file from another that has taken its name."""

    inode: int
    bytes: int
    device: int
    links: int
    is_symlink: bool
    is_regular: bool
    owner: int
    """User number."""
    modified_ns: int
    changed_ns: int

    @property
    def stamp(self) -> FileStamp:
        return FileStamp(self.device, self.inode, self.bytes, self.modified_ns, self.changed_ns)


class DiskFile(Protocol):
    """An open file."""

    def size(self) -> int: ...

    def identify(self) -> FileIdentity:
        """Which file it is, whatever has its name by now."""
        ...

    def set_modified(self, time_ns: int) -> None:
        """Say when its bytes last changed; no promise, as only its owner may."""
        ...

    def has_other_writers(self) -> bool:
        """Whether anybody else has it open or mapped for writing, where the kernel can tell."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """`length` bytes; fewer only where the file ends."""
        ...

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill the beginning of a buffer; the number of bytes, 0 only where the file ends."""
        ...

    def write_at(self, offset: int, data: bytes | memoryview) -> None: ...

    def copy_from(self, source: "DiskFile", source_offset: int, offset: int, length: int) -> None:
        """Copy bytes of another open file of the same disk."""
        ...

    def truncate(self, size: int) -> None: ...

    def sync(self) -> None:
        """Return when contents and size are durable."""
        ...

    def begin_sync(self, offset: int, length: int) -> None:
        """Have the disk begin with a range, without waiting; no promise."""
        ...

    def punch(self, offset: int, length: int) -> None:
        """Free the blocks of a range; it reads as zeroes, the size stays."""
        ...

    def insert_range(self, offset: int, length: int) -> None:
        """Open a hole of `length` bytes in front of `offset`; what was there moves up. No bytes are copied."""
        ...

    def collapse_range(self, offset: int, length: int) -> None:
        """Remove a range; what is behind it moves down."""
        ...

    def holes(self) -> list[tuple[int, int]]:
        """(start, end) of ranges without blocks, the last one ending at the end of the file at most."""
        ...

    def lock(self) -> bool:
        """Lock the file for this process, or return False when another has it."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """Names of files."""

    def identify(self, path: Path) -> FileIdentity | None:
        """The file itself (a symlink is not followed), or None."""
        ...

    def open(self, path: Path) -> DiskFile:
        """Open an existing file for reading and writing."""
        ...

    def create(self, path: Path) -> DiskFile:
        """Make a new file; it must not exist."""
        ...

    def rename(self, source: Path, destination: Path) -> None:
        """Rename; the destination must not exist. Durable after `sync_directory`."""
        ...

    def unlink(self, path: Path) -> None: ...

    def sync_directory(self, directory: Path) -> None: ...

    def free_bytes(self, directory: Path) -> int: ...

    def now_ns(self) -> int:
        """The time that a file changed in this instant would show, to a tick of the file system's clock."""
        ...


class LocalFile:
    """A file on this machine."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def size(self) -> int:
        return os.fstat(self._handle).st_size

    def identify(self) -> FileIdentity:
        return _identity(os.fstat(self._handle))

    def set_modified(self, time_ns: int) -> None:
        with contextlib.suppress(PermissionError):
            os.utime(self._handle, ns=(time_ns, time_ns))

    def has_other_writers(self) -> bool:
        # The first shard is open a second time here, for its lock; then the kernel's count says nothing.
        return is_opened_elsewhere(self._handle) and not _is_opened_twice_here(self._handle)

    def read_at(self, offset: int, length: int) -> bytes:
        return read_at(self._handle, offset, length)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        return read_into(self._handle, buffer, offset)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        write_at(self._handle, data, offset)

    def copy_from(self, source: DiskFile, source_offset: int, offset: int, length: int) -> None:
        assert isinstance(source, LocalFile)
        copy_range(source._handle, self._handle, source_offset, offset, length)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._handle, size)

    def sync(self) -> None:
        os.fsync(self._handle)

    def begin_sync(self, offset: int, length: int) -> None:
        start_writeback(self._handle, offset, length)

    def punch(self, offset: int, length: int) -> None:
        fallocate(self._handle, PUNCH_HOLE | KEEP_SIZE, offset, length)

    def insert_range(self, offset: int, length: int) -> None:
        fallocate(self._handle, INSERT_RANGE, offset, length)

    def collapse_range(self, offset: int, length: int) -> None:
        fallocate(self._handle, COLLAPSE_RANGE, offset, length)

    def holes(self) -> list[tuple[int, int]]:
        found = []
        size, position = self.size(), 0
        while position < size:
            start = os.lseek(self._handle, position, os.SEEK_HOLE)
            if start >= size:
                break
            try:
                position = os.lseek(self._handle, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                position = size
            found.append((start, position))
        return found

    def lock(self) -> bool:
        return try_lock(self._handle)

    def close(self) -> None:
        os.close(self._handle)


class LocalDisk:
    """This machine's file systems."""

    def identify(self, path: Path) -> FileIdentity | None:
        try:
            state = path.lstat()
        except FileNotFoundError:
            return None
        return _identity(state)

    def open(self, path: Path) -> LocalFile:
        try:
            return LocalFile(open_regular(path, os.O_RDWR))
        except PermissionError:
            raise UsageError(f"no permission to change {path}; its bytes could not be freed") from None
        except OSError as error:
            if not is_foreign(error):
                raise
            raise UsageError(f"{path} is a link, a directory or a device, not a file of its own") from None

    def create(self, path: Path) -> LocalFile:
        return LocalFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | CLOEXEC | BINARY, 0o666))

    def rename(self, source: Path, destination: Path) -> None:
        publish_file(source, destination, durable=False)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_directory(self, directory: Path) -> None:
        fsync_directory(directory)

    def free_bytes(self, directory: Path) -> int:
        return free_bytes(directory)

    def now_ns(self) -> int:
        return time.time_ns()


def _is_opened_twice_here(handle: int) -> bool:
    state, found = os.fstat(handle), 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            other = entry.stat()
            found += (other.st_dev, other.st_ino) == (state.st_dev, state.st_ino)
    return found > 1


def _identity(state: os.stat_result) -> FileIdentity:
    return FileIdentity(
        inode=state.st_ino,
        bytes=state.st_size,
        device=state.st_dev,
        links=state.st_nlink,
        is_symlink=stat.S_ISLNK(state.st_mode),
        is_regular=stat.S_ISREG(state.st_mode),
        owner=state.st_uid,
        modified_ns=state.st_mtime_ns,
        changed_ns=state.st_ctime_ns,
    )


def probe_insert_unit(directory: Path) -> int | None:
    """The unit in which ranges can be inserted and collapsed in files of `directory`, in bytes; None when they cannot.

    Tried on a small file there, and its contents looked at: kernels and file systems differ in what they take.
    """
    unit = os.statvfs(directory).f_frsize
    with _scratch_file(directory) as handle:
        while unit <= _LARGEST_UNIT_BYTES:
            os.ftruncate(handle, 0)
            write_at(handle, b"a" * unit + b"b" * unit, 0)
            try:
                fallocate(handle, INSERT_RANGE, unit, unit)
                inserted = os.pread(handle, 3 * unit, 0) == b"a" * unit + bytes(unit) + b"b" * unit
                fallocate(handle, COLLAPSE_RANGE, unit, unit)
                collapsed = os.pread(handle, 3 * unit, 0) == b"a" * unit + b"b" * unit
            except OSError as error:
                if error.errno == errno.EINVAL:
                    unit *= 2
                    continue
                if error.errno in _UNSUPPORTED:
                    return None
                raise
            return unit if inserted and collapsed else None
    return None


def probe_punch(directory: Path) -> bool:
    """Whether blocks of files in `directory` can be freed, and their space is given back."""
    unit = max(os.statvfs(directory).f_frsize, 65536)
    with _scratch_file(directory) as handle:
        write_at(handle, b"a" * (4 * unit), 0)
        if os.fstat(handle).st_blocks == 0:
            # Not allocated before it is on disk.
            os.fsync(handle)
        before = os.fstat(handle).st_blocks
        try:
            fallocate(handle, PUNCH_HOLE | KEEP_SIZE, 0, 2 * unit)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise
        return os.fstat(handle).st_blocks < before and os.pread(handle, 2 * unit, 0) == bytes(2 * unit)


@contextlib.contextmanager
def _scratch_file(directory: Path) -> Iterator[int]:
    path = directory / f".dfqs-probe.{secrets.token_hex(4)}"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | CLOEXEC | BINARY, 0o600)
    try:
        path.unlink()
        yield handle
    finally:
        os.close(handle)
