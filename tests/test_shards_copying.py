"""Copying with a hash on the way: what the reader that runs ahead must not get wrong."""

import hashlib
import os
import threading

import pytest

from dfqs.errors import ShardError
from dfqs.shards.copying import PIECE_BYTES, PIECES_AHEAD, HashingReader

DATA = os.urandom(3 * PIECE_BYTES + 12345)


def read_data(offset: int, length: int) -> bytes:
    return DATA[offset : offset + length]


def test_bytes_arrive_in_order_whatever_the_stops_and_the_hash_is_of_all_of_them() -> None:
    reader = HashingReader(read_data, len(DATA))
    got = bytearray()

    def take(piece: memoryview, offset: int) -> None:
        assert offset == len(got)
        got.extend(piece)

    for end in (1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES, 2 * PIECE_BYTES + 7, len(DATA)):
        reader.read_through(end, take)
        assert len(got) == end

    assert got == DATA
    assert reader.hexdigest() == hashlib.sha256(DATA).hexdigest()
    reader.close()


def test_an_empty_file_has_the_hash_of_nothing() -> None:
    reader = HashingReader(read_data, 0)

    assert reader.hexdigest() == hashlib.sha256(b"").hexdigest()
    reader.close()


def test_a_file_cut_short_while_it_is_read_is_an_error_each_time_it_is_asked_for() -> None:
    reader = HashingReader(read_data, len(DATA) + 1)

    for _ in range(2):
        with pytest.raises(ShardError, match="cut short"):
            reader.read_through(len(DATA) + 1, lambda piece, offset: None)
    reader.close()


def test_a_disk_that_fails_while_read_ahead_fails_the_caller_and_not_only_a_thread() -> None:
    def fail(offset: int, length: int) -> bytes:
        raise OSError(5, "Input/output error")

    reader = HashingReader(fail, 10)

    with pytest.raises(OSError, match="Input/output error"):
        reader.read_through(10, lambda piece, offset: None)
    reader.close()


def test_memory_is_bounded_and_the_thread_ends_when_the_caller_gives_up() -> None:
    reads = 0
    full = threading.Event()

    def endless(offset: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads == PIECES_AHEAD:
            full.set()
        return bytes(length)

    before = threading.active_count()
    reader = HashingReader(endless, 1 << 50)
    assert full.wait(60)
    reader.close()

    assert reads == PIECES_AHEAD
    assert threading.active_count() == before
