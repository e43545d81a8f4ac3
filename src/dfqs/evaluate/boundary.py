"""Where a context becomes too long: grows through given lengths, decides, and refines by bisection. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dfqs.evaluate.statistics import MINIMUM_QUESTIONS, Count, below_half, can_show_a_fall, corrected_confidence

REFINE_STEPS = 3
"""Halvings of the gap between the last good and the first failing length; a doubling is narrowed to an eighth."""
MINIMUM_GAP_TOKENS = 128


@dataclass(frozen=True, slots=True)
class LengthResult:
    """What came of one length: a count, or why the runtime could not work there."""

    length_tokens: int
    count: Count
    failure: str | None = None
    answered: bool = True
    """False: no question got an answer, and nothing shows that it is for the length: that decides nothing."""
    unanswered: int = 0
    """Of the count's total: got no answer, and count as wrong. An outage must not pass for a fall."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """The failure boundary, and how it was found."""

    tokens: int | None
    """None: it could not be decided; `reason` says why."""
    censored: bool
    """Nothing failed: `tokens` is the longest length tested, the true boundary is longer."""
    cause: str
    """`score`, `runtime`, `none`, or `undecided`."""
    reason: str
    lengths: tuple[LengthResult, ...]
    """Everything measured, shortest first."""
    confidence: float
    """Of each look, corrected for their number."""


def find_boundary(measure: Callable[[int], LengthResult], lengths: Sequence[int]) -> Boundary:
    """The shortest context that fails.

    A length fails when its score is below half of the shortest length's (`below_half`) and the next longer length
    measured fails too, or when the runtime fails at it. Growth stops at the first failure that is confirmed.

    Args:
        measure: called with a length in tokens; at least `MINIMUM_QUESTIONS` questions make a decision.
        lengths: shortest first, at least one.
    """
    search = _Search(measure, corrected_confidence(len(lengths) - 1 + REFINE_STEPS))
    try:
        return _find_boundary(search, lengths)
    except _UndecidedError as error:
        return search.undecided(str(error))


def _find_boundary(search: "_Search", lengths: Sequence[int]) -> Boundary:
    """
    Raises:
        _UndecidedError: too few answers came to tell.
    """
    shortest = search.at(lengths[0])
    if shortest.failure is not None:
        return search.found(0, "runtime", f"the runtime fails at the shortest length already: {shortest.failure}")
    if shortest.count.total < MINIMUM_QUESTIONS:
        reason = f"questions a length: {shortest.count.total}; at least {MINIMUM_QUESTIONS} are needed to decide"
        return search.undecided(reason)
    if shortest.unanswered and not can_show_a_fall(shortest.count, MINIMUM_QUESTIONS, search.confidence):
        raise _UndecidedError(_too_few(shortest))
    if not can_show_a_fall(shortest.count, MINIMUM_QUESTIONS, search.confidence):
        reason = (
            f"{shortest.count.right} of {shortest.count.total} right at the shortest length: the model cannot do the "
            "task there, and from such a score no fall to half could be shown"
        )
        return search.found(0, "score", reason)
    low = lengths[0]
    for index, length in enumerate(lengths[1:], 1):
        result = search.at(length)
        if result.failure is not None:
            return search.refine(low, length)
        if search.fails(length):
            following = lengths[index + 1] if index + 1 < len(lengths) else None
            if following is None:
                return search.confirm_last(low, length)
            if search.fails(following):
                return search.refine(low, length)
        else:
            low = length
    return search.censored(lengths[-1], "nothing failed up to the longest length tested")


class _UndecidedError(Exception):
    """Questions without an answer leave it open whether a length fails."""


class _Search:
    def __init__(self, measure: Callable[[int], LengthResult], confidence: float) -> None:
        self._measure = measure
        self.confidence = confidence
        self.results: dict[int, LengthResult] = {}

    def at(self, length: int) -> LengthResult:
        if length not in self.results:
            self.results[length] = self._measure(length)
        result = self.results[length]
        if result.failure is not None and not result.answered:
            shortest = "the shortest length" if length == min(self.results) else f"{length:,} tokens"
            raise _UndecidedError(f"{result.failure} (at {shortest})")
        return result

    def fails(self, length: int) -> bool:
        result = self.at(length)
        shortest = self.results[min(self.results)]
        if result.failure is not None:
            return True
        fails = below_half(shortest.count, result.count, self.confidence)
        at_best = Count(result.count.right + result.unanswered, result.count.total)
        if fails and not below_half(shortest.count, at_best, self.confidence):
            raise _UndecidedError(_too_few(result))
        return fails

    def refine(self, low: int, high: int) -> Boundary:
        """Halve the gap between a length that works and one that fails."""
        for _ in range(REFINE_STEPS):
            middle = _middle(low, high)
            if middle is None:
                break
            if self.fails(middle):
                high = middle
            else:
                low = middle
        failure = self.at(high).failure
        if failure is not None:
            return self.found(high, "runtime", failure)
        count, first = self.at(high).count, self.results[min(self.results)].count
        reason = f"{count.right} of {count.total} right, below half of {first.right} of {first.total}"
        return self.found(high, "score", reason)

    def confirm_last(self, low: int, last: int) -> Boundary:
        """Only the longest length fails: a failing neighbour below it makes two adjacent ones."""
        middle = _middle(low, last)
        if middle is not None and self.fails(middle):
            return self.refine(low, middle)
        return self.censored(last, "only the longest length tested fails, and one length alone does not decide")

    def found(self, tokens: int, cause: str, reason: str) -> Boundary:
        return Boundary(tokens, False, cause, reason, self._sorted(), self.confidence)

    def censored(self, tokens: int, reason: str) -> Boundary:
        return Boundary(tokens, True, "none", reason, self._sorted(), self.confidence)

    def undecided(self, reason: str) -> Boundary:
        return Boundary(None, False, "undecided", reason, self._sorted(), self.confidence)

    def _sorted(self) -> tuple[LengthResult, ...]:
        return tuple(self.results[length] for length in sorted(self.results))


def _too_few(result: LengthResult) -> str:
    return (
        f"{result.unanswered} of {result.count.total} questions at {result.length_tokens:,} tokens got no usable "
        "answer, too many to decide; run the same command again"
    )


def _middle(low: int, high: int) -> int | None:
    if high - low < 2 * MINIMUM_GAP_TOKENS:
        return None
    return (low + high) // 2 // MINIMUM_GAP_TOKENS * MINIMUM_GAP_TOKENS
