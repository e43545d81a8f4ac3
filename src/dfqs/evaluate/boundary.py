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
    failure_kind: str | None = None
    """A `LengthFault`."""
    likelihood: Count | None = None
    """The same questions, right where the answer is likelier than every near miss."""
    chance: float = 0.0
    """Score of guessing in that."""


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
    scored_by: str = "generated"
    """What was counted: answers that were written, or `likelihood`."""
    chance: float = 0.0
    """Score of guessing at the shortest length; 0 for written answers."""
    failure_kind: str | None = None
    """Of the runtime, at the boundary."""


def find_boundary(measure: Callable[[int], LengthResult], lengths: Sequence[int]) -> Boundary:
    """The shortest context that fails.

    A length fails when its score is below half of the shortest length's (`below_half`) and the next longer length
    measured fails too, or when the runtime fails at it. Growth stops at the first failure that is confirmed.

    Written answers decide. Where their score at the shortest length is so low that no fall could be shown, or none were
    written, likelihoods do, if there are any: of a model that answers no question it can still be told from where on it
    finds the answer no likelier than its near misses.

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
        return search.found(
            0, "runtime", f"the runtime fails at the shortest length already: {shortest.failure}", shortest.failure_kind
        )
    search.choose_score(shortest)
    count = search.count(shortest)
    if count.total < MINIMUM_QUESTIONS:
        reason = f"questions a length: {count.total}; at least {MINIMUM_QUESTIONS} are needed to decide"
        return search.undecided(reason)
    if not can_show_a_fall(count, MINIMUM_QUESTIONS, search.confidence, search.chance):
        if shortest.unanswered:
            raise _UndecidedError(_too_few(shortest))
        reason = (
            f"{count.right} of {count.total} right at the shortest length: the model cannot do the "
            f"task there, and from such a score no fall to half could be shown{search.guessing}"
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
        self.scored_by = "generated"
        self.chance = 0.0

    def choose_score(self, shortest: LengthResult) -> None:
        """What is counted from here on: likelihoods where written answers could show nothing."""
        if shortest.likelihood is None or can_show_a_fall(shortest.count, MINIMUM_QUESTIONS, self.confidence):
            return
        self.scored_by, self.chance = "likelihood", shortest.chance

    def count(self, result: LengthResult) -> Count:
        """What decides of a length."""
        if self.scored_by == "likelihood" and result.likelihood is not None:
            return result.likelihood
        return result.count

    @property
    def guessing(self) -> str:
        """For a reason's end."""
        return f" (by likelihood; guessing scores {self.chance:.3f})" if self.scored_by == "likelihood" else ""

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
        first, count = self.count(shortest), self.count(result)
        fails = below_half(first, count, self.confidence, self.chance)
        at_best = Count(min(count.right + result.unanswered, count.total), count.total)
        if fails and not below_half(first, at_best, self.confidence, self.chance):
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
        result = self.at(high)
        if result.failure is not None:
            return self.found(high, "runtime", result.failure, result.failure_kind)
        count, first = self.count(result), self.count(self.results[min(self.results)])
        reason = f"{count.right} of {count.total} right, below half of {first.right} of {first.total}{self.guessing}"
        return self.found(high, "score", reason)

    def confirm_last(self, low: int, last: int) -> Boundary:
        """Only the longest length fails: a failing neighbour below it makes two adjacent ones."""
        middle = _middle(low, last)
        if middle is not None and self.fails(middle):
            return self.refine(low, middle)
        return self.censored(last, "only the longest length tested fails, and one length alone does not decide")

    def found(self, tokens: int, cause: str, reason: str, failure_kind: str | None = None) -> Boundary:
        return self._boundary(tokens, False, cause, reason, failure_kind)

    def censored(self, tokens: int, reason: str) -> Boundary:
        return self._boundary(tokens, True, "none", reason + self.guessing)

    def undecided(self, reason: str) -> Boundary:
        return self._boundary(None, False, "undecided", reason)

    def _boundary(
        self, tokens: int | None, censored: bool, cause: str, reason: str, failure_kind: str | None = None
    ) -> Boundary:
        lengths = tuple(self.results[length] for length in sorted(self.results))
        return Boundary(
            tokens, censored, cause, reason, lengths, self.confidence, self.scored_by, self.chance, failure_kind
        )


def _too_few(result: LengthResult) -> str:
    return (
        f"{result.unanswered} of {result.count.total} questions at {result.length_tokens:,} tokens got no usable "
        "answer, too many to decide; run the same command again"
    )


def _middle(low: int, high: int) -> int | None:
    if high - low < 2 * MINIMUM_GAP_TOKENS:
        return None
    return (low + high) // 2 // MINIMUM_GAP_TOKENS * MINIMUM_GAP_TOKENS
