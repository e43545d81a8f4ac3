"""SHA-256 of a file while it is read, with the hashing behind the reading.

hashlib lets go of the interpreter lock while it hashes, so a second thread is enough to keep the disk busy. Memory is
bounded by the buffers. Holes of a sparse file are read and hashed as the zeroes they are.
"""

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, Self

from dfqs.errors import FormatError, ShardError
from dfqs.progress import Progress, no_progress
from dfqs.storage.files import open_to_read, read_into

BUFFER_BYTES = 1 << 20
"""Small enough to be in a processor's cache still when the second thread hashes it, and large enough that handing it
over (20 us for each thread) is nothing beside hashing it."""
BUFFERS = 8
PIECE_BYTES = 1 << 20
"""Likewise, where the caller writes it too."""
PIECES_BEHIND = 48


class Digest(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> Self: ...


def hash_file(path: Path, *, progress: Progress = no_progress, note: str = "") -> str:
    """SHA-256 (hex) of any file.

    Args:
        progress: in bytes, with `note`.

    Raises:
        UsageError: there is no such file, or it cannot be read.
        FormatError: it is cut short meanwhile.
    """
    handle = open_to_read(path)
    try:
        size, digest = os.fstat(handle).st_size, hashlib.sha256()
        with Lane(digest.update) as lane:
            for offset, piece in read_pieces(handle, path, size, [lane]):
                progress(offset + len(piece), size, note)
        return digest.hexdigest()
    finally:
        os.close(handle)


def hash_range(read_at: Callable[[int, int], bytes], offset: int, length: int) -> str | None:
    """SHA-256 (hex) of `length` bytes from `offset` on; None where there are fewer.

    Args:
        read_at: gives so many bytes at an offset, or what is left there.
    """
    digest, end = hashlib.sha256(), offset + length
    while offset < end:
        piece = read_at(offset, min(PIECE_BYTES, end - offset))
        if not piece:
            return None
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


class Lane:
    """A thread that does one thing to pieces in the order they are given."""

    def __init__(self, consume: Callable[[memoryview], None]) -> None:
        self._consume = consume
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hash")

    def submit(self, piece: memoryview) -> Future[None]:
        return self._thread.submit(self._consume, piece)

    def __enter__(self) -> "Lane":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()


def read_pieces(handle: int, path: Path, size: int, lanes: Sequence[Lane]) -> Iterator[tuple[int, memoryview]]:
    """Read an open file through a ring of buffers, giving each piece to every lane; a buffer waits for its readers.

    Raises:
        FormatError: the file ends before `size`.
    """
    buffers = [bytearray(min(BUFFER_BYTES, size)) for _ in range(BUFFERS)]
    pending: list[list[Future[None]]] = [[] for _ in buffers]
    offset, turn = 0, 0
    while offset < size:
        for future in pending[turn]:
            future.result()
        view = memoryview(buffers[turn])[: min(BUFFER_BYTES, size - offset)]
        piece = view[: read_some(handle, path, view, offset)]
        pending[turn] = [lane.submit(piece) for lane in lanes]
        yield offset, piece
        offset += len(piece)
        turn = (turn + 1) % BUFFERS
    for futures in pending:
        for future in futures:
            future.result()


def read_some(handle: int, path: Path, buffer: memoryview, offset: int) -> int:
    """Fill the beginning of a buffer; at least a byte of it.

    Raises:
        FormatError: the file ends there.
    """
    got = read_into(handle, buffer, offset)
    if got == 0:
        raise FormatError("the file was cut short while it was read", path=path, offset=offset)
    return got


class HashingReader:
    """Reads a file in order; a second thread hashes what was read, by up to 48 MiB behind the caller.

    On a fast disk hashing takes longest. It goes on while the caller writes, waits for an fsync, or frees blocks. The
    buffers are used in turn: memory that is new for each piece costs as much as reading into it.

    Args:
        read_into: fills the beginning of a buffer from an offset; the number of bytes, 0 only where the file ends.
    """

    def __init__(self, read_into: Callable[[memoryview, int], int]) -> None:
        self._read_into = read_into
        self._buffers: list[memoryview] = []
        self._turn = 0
        self._digest = hashlib.sha256()
        self._position = 0
        self._room = threading.Semaphore(PIECES_BEHIND)
        self._pieces: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._hash, name="sha256", daemon=True)
        self._thread.start()

    def read_through(self, end: int, consume: Callable[[memoryview, int], None]) -> None:
        """Go on from where the last call ended up to `end`; `consume` gets each piece and its offset,
        and does not keep it.

        Raises:
            ShardError: the file ends before.
        """
        while self._position < end:
            self._room.acquire()
            buffer = self._next_buffer()[: end - self._position]
            piece = buffer[: self._read_into(buffer, self._position)]
            if not piece:
                raise ShardError("a source was cut short while it was read", offset=self._position)
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

    def _next_buffer(self) -> memoryview:
        """The buffer that was used longest ago, of as many as there may be pieces: what was in it has been hashed."""
        if len(self._buffers) < PIECES_BEHIND:
            self._buffers.append(memoryview(bytearray(PIECE_BYTES)))
            return self._buffers[-1]
        self._turn = (self._turn + 1) % PIECES_BEHIND
        return self._buffers[self._turn - 1]

    def _hash(self) -> None:
        while (piece := self._pieces.get()) is not None:
            self._digest.update(piece)
            self._room.release()
