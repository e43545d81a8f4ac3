"""A server that hangs is told from one that computes for long, and from a machine that slept."""

import os

import pytest

from dfqs.serving.stall import StallClock, Work, read_work

IDLE = Work(10.0, 0)


def looks(clock: StallClock, *works: Work | None, answered: bool = False, passed_s: float = 1.0) -> str | None:
    """What the last of some looks says."""
    said = None
    for work in works:
        said = clock.look(passed_s, work, answered)
    return said


def test_who_neither_works_nor_answers_hangs_after_the_limit_and_not_before() -> None:
    clock = StallClock(limit_s=20)
    assert looks(clock, *[IDLE] * 21) is None
    assert looks(clock, IDLE) == "it did nothing for 20 s: it took no processor time, read nothing and did not answer"


@pytest.mark.parametrize(
    "works",
    [
        # 1.5 % of a processor: the lowest priority beside others of the usual one.
        [Work(10.0 + 0.015 * second, 0) for second in range(300)],
        # Experts from a slow disk.
        [Work(10.0, second * 70_000) for second in range(300)],
    ],
)
def test_who_works_slowly_does_not_hang(works: list[Work]) -> None:
    assert all(looks(clock, work) is None for clock in [StallClock(limit_s=30)] for work in works)


def test_who_wakes_up_and_finds_nothing_to_do_has_not_worked() -> None:
    # A look around four times a second, some of llama.cpp's threads that answer others: a tick now and then.
    works = [Work(10.0 + 0.01 * (second // 12), 0) for second in range(40)]
    assert looks(StallClock(limit_s=30), *works) is not None


def test_an_idle_server_is_asked_and_its_answer_is_a_sign() -> None:
    clock = StallClock(limit_s=20)
    looks(clock, *[IDLE] * 11)
    assert not clock.should_ask()
    looks(clock, IDLE)
    assert clock.should_ask()
    assert looks(clock, IDLE, answered=True) is None
    assert not clock.should_ask()
    assert looks(clock, *[IDLE] * 20) is None


def test_a_loop_without_end_is_found_late_and_a_long_batch_is_not_taken_for_one() -> None:
    clock = StallClock(limit_s=20, batch_limit_s=100)
    spins = [Work(10.0 + second, 0) for second in range(102)]
    assert looks(clock, *spins[:100]) is None
    assert clock.should_ask()
    assert looks(clock, *spins[100:]) == "it computed for 100 s without coming to the end of a batch"


def test_time_in_which_nobody_looked_does_not_count() -> None:
    # A lid that was closed, or serve itself stopped by Ctrl-Z.
    assert looks(StallClock(limit_s=20), IDLE, IDLE, passed_s=3600) is None


def test_a_process_that_cannot_be_looked_at_is_not_accused() -> None:
    assert read_work(2**22 + 1) is None
    assert looks(StallClock(limit_s=20), *[None] * 99) is None
    own = read_work(os.getpid())
    assert own is not None and own.cpu_s > 0
