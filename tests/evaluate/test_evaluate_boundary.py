"""The failure boundary's rule, on made-up curves."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfqs.evaluate.boundary import REFINE_STEPS, LengthResult, find_boundary
from dfqs.evaluate.statistics import Count

LENGTHS = (1024, 2048, 4096, 8192, 16384)


def search(right_at: Any, lengths: Any = LENGTHS, total: int = 40) -> Any:
    """`right_at(length)` is the number of right answers, or a text: why the runtime fails."""
    asked = []

    def measure(length: int) -> Any:
        asked.append(length)
        right = right_at(length)
        if isinstance(right, str):
            return LengthResult(length, Count(0, 0), right)
        return LengthResult(length, Count(right, total))

    return find_boundary(measure, lengths), asked


def test_when_nothing_fails_the_longest_length_is_given_as_censored() -> None:
    boundary, asked = search(lambda length: 36)

    assert (boundary.tokens, boundary.censored, boundary.cause) == (16384, True, "none")
    assert asked == list(LENGTHS)


def test_a_fall_is_found_confirmed_and_narrowed_to_an_eighth() -> None:
    boundary, asked = search(lambda length: 38 if length < 3000 else 2)

    # 2,048 works, 4,096 and 8,192 fail; then 3,072 fails, 2,560 works, 2,816 works
    assert asked == [1024, 2048, 4096, 8192, 3072, 2560, 2816]
    assert (boundary.tokens, boundary.cause, boundary.censored) == (3072, "score", False)
    assert boundary.reason == "2 of 40 right, below half of 38 of 40"


def test_one_bad_length_between_good_ones_is_no_boundary() -> None:
    boundary, _ = search(lambda length: 0 if length == 4096 else 38)

    assert (boundary.tokens, boundary.censored) == (16384, True)


def test_the_longest_length_alone_needs_a_failing_neighbour() -> None:
    alone, _ = search(lambda length: 0 if length == 16384 else 38)
    with_neighbour, _ = search(lambda length: 0 if length > 11_000 else 38)

    assert alone.censored
    assert "only the longest" in alone.reason
    assert (with_neighbour.censored, with_neighbour.tokens) == (False, 11264)


def test_a_runtime_that_fails_is_a_boundary_without_a_second_look() -> None:
    boundary, asked = search(lambda length: 38 if length <= 4096 else "cannot allocate")

    assert (boundary.cause, boundary.reason) == ("runtime", "cannot allocate")
    assert 4096 < boundary.tokens <= 4608
    assert 16384 not in asked


def test_a_runtime_that_fails_at_once_gives_zero() -> None:
    boundary, _ = search(lambda length: "no memory")

    assert (boundary.tokens, boundary.cause) == (0, "runtime")


@pytest.mark.parametrize("right", [0, 3])
def test_a_model_that_cannot_do_it_at_the_shortest_length_gives_zero_with_the_reason(right: int) -> None:
    boundary, asked = search(lambda length: right)

    assert (boundary.tokens, boundary.cause, asked) == (0, "score", [1024])
    assert f"{right} of 40" in boundary.reason


def test_too_few_questions_decide_nothing() -> None:
    boundary, _ = search(lambda length: 10, total=10)

    assert (boundary.tokens, boundary.cause) == (None, "undecided")


@settings(deadline=None)
@given(st.integers(1024, 16384), st.integers(20, 40), st.integers(0, 4))
def test_the_boundary_of_a_clean_fall_is_never_below_it_and_within_an_eighth_above(
    edge: Any, before: Any, after: Any
) -> None:
    boundary, asked = search(lambda length: before if length <= edge else after)

    if boundary.cause == "score" and boundary.tokens:
        assert boundary.tokens > edge
        low = max(length for length in [*asked] if length <= edge)
        assert boundary.tokens - low <= max(256, (boundary.tokens) // 8 + 128)
    assert len(asked) <= len(LENGTHS) + REFINE_STEPS + 1
    assert len(asked) == len(set(asked))


def test_small_random_changes_are_not_a_boundary() -> None:
    # 20 of 40 against 13 of 40: below, but not shown to be below half
    boundary, _ = search(lambda length: 20 if length == 1024 else 13)

    assert boundary.censored
