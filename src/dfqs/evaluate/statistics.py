"""Intervals and the rule of the failure boundary. Pure arithmetic on counts.

Wilson, E. B. (1927), J. Am. Stat. Assoc. 22: the interval of one proportion. Zou, G. Y. and Donner, A. (2008),
Stat. Med. 27: the interval of a difference out of the intervals of its terms.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95
MINIMUM_QUESTIONS = 40
"""Fewer questions a length show nothing but a collapse; the boundary is not decided on them."""


@dataclass(frozen=True, slots=True)
class Count:
    """`right` of `total`."""

    right: int
    total: int

    @property
    def score(self) -> float | None:
        """None when nothing was asked."""
        return self.right / self.total if self.total else None


def wilson_interval(count: Count, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Two-sided interval of a proportion, within [0, 1]; None with fewer than two observations."""
    if count.total < 2:
        return None
    return _wilson(count, NormalDist().inv_cdf((1 + confidence) / 2))


def below_half(shortest: Count, longer: Count, confidence: float = CONFIDENCE, chance: float = 0.0) -> bool:
    """Whether `longer`'s proportion is below half of `shortest`'s, with one-sided `confidence`.

    The upper limit of p_longer - p_shortest / 2 must be below zero; its square-and-add interval (Zou and Donner) is
    made of one-sided Wilson limits, which stay sensible at 0 and at 1.

    Args:
        chance: score of guessing; halved is what lies above it.
    """
    if longer.total < 2 or shortest.total < 2:
        return False
    z = NormalDist().inv_cdf(confidence)
    p, p0 = longer.right / longer.total, shortest.right / shortest.total
    upper, lower0 = _wilson(longer, z)[1], _wilson(shortest, z)[0]
    return p - (p0 + chance) / 2 + math.hypot(upper - p, (p0 - lower0) / 2) < 0


def corrected_confidence(looks: int, confidence: float = CONFIDENCE) -> float:
    """The confidence of each of `looks` looks that keeps the whole at `confidence` (Bonferroni)."""
    return 1 - (1 - confidence) / max(looks, 1)


def can_show_a_fall(shortest: Count, longer_total: int, confidence: float, chance: float = 0.0) -> bool:
    """Whether a fall to what guessing scores could be shown to be below half of `shortest`."""
    return below_half(shortest, Count(round(chance * longer_total), longer_total), confidence, chance)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Percentile with linear interpolation between ranks; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _wilson(count: Count, z: float) -> tuple[float, float]:
    n, p = count.total, count.right / count.total
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and 1 the limit is exact; rounding must not leave a 1e-17.
    return (0.0 if count.right == 0 else max(0.0, centre - half)), (
        1.0 if count.right == n else min(1.0, centre + half)
    )
