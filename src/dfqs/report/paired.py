"""Statistics of two models on the same questions. Pure arithmetic on counts.

McNemar, Q. (1947), Psychometrika 12: only questions that one of the two alone got right tell them apart; exact, by the
binomial distribution. Newcombe, R. G. (1998), Stat. Med. 17: the interval of a difference of paired proportions (method
10) out of Wilson's intervals and their correlation. Connor, R. J. (1987), Biometrics 43: the size of difference that so
many pairs show. Holm, S. (1979), Scand. J. Stat. 6: several tests at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from dfqs.evaluate.statistics import CONFIDENCE, Count, wilson_interval

EXACT_LIMIT = 1000
"""More discordant pairs than this are summed in logarithms, which is as exact as a number is wide."""
POWER = 0.8


@dataclass(frozen=True, slots=True)
class Pairs:
    """Questions that both were asked: who was right."""

    both: int
    first: int
    """The first alone."""
    second: int
    neither: int

    @property
    def total(self) -> int:
        return self.both + self.first + self.second + self.neither

    @property
    def discordant(self) -> int:
        return self.first + self.second


def mcnemar_p(pairs: Pairs) -> float:
    """Two-sided exact p of "both are right equally often"; 1 where nothing tells them apart."""
    return _binomial_p(min(pairs.first, pairs.second), pairs.discordant)


def difference_interval(pairs: Pairs) -> tuple[float, float] | None:
    """95 % interval of the second's share right less the first's; None with fewer than two pairs."""
    first, second = Count(pairs.both + pairs.first, pairs.total), Count(pairs.both + pairs.second, pairs.total)
    return square_and_add(first, second, _correlation(pairs))


def square_and_add(first: Count, second: Count, correlation: float = 0.0) -> tuple[float, float] | None:
    """The interval of the second's share less the first's; without correlation, of separate questions."""
    limits, limits2 = wilson_interval(first), wilson_interval(second)
    if limits is None or limits2 is None:
        return None
    p, p2 = first.right / first.total, second.right / second.total
    return (
        max(-1.0, p2 - p - _side(p2 - limits2[0], limits[1] - p, correlation)),
        min(1.0, p2 - p + _side(limits2[1] - p2, p - limits[0], correlation)),
    )


def smallest_significant(pairs: Pairs, level: float = 1 - CONFIDENCE) -> float | None:
    """The smallest difference of shares that McNemar's test would have told from none, with as many discordant pairs as
    there were (or with the fewest that can tell anything, all of them on one side). None: so few pairs show nothing."""
    if not pairs.total:
        return None
    discordant = pairs.discordant
    while _binomial_p(0, discordant) > level:
        discordant += 1
    if discordant > pairs.total:
        return None
    # The further from the middle, the smaller p.
    low, high = 0, discordant // 2
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _binomial_p(middle, discordant) <= level else (low, middle - 1)
    return (discordant - 2 * low) / pairs.total


def detectable_difference(pairs: Pairs, power: float = POWER, level: float = 1 - CONFIDENCE) -> float | None:
    """The true difference that so many pairs, as discordant as these, show with the given power (Connor's formula).

    The formula is an approximation; of few pairs it would promise less than any outcome of the test can show.

    None: not even 1 would be.
    """
    smallest = smallest_significant(pairs, level)
    if smallest is None:
        return None
    share = pairs.discordant / pairs.total
    z, z_power = NormalDist().inv_cdf(1 - level / 2), NormalDist().inv_cdf(power)

    def needed(difference: float) -> float:
        # No more discordant than the difference needs.
        psi = max(share, difference)
        return float((z * math.sqrt(psi) + z_power * math.sqrt(max(0.0, psi - difference**2))) ** 2 / difference**2)

    if needed(1.0) > pairs.total:
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if needed(middle) <= pairs.total else (middle, high)
    return max(high, smallest)


def holm(values: Sequence[float]) -> list[float]:
    """p values that allow for there being several (Holm), in their order."""
    adjusted, worst = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        worst = max(worst, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = worst
    return adjusted


def separated_p(first: int, second: int) -> float:
    """p of two samples without ties whose ranges do not touch (Mann-Whitney, U = 0, two-sided)."""
    return min(1.0, 2 / math.comb(first + second, first)) if first and second else 1.0


def _binomial_p(smaller: int, total: int) -> float:
    """Two-sided p of at most `smaller` of `total` on one side, when both sides are equally likely."""
    if total == 0:
        return 1.0
    if total <= EXACT_LIMIT:
        return min(1.0, 2 * sum(math.comb(total, k) for k in range(smaller + 1)) / (1 << total))
    whole = math.lgamma(total + 1) - total * math.log(2)
    terms = (math.exp(whole - math.lgamma(k + 1) - math.lgamma(total - k + 1)) for k in range(smaller + 1))
    return min(1.0, 2 * math.fsum(terms))


def _correlation(pairs: Pairs) -> float:
    """Newcombe's phi, with his correction towards 0."""
    e, f, g, h = pairs.both, pairs.first, pairs.second, pairs.neither
    margins = (e + f) * (g + h) * (e + g) * (f + h)
    if not margins:
        return 0.0
    product = e * h - f * g
    if product > 0:
        return max(product - pairs.total / 2, 0) / math.sqrt(margins)
    return product / math.sqrt(margins)


def _side(own: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, own**2 - 2 * correlation * own * other + other**2))
