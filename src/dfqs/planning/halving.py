"""Choosing the fastest of several settings on a machine that is never quite the same: successive halving, in pairs.

Every round measures the settings that hold now and all that still challenge them, one after the other, so that what
makes a machine slower for a while makes all of a round slower; only ratios within a round are compared. After each
round the worse half of the challengers goes, until two are left, which are measured again (sequential halving: Karnin,
Koren and Somekh, 2013). Pure: whoever measures is passed in.
"""

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

ROUNDS, MOST_ROUNDS = 3, 6
"""That decide between the last two; more where the faster one is not surely so yet."""
WORTH = 0.99
"""A request must take less than this share of the time for a setting to be changed."""
PROMISING = 0.97
"""Or less than this, where too few pairs could be measured to be sure."""
NO_HARM = 1.03
"""And neither its prompt nor its answer more than this."""
_SEEN_ERRORS = 1.5
HOPELESS = 1.15
"""Slower than that in one round is not measured again."""

# Student's t, 97.5 %, by degrees of freedom; for more, that of the last is a little wide.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)


@dataclass(frozen=True, slots=True)
class Timing:
    """One request, in seconds."""

    prompt_s: float
    answer_s: float
    load_s: float = 0.0
    """Its share of loading the model."""

    @property
    def total_s(self) -> float:
        return self.prompt_s + self.answer_s + self.load_s


@dataclass(frozen=True, slots=True)
class Ratio:
    """A time as a multiple of another's, over pairs that were measured side by side: geometric mean, 95 % interval."""

    mean: float
    low: float | None
    """None with fewer than two pairs."""
    high: float | None
    pairs: int
    is_seen: bool = False
    """Below 1 by more than one and a half standard errors: not just what pairs differ by."""

    @property
    def inverse(self) -> "Ratio":
        """The same of rates."""
        low, high = (None if end is None else 1 / end for end in (self.high, self.low))
        return Ratio(1 / self.mean, low, high, self.pairs)


@dataclass(frozen=True, slots=True)
class Challenge(Generic[Key]):
    """How one challenger did, against what held then."""

    settings: Key
    total: Ratio
    prompt: Ratio
    answer: Ratio

    @property
    def is_better(self) -> bool:
        """Surely enough to be kept."""
        return self.total.is_seen and self.total.mean < WORTH and max(self.prompt.mean, self.answer.mean) < NO_HARM

    @property
    def is_promising(self) -> bool:
        """Enough to be taken along: what is taken is measured against the defaults in the end."""
        clear = self.total.is_seen or self.total.mean < PROMISING
        return clear and self.total.mean < WORTH and max(self.prompt.mean, self.answer.mean) < NO_HARM


Round = Callable[[Sequence[Key]], Mapping[Key, Timing] | None]
"""Measures all of them side by side; None where there is no time for it. A challenger that failed is left out."""


def challenge(incumbent: Key, challengers: Sequence[Key], measure: Round[Key]) -> list[Challenge[Key]]:
    """Measure challengers against what holds, in rounds of which each leaves the better half.

    Returns:
        Those that were measured at all; the most often measured first, and of these the fastest.
    """
    rounds: dict[Key, list[tuple[Timing, Timing]]] = {key: [] for key in challengers}
    alive = [key for key in challengers if key != incumbent]
    number = 0
    while alive and (len(alive) > 2 or number < ROUNDS or (number < MOST_ROUNDS and is_open(alive, rounds))):
        # Whoever is measured first in a round has another machine than who is measured last.
        turned = alive[number % len(alive) :] + alive[: number % len(alive)]
        found = measure([incumbent, *turned] if number % 2 == 0 else [*turned, incumbent])
        if found is None or incumbent not in found:
            break
        for key in alive:
            if key in found:
                rounds[key].append((found[key], found[incumbent]))
        number += 1
        alive = _better_half([key for key in alive if key in found], rounds)
    results = [compare(key, pairs) for key, pairs in rounds.items() if pairs]
    return sorted(results, key=lambda result: (-result.total.pairs, result.total.mean))


def is_open(alive: Sequence[Key], rounds: Mapping[Key, list[tuple[Timing, Timing]]]) -> bool:
    """Whether the fastest looks worth a change and is not seen to be."""
    best = min((compare(key, rounds[key]) for key in alive), key=lambda result: result.total.mean)
    return best.total.mean < WORTH and not best.total.is_seen


def choose(incumbent: Key, results: Sequence[Challenge[Key]]) -> Key:
    """The challenger to change to: of those that were measured to the end the fastest that does no harm."""
    most = max((result.total.pairs for result in results), default=0)
    better = [result for result in results if result.total.pairs == most and result.is_promising]
    return min(better, key=lambda result: result.total.mean).settings if better else incumbent


def compare(settings: Key, pairs: Sequence[tuple[Timing, Timing]]) -> Challenge[Key]:
    """A challenger's times against those that were measured beside them."""
    return Challenge(
        settings,
        mean_ratio([a.total_s / b.total_s for a, b in pairs]),
        mean_ratio([a.prompt_s / b.prompt_s if b.prompt_s > 0 else 1.0 for a, b in pairs]),
        mean_ratio([a.answer_s / b.answer_s if b.answer_s > 0 else 1.0 for a, b in pairs]),
    )


def mean_ratio(ratios: Sequence[float]) -> Ratio:
    """Geometric mean of ratios, with Student's interval of their logarithms.

    With four or more the most and the least are left out of the mean: one round in which the machine did something else
    does not decide.
    """
    logs = sorted(math.log(ratio) for ratio in ratios)
    mean = statistics.fmean(logs[1:-1] if len(logs) >= 4 else logs)
    if len(logs) < 2:
        return Ratio(math.exp(mean), None, None, len(logs))
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    half = _T[min(len(logs) - 1, len(_T)) - 1] * error
    is_seen = mean + _SEEN_ERRORS * error < 0
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs), is_seen)


def _better_half(alive: list[Key], rounds: Mapping[Key, list[tuple[Timing, Timing]]]) -> list[Key]:
    def cost(key: Key) -> float:
        return mean_ratio([a.total_s / b.total_s for a, b in rounds[key]]).mean

    ranked = sorted(alive, key=cost)
    kept = ranked if len(ranked) <= 2 else ranked[: max(2, math.ceil(len(ranked) / 2))]
    return [key for key in kept if cost(key) < HOPELESS]
