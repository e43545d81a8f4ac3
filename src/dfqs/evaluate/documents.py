"""Asks about a growing document, in the worker process: one prefill of its longest length, questions as branches.

What is computed for a question depends on its document, length and text alone. The document is read in pieces of a
batch that end where each shorter length of the curve ends, so that growing from length to length is the same
computation as reading it afresh in those pieces. A question is a branch of that (`llama_memory_seq_cp`), one at a time,
and each given answer a branch of the question; both are forgotten afterwards, and the next take their places.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dfqs.runtime.context import Context
from dfqs.runtime.model import Model
from dfqs.runtime.scoring import ContinuationScore, score_branches
from dfqs.runtime.worker_context import WorkerContext

_DOCUMENT, _QUESTION, _ANSWER = 0, 1, 2
DOCUMENT_SEQUENCES = 3
LEAST_LOGPROB = -1e9
"""Of an answer that the model rules out: minus infinity can be neither stored nor averaged."""


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """One question, as it is asked."""

    text: str
    answers: tuple[str, ...] = ()
    """To be scored by likelihood, the right one first; empty: none."""


@dataclass(frozen=True, slots=True)
class DocumentJob:
    """What to ask about a document at one length."""

    pieces: tuple[str, ...]
    """Opening and lines; each is cut into tokens by itself."""
    stops: tuple[int, ...]
    """After how many pieces the shorter lengths of the curve end, shortest first."""
    questions: tuple[AskedQuestion, ...]
    max_tokens: int
    """Of a written answer; 0: none is written."""


@dataclass(frozen=True, slots=True)
class ReadSoFar:
    """How much of a document is in the cache."""

    tokens: int
    of_tokens: int


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """How likely each given answer is."""

    logprobs: tuple[float, ...]
    greedy: bool
    """Whether greedy decoding begins with the first."""
    computed_tokens: int


@dataclass(frozen=True, slots=True)
class TokenWork:
    """Tokens that went through the model."""

    document: int = 0
    questions: int = 0
    answers: int = 0
    likelihoods: int = 0


class DocumentReader:
    """Keeps what it has read of one document in `context`, for the next length of it.

    Args:
        frame: what the chat template writes before and after a user's message; both empty without a template.
    """

    def __init__(self, model: Model, context: Context, frame: tuple[str, str]) -> None:
        self.model = model
        self.context = context
        self._head, self._tail = frame
        self._read: list[int] = []
        self._ends: list[int] = []
        """Where the pieces that were read end."""

    def ask(
        self,
        job: DocumentJob,
        write: Callable[[object, int, int, int], object],
        emit: Callable[[object], None],
    ) -> TokenWork:
        """Ask every question of a job.

        Args:
            write: generates an answer after `(logits, position, sequence, max_tokens)`.
            emit: called with `ReadSoFar`, and with `(index, prompt tokens, what was written or None, AnswerScores or
                None)` for each question.

        Raises:
            UsageError: no room in the context.
            NonFiniteLogits: the model computes no numbers.
            RuntimeFailure: llama.cpp failed.
        """
        tokens, ends = self.document_tokens(job)
        read = self._grow(tokens, ends, emit)
        questions = answers = likelihoods = 0
        for index, question in enumerate(job.questions):
            *before, last = asked = self.question_tokens(question.text)
            end = len(tokens) + len(before)
            self.context.copy_sequence(_DOCUMENT, _QUESTION)
            self.context.decode(before, len(tokens), _QUESTION, logits="none")
            scores = self._score(question.answers, end, last) if question.answers else None
            written = None
            if job.max_tokens:
                logits = self.context.decode([last], end, _QUESTION)
                written = write(logits, end + 1, _QUESTION, job.max_tokens)
            self.context.remove_sequence(_QUESTION)
            emit((index, end + 1, written, scores))
            questions += len(asked) if job.max_tokens else len(before)
            likelihoods += scores.computed_tokens if scores is not None else 0
            answers += getattr(written, "generated_tokens", 0)
        return TokenWork(read, questions, answers, likelihoods)

    def document_tokens(self, job: DocumentJob) -> tuple[list[int], list[int]]:
        """The document's tokens, and where the batches in which they are read end."""
        tokens = self.model.tokenize_chat(self._head) if self._tail else self.model.tokenize("")
        bounds = [0]
        for index, piece in enumerate(job.pieces, 1):
            tokens += self._tokens(piece)
            if index in job.stops:
                bounds.append(len(tokens))
        bounds.append(len(tokens))
        ends: list[int] = []
        for start, end in pairwise(bounds):
            ends += [*range(start + self.context.n_batch, end, self.context.n_batch), end] if end > start else []
        return tokens, ends

    def question_tokens(self, text: str) -> list[int]:
        """A question behind the document, and how the template goes on."""
        return self._tokens(f"\n\n{text}") + self.model.tokenize(self._tail or "\n", add_special=False)

    def _grow(self, tokens: list[int], ends: list[int], emit: Callable[[object], None]) -> int:
        """Bring the document's sequence to exactly these tokens, read in these batches; returns how many were read."""
        known = len(self._ends)
        if self._ends != ends[:known] or self._read != tokens[: len(self._read)]:
            known = 0
        done = self._ends[known - 1] if known else 0
        # Should this be interrupted, the cache holds something else than what is written down here.
        self._read, self._ends = [], []
        if known:
            for sequence in (_QUESTION, _ANSWER):
                self.context.remove_sequence(sequence)
        else:
            self.context.clear()
        start = done
        for end in ends[known:]:
            emit(ReadSoFar(start, len(tokens)))
            self.context.decode(tokens[start:end], start, _DOCUMENT, logits="none")
            start = end
        self._read, self._ends = tokens, ends
        return len(tokens) - done

    def _score(self, answers: Sequence[str], position: int, last: int) -> AnswerScores:
        tokens = [self._tokens(answer) for answer in answers]
        return answer_scores(self.context, _QUESTION, _ANSWER, position, last, tokens)

    def _tokens(self, text: str) -> list[int]:
        return self.model.tokenize(text, add_special=False, parse_special=False)


def answer_scores(
    context: Context, trunk: int, branch: int, position: int, last: int, answers: Sequence[Sequence[int]]
) -> AnswerScores:
    """How likely each answer is, as a branch of what the sequence `trunk` holds before `position`.

    Args:
        last: the token at `position`, which predicts the first of each answer.
        answers: their tokens, the right one's first.

    Raises:
        NonFiniteLogits: the model computes no numbers.
    """
    found: dict[int, ContinuationScore] = {}
    computed = score_branches(context, trunk, branch, position, [last], answers, found.__setitem__)
    scores = [found[index] for index in range(len(answers))]
    logprobs = tuple(max(score.logprob, LEAST_LOGPROB) for score in scores)
    return AnswerScores(logprobs, scores[0].is_greedy, computed)


def document_reader(worker: WorkerContext, model: Model, context: Context, frame: tuple[str, str]) -> DocumentReader:
    """The reader of a context: the one before, with what it has read, where the context is still the same."""
    reader: DocumentReader | None = worker.state.get("document_reader")
    if reader is None or reader.context is not context:
        reader = worker.state["document_reader"] = DocumentReader(model, context, frame)
    return reader
