"""Which tensors of a file an audit takes, and what that can show. Pure.

Of a file with N tensors n are drawn without replacement. Where D of them differ, none of those is drawn with
probability C(N-D, n) / C(N, n) (hypergeometric); the audit takes the smallest n that leaves this below 1 - confidence.
Of a tensor that is larger than the limit, runs of rows are taken: what made a tensor otherwise changed it throughout,
and a few rows show it.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from dfqs.errors import UsageError

RUNS = 16
"""Places in a tensor that is not read whole."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What is taken, and what taking it can show."""

    names: tuple[str, ...]
    """In the order of the file."""
    population: int
    confidence: float
    share: float
    seed: int

    @property
    def differing(self) -> int:
        """How many tensors the share is."""
        return differing_tensors(self.population, self.share)

    @property
    def detection(self) -> float:
        """Probability that at least one of so many differing tensors is in the sample."""
        return detection_probability(self.population, self.differing, len(self.names))

    @property
    def detection_of_one(self) -> float:
        """The same of a single one."""
        return detection_probability(self.population, 1, len(self.names))


def draw_sample(names: Sequence[str], *, confidence: float, share: float, seed: int) -> Sample:
    """Draw tensors so that, where a share of them differs, at least one such is among them with that confidence.

    Raises:
        UsageError: a number out of its range, or nothing to draw from.
    """
    if not 0 < confidence <= 1:
        raise UsageError("--confidence is a probability: above 0, at most 1 (1 takes every tensor that it needs)")
    if not 0 < share <= 1:
        raise UsageError("--share is a share of the tensors: above 0, at most 1")
    if not names:
        raise UsageError("the file has no tensors; nothing can be compared")
    count = sample_size(len(names), share, confidence)
    # By name, so that another order of the same tensors is the same draw.
    drawn = set(random.Random(seed).sample(sorted(names), count))
    return Sample(tuple(name for name in names if name in drawn), len(names), confidence, share, seed)


def differing_tensors(population: int, share: float) -> int:
    """A share of the tensors as a whole number, at least one; a product a rounding error above a whole number is it."""
    return max(1, math.ceil(population * share - 1e-9))


def sample_size(population: int, share: float, confidence: float) -> int:
    """The fewest tensors that show a differing share with that confidence."""
    differing = differing_tensors(population, share)
    low, high = 1, population - differing + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if detection_probability(population, differing, middle) >= confidence else (middle + 1, high)
        )
    return low


def detection_probability(population: int, differing: int, sample: int) -> float:
    """1 - C(N-D, n) / C(N, n): at least one of D differing tensors is among n of N."""
    return 1 - math.comb(population - differing, sample) / math.comb(population, sample)


def draw_rows(
    name: str, rows: int, row_bytes: int, *, limit_bytes: int | None, seed: int
) -> tuple[tuple[int, int], ...]:
    """Which rows of a tensor are taken: all, or runs at random places that have `limit_bytes` in all.

    Args:
        row_bytes: of the source.

    Returns:
        (first, last) of each run, last not included, in order and apart.
    """
    if limit_bytes is None or rows * row_bytes <= limit_bytes:
        return ((0, rows),)
    length = max(1, limit_bytes // (RUNS * row_bytes))
    places = rows // length
    chosen = random.Random(f"{seed}:{name}").sample(range(places), min(RUNS, places))
    return tuple((place * length, (place + 1) * length) for place in sorted(chosen))
