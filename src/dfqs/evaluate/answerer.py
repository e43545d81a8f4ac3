"""What is evaluated, seen from the stages: something that answers prompts, and questions about a growing document."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dfqs.errors import RuntimeFailure
from dfqs.evaluate.conditions import Numerics
from dfqs.evaluate.context import Question
from dfqs.evaluate.prompts import ContextVocabulary
from dfqs.evaluate.scores import Completion
from dfqs.progress import Progress, no_progress


class LengthFailure(RuntimeFailure):
    """The runtime cannot work at this context length: no memory, a truncated prompt, numbers that are not finite.

    Args:
        may_pass: a second attempt can end otherwise (a process that was killed); False: the runtime said so itself.
    """

    def __init__(self, message: str, may_pass: bool = False) -> None:
        self.may_pass = may_pass
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class AnswererInfo:
    """What the answerer told about itself."""

    name: str
    template_sha256: str | None
    thinking: str | None
    numerics: Numerics | None
    runtime: str | None
    context_tokens: int | None
    """Longest context it can be asked at; None: not known."""
    notices: tuple[str, ...] = ()
    """For the report: no chat template, a shorter context than asked."""


class Answerer(Protocol):
    """A local model in a worker, or an OpenAI-compatible endpoint."""

    @property
    def info(self) -> AnswererInfo: ...

    def complete(self, prompt: str, max_tokens: int, progress: Progress = no_progress) -> Completion:
        """Answer one user message, greedily. An answerer that gives no usable answer says so in the completion.

        Args:
            progress: called with the tokens so far; on a large model one answer takes minutes.
        """
        ...

    def plan_length(self, vocabulary: ContextVocabulary, length_tokens: int, questions: int) -> Sequence[Question]:
        """The questions to ask at a length; the document, question and answer take at most `length_tokens`.

        Raises:
            LengthFailure: the runtime refuses the length.
        """
        ...

    def ask(
        self,
        vocabulary: ContextVocabulary,
        length_tokens: int,
        questions: Sequence[Question],
        max_tokens: int,
        on_answer: Callable[[int, Completion], None],
        progress: Progress = no_progress,
    ) -> None:
        """Ask `questions` (those of `plan_length` that are still open), each on its own branch of the document.

        Args:
            on_answer: called with the index in `questions` and the answer, as they come.
            progress: called with the tokens of the document that are read, where the answerer tells.

        Raises:
            LengthFailure: the runtime failed at this length.
        """
        ...
