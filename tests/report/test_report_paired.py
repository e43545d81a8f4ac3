"""Statistics of pairs against numbers worked out by hand, and against scipy, which takes seconds to load."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfqs.evaluate.statistics import Count
from dfqs.report.paired import (
    Pairs,
    detectable_difference,
    difference_interval,
    holm,
    mcnemar_p,
    separated_p,
    smallest_significant,
    square_and_add,
)

PAIRS = st.builds(Pairs, *[st.integers(0, 60)] * 4)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, Fraction(1)),
        (0, 5, Fraction(2, 32)),
        (0, 6, Fraction(2, 64)),
        (1, 7, Fraction(2 * (1 + 8), 256)),
        (3, 3, Fraction(1)),
    ],
)
def test_mcnemar_by_hand(first: int, second: int, p: Fraction) -> None:
    assert mcnemar_p(Pairs(10, first, second, 10)) == pytest.approx(float(p), rel=1e-12)


@given(PAIRS)
def test_mcnemar_is_the_binomial_test_of_what_only_one_got_right(pairs: Pairs) -> None:
    from scipy.stats import binomtest

    expected = binomtest(pairs.first, pairs.discordant, 0.5).pvalue if pairs.discordant else 1.0
    assert mcnemar_p(pairs) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_of_many_pairs_is_as_scipy_has_it() -> None:
    from scipy.stats import binomtest

    assert mcnemar_p(Pairs(0, 2000, 2200, 0)) == pytest.approx(binomtest(2000, 4200).pvalue, rel=1e-9)
    assert mcnemar_p(Pairs(0, 0, 90_000, 0)) == 0.0


def test_the_interval_of_a_difference_by_hand() -> None:
    # Wilson, z = 1.96: 8 of 10 lies in 0.4902 to 0.9433, 5 of 10 in 0.2366 to 0.7634.
    interval = square_and_add(Count(8, 10), Count(5, 10))
    assert interval is not None
    low = -0.3 - math.hypot(0.5 - 0.2366, 0.9433 - 0.8)
    high = -0.3 + math.hypot(0.7634 - 0.5, 0.8 - 0.4902)
    assert interval == pytest.approx((low, high), abs=2e-4)

    # All alike: phi = (5 * 5 - 10/2) / sqrt(5^4) = 0.8, and both limits are 0.2634 away.
    same = difference_interval(Pairs(5, 0, 0, 5))
    half = math.sqrt(2 * 0.26340**2 * (1 - 0.8))
    assert same == pytest.approx((-half, half), abs=2e-4)


@given(PAIRS)
def test_an_interval_holds_its_difference_and_turns_with_the_sides(pairs: Pairs) -> None:
    interval = difference_interval(pairs)
    if pairs.total < 2:
        assert interval is None
        return
    assert interval is not None
    difference = (pairs.second - pairs.first) / pairs.total
    assert -1 <= interval[0] <= difference + 1e-12 and difference - 1e-12 <= interval[1] <= 1
    turned = difference_interval(Pairs(pairs.both, pairs.second, pairs.first, pairs.neither))
    assert turned == pytest.approx((-interval[1], -interval[0]), abs=1e-12)


@given(PAIRS)
def test_the_smallest_significant_difference_is_the_first_that_the_test_shows(pairs: Pairs) -> None:
    smallest = smallest_significant(pairs)
    if smallest is None:
        assert pairs.total < 6
        return
    # Six on one side are the fewest that show anything: 2 / 2^6 = 0.031.
    discordant = max(6, pairs.discordant)
    shown = [
        abs(discordant - 2 * k) / pairs.total
        for k in range(discordant + 1)
        if mcnemar_p(Pairs(0, k, discordant - k, 0)) <= 0.05
    ]
    assert smallest == pytest.approx(min(shown))


def test_a_detectable_difference_by_hand() -> None:
    # Connor: (1.95996 sqrt(0.3) + 0.84162 sqrt(0.3 - 0.01))^2 / 0.01 = 233.05 pairs for 0.1 at 30 % discordant.
    assert detectable_difference(Pairs(100, 35, 35, 63)) == pytest.approx(0.1, abs=2e-4)
    assert detectable_difference(Pairs(1, 0, 0, 1)) is None
    # Of six pairs only all six on one side tell anything: nothing smaller can be promised.
    assert smallest_significant(Pairs(6, 0, 0, 0)) == detectable_difference(Pairs(6, 0, 0, 0)) == 1.0
    assert detectable_difference(Pairs(0, 0, 0, 0)) is None


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("first", "second"), [(3, 3), (5, 5), (4, 5), (1, 1)])
def test_samples_that_do_not_touch_have_the_p_of_the_rank_test(first: int, second: int) -> None:
    a, b = range(first), range(100, 100 + second)
    from scipy.stats import mannwhitneyu

    expected = mannwhitneyu(list(a), list(b), method="exact").pvalue
    assert separated_p(first, second) == pytest.approx(expected)
