"""The files that a pull writes: the model under way (`OUT.part`), and what is no part of it (`OUT.part.rest`)."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from dfqs.errors import FormatError, IntegrityError
from dfqs.pull.hub import RemoteFile
from dfqs.pull.journal import KIND
from dfqs.pull.plan import Layout, Place, PullPlan
from dfqs.storage.atomic import publish_file, storage_errors
from dfqs.storage.files import open_own, read_at, write_at
from dfqs.storage.hashing import Digest
from dfqs.storage.libc import fallocate, start_writeback
from dfqs.storage.linux import Lease
from dfqs.storage.space import allocated_bytes

BUFFER_BYTES = 1 << 20
"""Read at once: in the processor's cache still when it is hashed."""
_SEALED_AGO_NS = 10 * 10**9
"""The time that is set on files that are not to change any more: any later write shows, whatever the clock's ticks."""


def part_path(out: Path) -> Path:
    """The model under way."""
    return out.with_name(out.name + ".part")


def rest_path(out: Path) -> Path:
    """Headers and padding of the remote files."""
    return out.with_name(out.name + ".part.rest")


def journal_path(out: Path) -> Path:
    """What is known of the model under way."""
    return KIND.path_beside(out)


def older_journal_path(out: Path) -> Path:
    """What dfqs 0.1 called it."""
    return out.with_name(out.name + ".part.journal")


class PullOutput:
    """Both files, open for writing, their space taken.

    Raises:
        UsageError: something that is no regular file stands under one of the names.
        SpaceError: the disk is full.
    """

    def __init__(self, plan: PullPlan, out: Path) -> None:
        self.plan = plan
        self.out = out
        self._model = part_path(out)
        self._handles: list[int] = []
        self._sealed: tuple[tuple[int, ...], ...] = ()
        self._lease: Lease | None = None
        try:
            for path, length in ((self._model, plan.file_bytes), (rest_path(out), plan.rest_bytes)):
                created = not path.exists()
                with storage_errors(path), _removed_on_failure(path, created):
                    self._handles.append(open_own(path, os.O_RDWR | os.O_CREAT))
                    _take_space(self._handles[-1], length)
        except BaseException:
            self.close()
            raise
        self._lease = Lease(self._handles)

    def is_untouched(self) -> bool:
        """Whether no other program opened the files since they were opened here, before any of their bytes was hashed.
        False where the system cannot tell."""
        return self._lease is not None and self._lease.is_kept()

    def write(self, layout: Layout, offset: int, data: bytes | memoryview) -> None:
        """Write bytes that stand at `offset` of a remote file to where they belong."""
        view = memoryview(data)
        for piece in layout.within(offset, offset + len(view)):
            start = piece.source_offset - offset
            with storage_errors(self.out):
                write_at(self._handles[piece.place], view[start : start + piece.length], piece.offset)

    def begin_writeback(self, layout: Layout, start: int, end: int) -> None:
        """Have the disk take a range of a remote file that is all there, so that little is left for the end."""
        for piece in layout.within(start, end):
            start_writeback(self._handles[piece.place], piece.offset, piece.length)

    def read(self, layout: Layout, start: int, end: int) -> Iterator[bytes]:
        """The bytes of a range of a remote file, from where they were written."""
        for piece in layout.within(start, end):
            for skip in range(0, piece.length, BUFFER_BYTES):
                length = min(BUFFER_BYTES, piece.length - skip)
                data = read_at(self._handles[piece.place], piece.offset + skip, length)
                if len(data) != length:
                    raise FormatError("was cut short while it was written", path=self._model)
                yield data

    def read_model(self, start: int, end: int) -> Iterator[bytes]:
        """Bytes of the model under way."""
        for offset in range(start, end, BUFFER_BYTES):
            length = min(BUFFER_BYTES, end - offset)
            data = read_at(self._handles[Place.MODEL], offset, length)
            if len(data) != length:
                raise FormatError("was cut short while it was written", path=self._model)
            yield data

    def sync(self) -> None:
        """Make all that was written durable."""
        for handle in self._handles:
            with storage_errors(self.out):
                os.fsync(handle)

    def publish(self, check: Callable[[], None] | None = None) -> None:
        """Write the header, make all durable, look at it all once more, and give the model its name.

        Args:
            check: reads the finished files and raises where they are wrong. What it saw is what gets the name: no write
                by anybody comes between unnoticed.

        Raises:
            UsageError: a file of that name appeared meanwhile.
            IntegrityError: another program wrote to the files, or put others in their place.
        """
        with storage_errors(self.out):
            for start, end in self.plan.gaps():
                for offset in range(start, end, BUFFER_BYTES):
                    data = self.plan.gap_bytes(offset, min(offset + BUFFER_BYTES, end))
                    write_at(self._handles[Place.MODEL], data, offset)
            os.ftruncate(self._handles[Place.MODEL], self.plan.file_bytes)
        self.sync()
        self._seal()
        if check is not None:
            check()
        self._require_untouched(self._model)
        publish_file(self._model, self.out)
        try:
            self._require_untouched(self.out, renamed=True)
        except IntegrityError:
            # In the moment of the renaming: what has the name now is not what was looked at.
            publish_file(self.out, self._model, overwrite=True)
            raise

    def _seal(self) -> None:
        """Remember the files as they are, so that any later change of them shows."""
        for handle in self._handles:
            status = os.fstat(handle)
            # Another user's file may not take it; then the clock has to do.
            with contextlib.suppress(PermissionError):
                os.utime(handle, ns=(status.st_atime_ns, status.st_mtime_ns - _SEALED_AGO_NS))
        self._sealed = tuple(_state(os.fstat(handle)) for handle in self._handles)

    def _require_untouched(self, path: Path, *, renamed: bool = False) -> None:
        now = tuple(_state(os.fstat(handle)) for handle in self._handles)
        # Renaming changes a file's status time by itself.
        kept = [
            then[:4] == found[:4] if renamed else then == found for then, found in zip(self._sealed, now, strict=True)
        ]
        try:
            named = path.lstat()
        except FileNotFoundError:
            named = None
        if not all(kept) or named is None or (named.st_dev, named.st_ino) != now[Place.MODEL][:2]:
            raise IntegrityError(
                f"{self._model} was changed or replaced by another program while it was pulled; nothing was published. "
                "The same command fetches again what is wrong"
            )

    def close(self) -> None:
        if self._lease is not None:
            self._lease.end()
        while self._handles:
            os.close(self._handles.pop())


def _state(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@contextlib.contextmanager
def _removed_on_failure(path: Path, created: bool) -> Iterator[None]:
    """A file that was made just now and whose space cannot be had is taken away again."""
    try:
        yield
    except BaseException:
        if created:
            path.unlink(missing_ok=True)
        raise


def digest_for(file: RemoteFile) -> tuple[Digest, str]:
    """The hash that the Hub keeps for a file, and its name: SHA-256, or git's outside large-file storage."""
    if file.sha256 is not None:
        return hashlib.sha256(), "sha256"
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False), "git"


def taken_bytes(out: Path) -> int:
    """Disk space that an unfinished pull of `out` holds already."""
    return allocated_bytes(part_path(out)) + allocated_bytes(rest_path(out))


def _take_space(handle: int, length: int) -> None:
    """Have `length` bytes on disk now, so that a full disk is found before hours of fetching; a file of that length
    where the file system cannot."""
    if os.fstat(handle).st_size > length:
        os.ftruncate(handle, length)
    try:
        if length:
            fallocate(handle, 0, 0, length)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
    os.ftruncate(handle, length)
