"""Bytes from one open file to another, as fast as the disk takes them.

The kernel copies (`copy_file_range`: no bytes through this process, and no bytes at all where the file system can
share them); where it cannot, a buffer does. Writing to disk is started while copying goes on, so that the fsync at the
end finds little left to do.
"""

import ctypes
import errno
import hashlib
import os
import queue
import threading
from collections.abc import Callable

from dfqs.errors import ShardError

CHUNK_BYTES = 32 << 20
"""How much is copied between two reports, and between two starts of writing to disk."""
BUFFER_BYTES = 4 << 20
PIECE_BYTES = 1 << 20
"""Small enough to be in the processor's cache still when it is hashed, and written."""
PIECES_BEHIND = 48
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY, errno.EIO)
_SYNC_FILE_RANGE_WRITE = 2


def copy_range(source: int, target: int, source_offset: int, target_offset: int, length: int) -> None:
    """Copy `length` bytes between two file descriptors.

    Raises:
        ShardError: the source ends before.
        OSError: the operating system's refusal.
    """
    done = _copy_in_kernel(source, target, source_offset, target_offset, length)
    buffer = memoryview(bytearray(min(BUFFER_BYTES, max(length - done, 1))))
    while done < length:
        piece = buffer[: min(len(buffer), length - done)]
        got = os.preadv(source, [piece], source_offset + done)
        if got == 0:
            raise ShardError("a source was cut short while it was read", offset=source_offset + done)
        write_fully(target, piece[:got], target_offset + done)
        done += got


def write_fully(target: int, data: bytes | memoryview, offset: int) -> None:
    """pwrite until all is written."""
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, offset)
        view = view[written:]
        offset += written


def start_writeback(target: int, offset: int, length: int) -> None:
    """Ask the kernel to begin writing a range to disk, without waiting. Only a hint: failure is no failure."""
    _sync_file_range(target, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)


class HashingReader:
    """Reads a file in order; a second thread hashes what was read, by up to 48 MiB behind the caller.

    On a fast disk hashing takes longest. It goes on while the caller writes, waits for an fsync, or frees blocks.
    """

    def __init__(self, read_at: Callable[[int, int], bytes]) -> None:
        self._read_at = read_at
        self._digest = hashlib.sha256()
        self._position = 0
        self._room = threading.Semaphore(PIECES_BEHIND)
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._hash, name="sha256", daemon=True)
        self._thread.start()

    def read_through(self, end: int, consume: Callable[[bytes, int], None]) -> None:
        """Go on from where the last call ended up to `end`; `consume` gets each piece and its offset.

        Raises:
            ShardError: the file ends before.
        """
        while self._position < end:
            piece = self._read_at(self._position, min(PIECE_BYTES, end - self._position))
            if not piece:
                raise ShardError("a source was cut short while it was read", offset=self._position)
            self._room.acquire()
            self._pieces.put(piece)
            consume(piece, self._position)
            self._position += len(piece)

    def hexdigest(self) -> str:
        """SHA-256 of all that was read; nothing can be read after it."""
        self.close()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Let the thread end, when it has hashed what it was given."""
        self._pieces.put(None)
        self._thread.join()

    def _hash(self) -> None:
        while (piece := self._pieces.get()) is not None:
            self._digest.update(piece)
            self._room.release()


def _copy_in_kernel(source: int, target: int, source_offset: int, target_offset: int, length: int) -> int:
    """Bytes that the kernel copied before it was done, or would not go on."""
    done = 0
    while done < length:
        try:
            got = os.copy_file_range(source, target, length - done, source_offset + done, target_offset + done)
        except OSError as error:
            if error.errno in _CANNOT:
                return done
            raise
        if got == 0:
            return done
        done += got
    return done


_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
