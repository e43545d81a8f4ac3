"""What is guessed is read only while nothing is wanted, and a wrong guess costs nothing but reading."""

import ctypes
import mmap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dfqs.errors import IntegrityError, RuntimeFailure
from dfqs.gguf import GGMLType, TensorSource, write_gguf
from dfqs.gguf.reader import read_header
from dfqs.streaming.guessing import NextChoice, find_routers
from dfqs.streaming.layout import PAGE_BYTES, ExpertPages, PageRange
from dfqs.streaming.lookahead import GuessRoom, LookAhead
from dfqs.streaming.pages import MappedFiles
from dfqs.streaming.reader import Arrival, PageReader

WAIT_S = 10


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Pages that hold their own number, mapped by this process."""
    path = tmp_path / "m.bin"
    path.write_bytes(b"".join(bytes([number]) * PAGE_BYTES for number in range(16)))
    return path


@pytest.fixture
def mapped(file: Path) -> Iterator[mmap.mmap]:
    with file.open("rb") as opened:
        pages = mmap.mmap(opened.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    yield pages


@pytest.fixture
def reader(file: Path) -> Iterator[PageReader]:
    running = PageReader([file], threads=2)
    yield running
    running.close()


def page(number: int) -> PageRange:
    return PageRange(0, number * PAGE_BYTES, PAGE_BYTES)


def test_what_is_offered_waits_until_nothing_is_wanted_and_comes_one_at_a_time(reader: PageReader) -> None:
    released, done = threading.Event(), threading.Event()
    order: list[str] = []

    def wanted() -> None:
        released.wait(WAIT_S)
        order.append("wanted")

    arrival = Arrival(1)
    reader.bring(wanted, arrival)

    def second() -> None:
        order.append("second")
        done.set()

    assert reader.offer([lambda: order.append("never")]) == []
    # Two readers, one of them idle: it must not begin.
    left = reader.offer([lambda: order.append("first"), second])
    assert len(left) == 1
    released.set()
    arrival.wait()

    assert done.wait(WAIT_S)
    assert order == ["wanted", "first", "second"]
    assert reader.offer(()) == []


def test_a_right_guess_moves_into_its_place_and_a_wrong_one_is_forgotten(
    file: Path, mapped: mmap.mmap, reader: PageReader
) -> None:
    files = MappedFiles([file])
    ahead = LookAhead(files, reader, GuessRoom(2, PAGE_BYTES))
    experts = [ExpertPages((page(3),), (page(4),)), ExpertPages((page(5),), ())]
    old = page(9)
    ctypes.memset(files.lay_over(old), 0x77, PAGE_BYTES)

    ahead.begin(1, experts)
    wait_for_idle(reader)
    ahead.settle()
    # Two places: the third matrix was never begun.
    assert ahead.read_bytes == 2 * PAGE_BYTES
    assert ahead.take(page(5)) is None
    guess = ahead.take(page(3))
    assert guess is not None
    assert ahead.move_in(guess, old) is None

    assert ahead.unused_bytes == PAGE_BYTES
    assert mapped[:] == file.read_bytes()
    # It is a copy in memory now, and what it took the place of is the file again.
    assert ctypes.string_at(files.address(page(3)), PAGE_BYTES) == bytes([3]) * PAGE_BYTES
    file.write_bytes(bytes(16 * PAGE_BYTES))
    assert mapped[3 * PAGE_BYTES] == 3
    assert mapped[9 * PAGE_BYTES] == 0
    # The same memory serves the next guesses.
    ahead.begin(2, [ExpertPages((page(6),), ())])
    wait_for_idle(reader)
    ahead.settle()
    again = ahead.take(page(6))
    assert again is not None
    assert ahead.move_in(again, None) is None
    assert mapped[6 * PAGE_BYTES] == 0
    files.close()


def test_where_the_kernel_cannot_move_memory_it_is_copied(
    file: Path, mapped: mmap.mmap, reader: PageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = MappedFiles([file])
    monkeypatch.setattr(MappedFiles, "_moves", staticmethod(lambda *_: False))
    ahead = LookAhead(files, reader, GuessRoom(2, PAGE_BYTES))
    files.lay_over(page(9))

    ahead.begin(1, [ExpertPages((page(3),), (page(4),))])
    wait_for_idle(reader)
    ahead.settle()
    for number, left in ((3, page(9)), (4, None)):
        guess = ahead.take(page(number))
        assert guess is not None
        assert ahead.move_in(guess, left) is None

    assert mapped[:] == file.read_bytes()
    files.close()


def test_a_guess_that_cannot_be_read_fails_only_where_it_is_wanted(
    file: Path, mapped: mmap.mmap, reader: PageReader
) -> None:
    damaged = IntegrityError("not those recorded")
    files = MappedFiles([file])
    ahead = LookAhead(files, reader, GuessRoom(2, PAGE_BYTES))
    reader.inspect = lambda pages, _: damaged if pages == page(3) else None

    ahead.begin(1, [ExpertPages((page(3),), (page(4),))])
    wait_for_idle(reader)
    ahead.settle()
    for number, wanted in ((4, None), (3, damaged)):
        guess = ahead.take(page(number))
        assert guess is not None
        arrival = Arrival(1)
        reader.bring(lambda guess=guess: ahead.move_in(guess, None), arrival)  # type: ignore[misc]
        if wanted is None:
            arrival.wait()
        else:
            with pytest.raises(IntegrityError, match="not those recorded"):
                arrival.wait()
    assert mapped[:] == file.read_bytes()
    files.close()


def test_a_layer_whose_guesses_are_mostly_wrong_is_left_alone(
    file: Path, mapped: mmap.mmap, reader: PageReader
) -> None:
    files = MappedFiles([file])
    ahead = LookAhead(files, reader, GuessRoom(4, PAGE_BYTES))
    for _ in range(12):
        assert ahead.is_worth(1)
        for layer in (1, 2):
            ahead.begin(layer, [ExpertPages(tuple(page(number) for number in range(4)), ())])
            wait_for_idle(reader)
            ahead.settle()
        assert ahead.take(page(1)) is not None
    assert not ahead.is_worth(1)
    assert ahead.is_worth(2)
    assert len(mapped) == 16 * PAGE_BYTES
    files.close()


def test_the_next_choice_is_what_the_next_router_says_of_this_layers_state() -> None:
    narrow = {"weight": np.array([[1, 0], [0, 1], [1, 1]], np.float32)}
    routers = {
        3: narrow | {"norm": np.array([2, 4], np.float32)},
        5: narrow | {"norm": np.array([1, 4], np.float32), "bias": np.array([0, 0, -9], np.float32)},
        6: narrow | {"selection": np.array([0, 0.9, -1], np.float32)},
    }
    guesser = NextChoice(routers, [3, 5, 6, 7])

    assert [guesser.layer_after(layer) for layer in (3, 5, 6, 7)] == [5, 6, None, None]
    # (4, 1) under the other norm is (2, 1): expert 2 would be first but for its bias.
    assert guesser.guess(3, np.array([[4, 1]], np.float32), 2) == [0, 1]
    # Scores 0.98 and 0.73 become 0.98 and 1.63.
    assert guesser.guess(5, np.array([[4, 1]], np.float32), 2) == [1, 0]
    # Each token's first ones before anybody's second.
    assert guesser.guess(3, np.array([[4, 1], [0, 1]], np.float32), 1) == [0, 1]
    assert guesser.guess(3, np.array([[4, 1, 1]], np.float32), 1) == []
    assert len(guesser.guess(5, np.array([[-1e30, np.nan]], np.float32), 2)) == 2


def test_routers_are_found_where_they_can_be_read_as_they_lie(tmp_path: Path) -> None:
    def tensor(name: str, shape: tuple[int, ...], type_: GGMLType = GGMLType.F32) -> TensorSource:
        size = int(np.prod(shape)) * (4 if type_ is GGMLType.F32 else 2)
        return TensorSource(name, shape, type_, lambda: iter([bytes(size)]))

    path = tmp_path / "m.gguf"
    write_gguf(
        path,
        [],
        [
            tensor("blk.0.ffn_norm.weight", (8,)),
            tensor("blk.1.ffn_gate_inp.weight", (8, 4)),
            tensor("blk.1.ffn_gate_inp.bias", (4,)),
            tensor("blk.1.exp_probs_b.bias", (4,)),
            tensor("blk.1.ffn_norm.weight", (8,)),
            tensor("blk.2.ffn_gate_inp.weight", (8, 4), GGMLType.F16),
            tensor("blk.3.ffn_gate_inp.weight", (8, 4)),
            tensor("blk.3.ffn_gate_inp_s.weight", (8, 4)),
        ],
    )

    found = find_routers([read_header(path)])

    assert {layer: set(parts) for layer, parts in found.items()} == {
        1: {"weight", "bias", "selection", "norm"},
        3: {"weight"},
    }
    assert found[1]["weight"].shape == (4, 8)


def wait_for_idle(reader: PageReader) -> None:
    """Until what was offered is done: jobs come one after another, so this is the last one."""
    done = threading.Event()
    deadline = threading.Event()
    while reader._idle_jobs or reader._is_idling:
        deadline.wait(0.001)
    arrival = Arrival(1)
    reader.bring(lambda: done.set(), arrival)
    arrival.wait()
    assert done.is_set()


def test_a_job_that_raises_is_a_failure_of_whoever_waits_for_it(reader: PageReader) -> None:
    def fails() -> None:
        raise RuntimeFailure("no memory")

    arrival = Arrival(1)
    reader.bring(fails, arrival)

    with pytest.raises(RuntimeFailure, match="no memory"):
        arrival.wait()
