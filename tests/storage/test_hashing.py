"""Hashing behind the reading: what the thread that hashes behind the caller must not get wrong."""

import hashlib
import os
import threading

import pytest

from dfqs.errors import ShardError
from dfqs.storage.hashing import PIECE_BYTES, PIECES_BEHIND, HashingReader

DATA = os.urandom(3 * PIECE_BYTES + 12345)


def read_data(buffer: memoryview, offset: int) -> int:
    data = DATA[offset : offset + len(buffer)]
    buffer[: len(data)] = data
    return len(data)


def test_bytes_arrive_in_order_whatever_the_stops_and_the_hash_is_of_all_of_them() -> None:
    reader = HashingReader(read_data)
    got = bytearray()

    def take(piece: memoryview, offset: int) -> None:
        assert offset == len(got)
        got.extend(piece)

    for end in (1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES, 2 * PIECE_BYTES + 7, len(DATA)):
        reader.read_through(end, take)
        assert len(got) == end

    assert got == DATA
    assert reader.hexdigest() == hashlib.sha256(DATA).hexdigest()


def test_nothing_read_has_the_hash_of_nothing() -> None:
    assert HashingReader(read_data).hexdigest() == hashlib.sha256(b"").hexdigest()


def test_a_buffer_is_used_again_when_it_was_hashed_and_not_before() -> None:
    pieces = 3 * PIECES_BEHIND
    seen: set[int] = set()

    def read(buffer: memoryview, offset: int) -> int:
        buffer[:8] = offset.to_bytes(8, "little")
        seen.add(id(buffer.obj))
        return len(buffer)

    reader = HashingReader(read)
    reader.read_through(pieces * PIECE_BYTES, lambda piece, offset: None)

    expected = hashlib.sha256()
    for number in range(pieces):
        expected.update((number * PIECE_BYTES).to_bytes(8, "little") + bytes(PIECE_BYTES - 8))
    assert reader.hexdigest() == expected.hexdigest()
    assert len(seen) == PIECES_BEHIND


def test_a_file_cut_short_while_it_is_read_is_an_error_and_no_thread_stays() -> None:
    before = threading.active_count()
    reader = HashingReader(read_data)

    with pytest.raises(ShardError, match="cut short"):
        reader.read_through(len(DATA) + 1, lambda piece, offset: None)
    reader.close()

    assert threading.active_count() == before


def test_memory_is_bounded_when_hashing_cannot_keep_up(monkeypatch: pytest.MonkeyPatch) -> None:
    most = hashed = 0
    go_on = threading.Event()

    class SlowDigest:
        def update(self, piece: bytes) -> None:
            nonlocal hashed
            go_on.wait(60)
            hashed += 1

        def hexdigest(self) -> str:
            return ""

    def read(buffer: memoryview, offset: int) -> int:
        nonlocal most
        most = max(most, offset // PIECE_BYTES - hashed)
        if offset // PIECE_BYTES == PIECES_BEHIND - 1:
            # As much as fits has been read; a reader without a bound would read on and on before a piece is hashed.
            go_on.set()
        return len(buffer)

    monkeypatch.setattr(hashlib, "sha256", SlowDigest)
    reader = HashingReader(read)
    reader.read_through(4 * PIECES_BEHIND * PIECE_BYTES, lambda piece, offset: None)
    reader.hexdigest()

    assert hashed == 4 * PIECES_BEHIND
    # One more may be in the caller's hands, and one in the thread's.
    assert most <= PIECES_BEHIND + 2
