"""Bytes from one open file to another, as fast as the disk takes them.

The kernel copies (`copy_file_range`: no bytes through this process, and no bytes at all where the file system can
share them); where it cannot, a buffer does. Writing to disk is started while copying goes on, so that the fsync at the
end finds little left to do.
"""

import errno

from dfqs.errors import ShardError
from dfqs.progress import Progress, no_progress
from dfqs.storage.files import read_into, write_at
from dfqs.storage.libc import start_writeback
from dfqs.storage.linux import copy_file_range

CHUNK_BYTES = 32 << 20
"""How much is copied between two reports, and between two starts of writing to disk."""
BUFFER_BYTES = 4 << 20
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY, errno.EIO)


class RangeWriter:
    """Fills an open file with ranges, in rising order; reports each, and has the disk begin with what was written.

    Args:
        total_bytes: of all the work that `progress` is told of.
        done_bytes: of it, written before.
        note: what is being written; may be set anew on the way.
    """

    def __init__(
        self,
        destination: int,
        total_bytes: int,
        progress: Progress = no_progress,
        *,
        done_bytes: int = 0,
        note: str = "",
    ) -> None:
        self.done_bytes = done_bytes
        self.note = note
        self._target = destination
        self._total_bytes = total_bytes
        self._progress = progress
        self._unstarted_from: int | None = None

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write bytes of ours."""
        write_at(self._target, data, offset)
        self._count(offset, len(data))

    def copy(self, source: int, source_offset: int, offset: int, length: int) -> None:
        """Copy a range of another open file.

        Raises:
            ShardError: the source ends before.
        """
        for start in range(0, length, CHUNK_BYTES):
            piece = min(CHUNK_BYTES, length - start)
            copy_range(source, self._target, source_offset + start, offset + start, piece)
            self._count(offset + start, piece)

    def _count(self, offset: int, length: int) -> None:
        self.done_bytes += length
        if self._unstarted_from is None:
            self._unstarted_from = offset
        unstarted = offset + length - self._unstarted_from
        if unstarted >= CHUNK_BYTES:
            start_writeback(self._target, self._unstarted_from, unstarted)
            self._unstarted_from = None
        self._progress(self.done_bytes, self._total_bytes, self.note)


def copy_range(source: int, destination: int, source_offset: int, destination_offset: int, length: int) -> None:
    """Copy `length` bytes between two file descriptors.

    Raises:
        ShardError: the source ends before.
        OSError: the operating system's refusal.
    """
    done = _copy_in_kernel(source, destination, source_offset, destination_offset, length)
    buffer = memoryview(bytearray(min(BUFFER_BYTES, max(length - done, 1))))
    while done < length:
        piece = buffer[: min(len(buffer), length - done)]
        got = read_into(source, piece, source_offset + done)
        if got == 0:
            raise ShardError("a source was cut short while it was read", offset=source_offset + done)
        write_at(destination, piece[:got], destination_offset + done)
        done += got


def _copy_in_kernel(source: int, destination: int, source_offset: int, destination_offset: int, length: int) -> int:
    """Bytes that the kernel copied before it was done, or would not go on."""
    done = 0
    while done < length:
        try:
            got = copy_file_range(source, destination, length - done, source_offset + done, destination_offset + done)
        except OSError as error:
            if error.errno in _CANNOT:
                return done
            raise
        if got == 0:
            return done
        done += got
    return done
