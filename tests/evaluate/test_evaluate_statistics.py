"""Intervals and the rule of the failure boundary, against published and exact numbers."""

# A value that is None here fails the test by itself.
# mypy: disable-error-code="union-attr, operator, index, misc"

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfqs.evaluate.statistics import (
    Count,
    below_half,
    can_show_a_fall,
    corrected_confidence,
    percentile,
    wilson_interval,
)


@pytest.mark.thorough
@given(st.integers(2, 400), st.data())
def test_wilson_agrees_with_scipy(total: int, data: Any) -> None:
    # It takes seconds to load, and nobody else here needs it.
    from scipy.stats import binomtest

    right = data.draw(st.integers(0, total))

    expected = binomtest(right, total).proportion_ci(method="wilson")

    assert wilson_interval(Count(right, total)) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_fewer_than_two_observations_have_no_interval_and_none_no_score() -> None:
    assert wilson_interval(Count(1, 1)) is None
    assert Count(0, 0).score is None


def test_an_interval_never_has_zero_width_and_never_leaves_0_to_1() -> None:
    for total in (2, 10, 64):
        for right in (0, total):
            low, high = wilson_interval(Count(right, total))
            assert 0 <= low < high <= 1


@pytest.mark.parametrize(
    ("shortest", "longer", "expected"),
    [
        ((40, 40), (0, 40), True),
        ((40, 40), (12, 40), True),  # 0.30 against 0.50: upper limit -0.07
        ((40, 40), (16, 40), False),  # 0.40: within chance of a half
        ((40, 40), (40, 40), False),
        ((20, 40), (0, 40), True),
        ((20, 40), (10, 40), False),
        ((4, 40), (0, 40), False),  # from 0.10 no fall can be shown with 40
        ((0, 40), (0, 40), False),
    ],
)
def test_below_half_needs_evidence(shortest: Any, longer: Any, expected: bool) -> None:
    assert below_half(Count(*shortest), Count(*longer)) is expected


def test_below_half_by_hand() -> None:
    # one-sided 95 %, z = 1.6449: Wilson upper of 12/40 = 0.4316, lower of 40/40 = 0.9366;
    # 0.30 - 0.50 + sqrt(0.1316^2 + 0.0317^2) = -0.0646
    assert below_half(Count(40, 40), Count(12, 40), 0.95)
    # at z = 2.5758 (ten looks, 99.5 %): upper 0.5047, lower 0.8577; -0.20 + sqrt(0.2047^2 + 0.0712^2) = +0.0167
    assert not below_half(Count(40, 40), Count(12, 40), corrected_confidence(10))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 30))
def test_more_looks_never_make_a_failure_easier_to_show(first: Any, second: Any, looks: Any) -> None:
    shown_after_many = below_half(Count(first, 40), Count(second, 40), corrected_confidence(looks))

    assert not shown_after_many or below_half(Count(first, 40), Count(second, 40))


def test_a_score_from_which_no_fall_could_be_shown_is_recognised() -> None:
    assert can_show_a_fall(Count(40, 40), 40, 0.95)
    assert not can_show_a_fall(Count(3, 40), 40, 0.95)


def test_correction_keeps_the_whole_at_95_percent() -> None:
    assert corrected_confidence(1) == pytest.approx(0.95)
    assert corrected_confidence(5) == pytest.approx(0.99)


def test_percentiles_interpolate_between_ranks() -> None:
    assert percentile([1, 2, 3, 4], 50) == 2.5
    assert percentile([5.0], 99) == 5.0
    assert percentile([], 50) is None
