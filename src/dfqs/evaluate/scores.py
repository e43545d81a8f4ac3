"""One scored answer, the same for every set."""

from enum import StrEnum
from typing import Any

from pydantic import Field

from dfqs.records import Record


class Verdict(StrEnum):
    """What became of one item. Only RIGHT counts; the others are kept apart because their causes differ."""

    RIGHT = "right"
    WRONG = "wrong"
    TRUNCATED = "truncated"
    """Cut off at the token cap, or by the context's end."""
    EMPTY = "empty"
    """The model ended at once."""
    UNUSABLE = "unusable"
    """The endpoint gave something that is no answer (HTML, an error); `detail` says what."""


class Completion(Record):
    """What a model wrote for one prompt, before anybody judged it."""

    text: str
    finish_reason: str
    """`stop`: the model ended by itself. `length`, `context`: cut off. `error`: no answer came; `text` says why."""
    prompt_tokens: int | None = None
    generated_tokens: int | None = None

    def refusal(self) -> Verdict | None:
        """Why this counts as wrong whatever it says; None when its text is to be judged."""
        if self.finish_reason == "error":
            return Verdict.UNUSABLE
        if self.finish_reason != "stop":
            return Verdict.TRUNCATED
        return None if self.text.strip() else Verdict.EMPTY


class ScoredItem(Record):
    """One line of a stage's results."""

    stage: str
    item: str
    verdict: Verdict
    answer: str | None = None
    detail: str = ""
    completion: Completion
    place: dict[str, Any] = Field(default_factory=dict)
    """Where it was asked: `length_tokens`, `depth` in the context stage; `family`, `level` elsewhere."""

    @property
    def right(self) -> bool:
        return self.verdict is Verdict.RIGHT
