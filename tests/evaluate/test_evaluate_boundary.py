"""The failure boundary's rule, on made-up curves."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
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


def simulated(scores: Any, rng: Any, chance: float, lengths: Any = (1024, 1536, 2048, 3072, 4096, 6144, 8192)) -> Any:
    """A run on questions that come out right with `scores(length)`, above chance where that is not 0."""

    def measure(length: int) -> LengthResult:
        count = Count(int(rng.binomial(40, chance + (1 - chance) * scores(length))), 40)
        if chance:
            return LengthResult(length, Count(0, 40), likelihood=count, chance=chance)
        return LengthResult(length, count)

    return find_boundary(measure, lengths)


@pytest.mark.parametrize("chance", [0.0, 0.2], ids=["written", "by likelihood"])
@pytest.mark.parametrize("score", [0.15, 0.5, 0.9])
def test_a_thousand_runs_without_degradation_give_hardly_a_false_alarm(score: float, chance: float) -> None:
    rng = np.random.default_rng(13)

    found = [simulated(lambda _length: score, rng, chance) for _ in range(1000)]

    # A score from which no fall could be shown is 0 with that as the reason, and no alarm.
    assert sum(bool(boundary.tokens) and not boundary.censored for boundary in found) <= 50


@pytest.mark.parametrize(
    ("after", "least"), [pytest.param(0.0, 0.95, id="gone"), pytest.param(0.1, 0.9, id="to a ninth")]
)
def test_a_fall_of_a_good_score_is_found_within_a_step_of_the_bisection(after: float, least: float) -> None:
    rng = np.random.default_rng(13)

    found = [simulated(lambda length: 0.9 if length < 2600 else after, rng, 0.0) for _ in range(300)]

    near = [not boundary.censored and 2560 <= (boundary.tokens or 0) <= 3072 for boundary in found]
    assert sum(near) >= least * len(near)


def test_likelihoods_decide_where_written_answers_are_at_the_floor() -> None:
    def measure(length: int) -> LengthResult:
        likely = Count(36 if length < 3000 else 5, 40)
        return LengthResult(length, Count(1, 40), likelihood=likely, chance=0.14)

    boundary = find_boundary(measure, LENGTHS)

    assert (boundary.scored_by, boundary.chance, boundary.tokens) == ("likelihood", 0.14, 3072)
    assert "guessing scores 0.140" in boundary.reason


def test_written_answers_decide_where_they_can_whatever_likelihoods_say() -> None:
    def measure(length: int) -> LengthResult:
        return LengthResult(length, Count(36 if length < 3000 else 0, 40), likelihood=Count(40, 40), chance=0.14)

    boundary = find_boundary(measure, LENGTHS)

    assert (boundary.scored_by, boundary.chance, boundary.tokens) == ("generated", 0.0, 3072)


def test_a_failure_of_the_runtime_is_told_with_its_kind() -> None:
    def measure(length: int) -> LengthResult:
        if length < 3000:
            return LengthResult(length, Count(36, 40))
        return LengthResult(length, Count(0, 0), "logits are NaN", failure_kind="not-finite")

    boundary = find_boundary(measure, LENGTHS)

    assert (boundary.cause, boundary.failure_kind, boundary.tokens) == ("runtime", "not-finite", 3072)
