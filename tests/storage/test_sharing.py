"""Work that threads share is all done, or ends with the first failure."""

import threading

import pytest

from dfqs.storage.sharing import SharedProgress, share_out


@pytest.mark.parametrize("threads", [1, 3, 50])
def test_every_piece_is_done_once_and_progress_ends_at_the_whole(threads: int) -> None:
    done: list[int] = []
    told: list[tuple[int, int | None]] = []
    progress = SharedProgress(lambda done, total=None, note="": told.append((done, total)), 40)

    def work(piece: int, stop: threading.Event) -> None:
        done.append(piece)
        progress.add(2)

    share_out(range(20), work, threads=threads, name="test")

    assert sorted(done) == list(range(20))
    assert told == [(2 * n, 40) for n in range(1, 21)]


def test_a_failure_comes_out_and_the_others_do_not_go_on_for_hours() -> None:
    done: list[int] = []

    def work(piece: int, stop: threading.Event) -> None:
        if piece == 0:
            raise ValueError("a disk failed")
        assert stop.wait(30), "nobody was told"
        done.append(piece)

    with pytest.raises(ValueError, match="a disk failed"):
        share_out(range(1000), work, threads=4, name="test")

    assert len(done) <= 3


def test_nothing_to_do_is_done_at_once() -> None:
    share_out([], lambda piece, stop: None, threads=2, name="test")
