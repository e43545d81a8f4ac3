"""The files that a pull writes: the model under way (`OUT.part`), and what is no part of it (`OUT.part.rest`)."""

import contextlib
import ctypes
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from dfqs.errors import FormatError
from dfqs.shards.copying import write_fully
from dfqs.shards.pull.hub import RemoteFile
from dfqs.shards.pull.plan import Layout, Place, PullPlan
from dfqs.storage import publish_file, storage_errors

BUFFER_BYTES = 4 << 20


def part_path(out: Path) -> Path:
    """The model under way."""
    return out.with_name(out.name + ".part")


def rest_path(out: Path) -> Path:
    """Headers and padding of the remote files."""
    return out.with_name(out.name + ".part.rest")


def journal_path(out: Path) -> Path:
    """What is known of the model under way."""
    return out.with_name(out.name + ".part.journal")


class PullTarget:
    """Both files, open for writing, their space taken.

    Args:
        published: the model has its name already; it is looked at, not written.
    """

    def __init__(self, plan: PullPlan, out: Path, *, published: bool = False) -> None:
        self._plan = plan
        self.out = out
        self._model = out if published else part_path(out)
        self._handles: list[int] = []
        try:
            for path, length in ((self._model, plan.file_bytes), (rest_path(out), plan.rest_bytes)):
                created = not path.exists()
                with storage_errors(path), _removed_on_failure(path, created):
                    # O_NOFOLLOW: a link planted under that name leads nowhere.
                    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                    self._handles.append(os.open(path, flags, 0o666))
                    _take_space(self._handles[-1], length)
        except BaseException:
            self.close()
            raise

    def write(self, layout: Layout, offset: int, data: bytes | memoryview) -> None:
        """Write bytes that stand at `offset` of a remote file to where they belong."""
        view = memoryview(data)
        for piece in layout.within(offset, offset + len(view)):
            start = piece.source_offset - offset
            with storage_errors(self.out):
                write_fully(self._handles[piece.place], view[start : start + piece.length], piece.offset)

    def read(self, layout: Layout, start: int, end: int) -> Iterator[bytes]:
        """The bytes of a range of a remote file, from where they were written."""
        for piece in layout.within(start, end):
            for skip in range(0, piece.length, BUFFER_BYTES):
                length = min(BUFFER_BYTES, piece.length - skip)
                data = os.pread(self._handles[piece.place], length, piece.offset + skip)
                if len(data) != length:
                    raise FormatError("was cut short while it was written", path=self._model)
                yield data

    def sha256(self, layout: Layout, start: int, end: int) -> str:
        """Hash of a range of a remote file, from where it was written."""
        digest = hashlib.sha256()
        for data in self.read(layout, start, end):
            digest.update(data)
        return digest.hexdigest()

    def identity(self, layout: Layout) -> str:
        """Hash of a whole remote file, from where it was written, in the form that the Hub keeps."""
        digest, prefix = digest_for(layout.file)
        for data in self.read(layout, 0, layout.file.size):
            digest.update(data)
        return f"{prefix}:{digest.hexdigest()}"

    def sync(self) -> None:
        """Make all that was written durable."""
        for handle in self._handles:
            with storage_errors(self.out):
                os.fsync(handle)

    def publish(self) -> None:
        """Write the header, make all durable, and give the model its name.

        Raises:
            UsageError: a file of that name appeared meanwhile.
        """
        with storage_errors(self.out):
            write_fully(self._handles[Place.MODEL], self._plan.header, 0)
            os.ftruncate(self._handles[Place.MODEL], self._plan.file_bytes)
        self.sync()
        publish_file(part_path(self.out), self.out)

    def close(self) -> None:
        while self._handles:
            os.close(self._handles.pop())


@contextlib.contextmanager
def _removed_on_failure(path: Path, created: bool) -> Iterator[None]:
    """A file that was made just now and whose space cannot be had is taken away again."""
    try:
        yield
    except BaseException:
        if created:
            path.unlink(missing_ok=True)
        raise


class Digest(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def digest_for(file: RemoteFile) -> tuple[Digest, str]:
    """The hash that the Hub keeps for a file, and its name: SHA-256, or git's outside large-file storage."""
    if file.sha256 is not None:
        return hashlib.sha256(), "sha256"
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False), "git"


def taken_bytes(out: Path) -> int:
    """Disk space that an unfinished pull of `out` holds already."""
    return sum(path.stat().st_blocks * 512 for path in (part_path(out), rest_path(out)) if path.is_file())


def _take_space(handle: int, length: int) -> None:
    """Have `length` bytes on disk now, so that a full disk is found before hours of fetching; a file of that length
    where the file system cannot."""
    if os.fstat(handle).st_size > length:
        os.ftruncate(handle, length)
    if length and _fallocate(handle, 0, ctypes.c_int64(0), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise OSError(code, os.strerror(code))
    os.ftruncate(handle, length)


_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
