"""One scored answer, the same for every set."""

import operator
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from pydantic import Field

from dfqs.errors import SandboxUnavailable, printable
from dfqs.records import Record, Share, Whole, is_null

ANSWER_LIMIT_CHARACTERS = 1 << 17
"""A longer answer keeps to no token cap: it is cut, and counts as cut off."""


CHOSEN = "chosen"


NOTHING_SAID = (
    "no answer was given: every one stood in thoughts only. Give thoughts tokens of their own with --thinking-budget"
)


class Verdict(StrEnum):
    """What became of one item. Only RIGHT counts; the others are kept apart because their causes differ."""

    RIGHT = "right"
    WRONG = "wrong"
    TRUNCATED = "truncated"
    """Cut off at the token cap, or by the context's end."""
    EMPTY = "empty"
    """The model ended at once."""
    NO_ANSWER = "no-answer"
    """The model thought, and said nothing outside of its thoughts, whether it ended by itself or was cut off."""
    UNJUDGED = "unjudged"
    """Nothing here can judge it (code that the sandbox's Python cannot read); it is left out of the score."""
    UNUSABLE = "unusable"
    """The endpoint gave something that is no answer (HTML, an error); `detail` says what."""


class Completion(Record):
    """What a model wrote for one prompt, before anybody judged it."""

    text: str
    finish_reason: str
    """`stop`: the model ended by itself. `length`, `context`: cut off. `error`: no answer came; `text` says why.
    `chosen`: nothing was written, and `text` is the likeliest of the answers given."""
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    stem_tokens: Whole | None = Field(default=None, exclude_if=is_null)
    """Of the prompt's: the words behind a document with which questions of its kind begin, computed once for those that
    are asked in a row. None: it was computed by itself."""
    reasoning: str = Field(default="", exclude_if=operator.not_)
    """What it thought; kept, and never judged."""

    def refusal(self) -> Verdict | None:
        """Why this counts as wrong whatever it says; None when its text is to be judged."""
        if self.finish_reason == "error":
            return Verdict.UNUSABLE
        if self.reasoning and not self.text.strip():
            return Verdict.NO_ANSWER
        if self.finish_reason not in ("stop", CHOSEN):
            return Verdict.TRUNCATED
        return None if self.text.strip() else Verdict.EMPTY


class LikelihoodScore(Record):
    """An answer held against near misses by how likely the model finds each."""

    right: bool
    """Likelier than every near miss."""
    chance: Share
    """Of guessing it."""
    logprobs: tuple[float, ...]
    """Natural logarithm of each given answer's probability, the right one's first."""
    greedy: bool
    """Whether greedy decoding begins with the right answer."""
    computed_tokens: Whole
    """That scoring took beside the question's."""


class ScoredItem(Record):
    """One line of a stage's results."""

    stage: str
    item: str
    verdict: Verdict
    answer: str | None = None
    detail: str = ""
    completion: Completion
    place: dict[str, str | int | float] = Field(default_factory=dict)
    """Where it was asked: `length_tokens`, `depth`, `kind`, `document` in the context stage; `family`, `level`
    elsewhere."""
    likelihood: LikelihoodScore | None = None

    @property
    def right(self) -> bool:
        return self.verdict is Verdict.RIGHT


def judged(
    score: Callable[[Completion], ScoredItem], stage: str, item: str, completion: Completion, place: dict[str, Any]
) -> ScoredItem:
    """What `score` makes of an answer. An answer on which it fails is wrong, with the cause, and ends nothing.

    Raises:
        SandboxUnavailable: no judge, and so no verdict.
    """
    if len(completion.reasoning) > ANSWER_LIMIT_CHARACTERS:
        completion = completion.model_copy(update={"reasoning": completion.reasoning[:ANSWER_LIMIT_CHARACTERS]})
    if len(completion.text) > ANSWER_LIMIT_CHARACTERS:
        finish_reason = "error" if completion.finish_reason == "error" else "length"
        cut = {"text": completion.text[:ANSWER_LIMIT_CHARACTERS], "finish_reason": finish_reason}
        completion = completion.model_copy(update=cut)
    try:
        return score(completion)
    except SandboxUnavailable:
        raise
    except Exception as error:
        detail = f"it could not be judged: {type(error).__name__}: {printable(str(error), 200)}"
        return ScoredItem(
            stage=stage, item=item, verdict=Verdict.WRONG, detail=detail, completion=completion, place=place
        )
