"""Hashing behind the reading: what the thread that hashes behind the caller must not get wrong."""

import hashlib
import os
import threading

import pytest

from dfqs.errors import ShardError
from dfqs.storage.hashing import PIECE_BYTES, PIECES_BEHIND, HashingReader

DATA = os.urandom(3 * PIECE_BYTES + 12345)


def read_data(offset: int, length: int) -> bytes:
    return DATA[offset : offset + length]


def test_bytes_arrive_in_order_whatever_the_stops_and_the_hash_is_of_all_of_them() -> None:
    reader = HashingReader(read_data)
    got = bytearray()

    def take(piece: bytes, offset: int) -> None:
        assert offset == len(got)
        got.extend(piece)

    for end in (1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES, 2 * PIECE_BYTES + 7, len(DATA)):
        reader.read_through(end, take)
        assert len(got) == end

    assert got == DATA
    assert reader.hexdigest() == hashlib.sha256(DATA).hexdigest()


def test_nothing_read_has_the_hash_of_nothing() -> None:
    assert HashingReader(read_data).hexdigest() == hashlib.sha256(b"").hexdigest()


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

    def read(offset: int, length: int) -> bytes:
        nonlocal most
        most = max(most, offset // PIECE_BYTES - hashed)
        if offset // PIECE_BYTES == PIECES_BEHIND:
            # As much as fits has been read; a reader without a bound would read on and on before a piece is hashed.
            go_on.set()
        return bytes(length)

    monkeypatch.setattr(hashlib, "sha256", SlowDigest)
    reader = HashingReader(read)
    reader.read_through(4 * PIECES_BEHIND * PIECE_BYTES, lambda piece, offset: None)
    reader.hexdigest()

    assert hashed == 4 * PIECES_BEHIND
    # One more may be in the caller's hands, and one in the thread's.
    assert most <= PIECES_BEHIND + 2
