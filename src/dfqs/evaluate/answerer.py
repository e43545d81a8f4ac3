"""What is evaluated, seen from the stages: something that answers prompts, and questions about a growing document."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from dfqs.errors import RuntimeFailure
from dfqs.evaluate.conditions import Numerics
from dfqs.evaluate.context import GrowingDocument, Question
from dfqs.evaluate.scores import Completion, LikelihoodScore
from dfqs.evaluate.tool_offers import Tool
from dfqs.progress import Progress, no_progress
from dfqs.quantize.noise_floor import NoiseFloor


class LengthFailure(RuntimeFailure):
    """The runtime cannot work at this context length.

    Args:
        fault: what it is, for the report.
        may_pass: a second attempt can end otherwise (a process that was killed); False: the runtime said so itself.
    """

    def __init__(self, message: str, fault: "LengthFault", may_pass: bool = False) -> None:
        self.fault = fault
        self.may_pass = may_pass
        super().__init__(message)


class LengthFault(StrEnum):
    """How a runtime fails at a length."""

    ALLOCATE = "allocate"
    """There is no memory for its context."""
    TRUNCATED = "truncated"
    """The prompt was cut."""
    NOT_FINITE = "not-finite"
    """Its logits are NaN or infinite."""
    REFUSED = "refused"
    """It says that the length is too much for it, or that it failed."""
    DIED = "died"
    UNANSWERED = "unanswered"
    """No question of the length is answered, while shorter ones are."""
    TRAINED = "trained"
    """Longer than the model was trained for, or than an endpoint was said to have: not tried."""


@dataclass(frozen=True, slots=True)
class DocumentSize:
    """How much of a document a length has room for."""

    lines: int
    tokens: int | None
    """With the template's beginning; None where only the other side counts."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions about a document are asked."""

    length_tokens: int
    document: GrowingDocument
    lines: int
    stops: tuple[int, ...]
    """Lines of the document at the shorter lengths of the curve; it is read in pieces that end there."""
    questions: tuple[Question, ...]
    max_tokens: int
    """Of a written answer."""
    written: bool = True
    """Whether answers are written; where not, they are chosen by likelihood, if that can be measured."""


Answered = Callable[[int, Completion, LikelihoodScore | None], None]
"""Called with the index of a question, its answer, and how likely it was beside near misses where that is known."""


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
    tells_likelihoods: bool = False
    """Of given answers, beside those that it writes."""
    offers_tools: bool = False
    """In its template's own field; where not, a prompt has them in words."""
    notices: tuple[str, ...] = ()
    """For the report: no chat template, a shorter context than asked."""


class Answerer(Protocol):
    """A local model in a worker, or an OpenAI-compatible endpoint."""

    @property
    def info(self) -> AnswererInfo: ...

    def complete(
        self, prompt: str, max_tokens: int, progress: Progress = no_progress, tools: Sequence[Tool] = ()
    ) -> Completion:
        """Answer one user message, greedily. An answerer that gives no usable answer says so in the completion.

        Args:
            progress: called with the tokens so far; on a large model one answer takes minutes.
            tools: that it can call; none where it says that it does not offer them (`info.offers_tools`).
        """
        ...

    def size(self, document: GrowingDocument, length_tokens: int) -> DocumentSize:
        """How much of a document leaves room for a question and its answer in `length_tokens`.

        Raises:
            LengthFailure: the runtime refuses the length.
        """
        ...

    def ask(self, asking: Asking, on_answer: Answered, progress: Progress = no_progress) -> None:
        """Ask questions, each on its own branch of the document.

        Args:
            progress: called with the tokens of the document that are read, where the answerer tells.

        Raises:
            LengthFailure: the runtime failed at this length.
        """
        ...


@runtime_checkable
class LikelihoodAnswerer(Protocol):
    """An answerer that can tell how likely given answers are, and how far it is from itself."""

    def prefer(
        self, prompt: str, answers: Sequence[str], numerics: Numerics | None = None
    ) -> tuple[Completion, LikelihoodScore | None]:
        """Score given answers, the right one first: the likeliest, and all their likelihoods where there are any.

        Args:
            numerics: other ones than those that its scores are made in.
        """
        ...

    def hold_against_itself(self, tokens: int, progress: Progress = no_progress) -> NoiseFloor:
        """See `dfqs.quantize.noise_floor`.

        Raises:
            RuntimeFailure: the model computes no numbers.
        """
        ...
