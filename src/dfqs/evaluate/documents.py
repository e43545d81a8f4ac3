"""Asks about a growing document, in the worker process: one prefill of its longest length, questions as branches.

What is computed for a question depends on its document, length and text alone. The document is read in pieces of a
batch that end where each shorter length of the curve ends, so that growing from length to length is the same
computation as reading it afresh in those pieces. A question is a branch of that (`llama_memory_seq_cp`), one at a time,
in two pieces: the words with which all questions of its kind begin, which the next of the kind finds in the cache, and
the rest with the template's end. Each given answer is a branch of the question. All are forgotten afterwards, and the
next take their places.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dfqs.runtime.context import Context, Logits
from dfqs.runtime.logprobs import score_rows
from dfqs.runtime.model import Model
from dfqs.runtime.requests import ReadSoFar
from dfqs.runtime.scoring import ContinuationScore, common_length, score_branches
from dfqs.runtime.worker_context import WorkerContext

PIECES = 2
"""Version of the pieces that questions are computed in; part of the conditions (`Numerics.question_pieces`). In the
first a question was one piece, and its last token another."""
_DOCUMENT, _STEM, _QUESTION, _ANSWER = 0, 1, 2, 3
DOCUMENT_SEQUENCES = 4
SHORTEST_STEM = 4
"""Tokens; a call of llama.cpp of its own costs some two of them."""
LEAST_LOGPROB = -1e9
"""Of an answer that the model rules out: minus infinity can be neither stored nor averaged."""


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """One question, as it is asked."""

    text: str
    stem: str = ""
    """What all questions of its kind begin with."""
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
class AnswerScores:
    """How likely each given answer is."""

    logprobs: tuple[float, ...]
    greedy: bool
    """Whether greedy decoding begins with the first."""
    computed_tokens: int


@dataclass(frozen=True, slots=True)
class AskedAnswer:
    """What became of one question."""

    index: int
    prompt_tokens: int
    stem_tokens: int
    """Of these, as many as questions of its kind have in common and compute once."""
    written: Any
    """What `write` gave; None: none was written."""
    scores: AnswerScores | None


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
        self._stem: list[int] = []
        """That is in the cache behind them."""

    def ask(
        self,
        job: DocumentJob,
        write: Callable[[object, int, int, int], object],
        emit: Callable[[object], None],
    ) -> TokenWork:
        """Ask every question of a job.

        Args:
            write: generates an answer after `(logits, position, sequence, max_tokens)`.
            emit: called with `ReadSoFar`, and with an `AskedAnswer` for each question.

        Raises:
            UsageError: no room in the context.
            NonFiniteLogits: the model computes no numbers.
            RuntimeFailure: llama.cpp failed.
        """
        tokens, ends = self.document_tokens(job)
        read = self._grow(tokens, ends, emit)
        questions = answers = likelihoods = 0
        for index, question in enumerate(job.questions):
            stem, rest = self.question_tokens(question)
            questions += self._bring_stem(stem, len(tokens)) + len(rest)
            self.context.copy_sequence(_STEM if stem else _DOCUMENT, _QUESTION)
            logits = self.context.decode(rest, len(tokens) + len(stem), _QUESTION)
            assert logits is not None
            end = len(tokens) + len(stem) + len(rest)
            scores = self._score(question.answers, end, logits) if question.answers else None
            written = write(logits, end, _QUESTION, job.max_tokens) if job.max_tokens else None
            self.context.remove_sequence(_QUESTION)
            emit(AskedAnswer(index, end, len(stem), written, scores))
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

    def question_tokens(self, question: AskedQuestion) -> tuple[list[int], list[int]]:
        """A question behind the document, with how the template goes on: its stem, empty where that is not worth a
        piece, and the rest."""
        asked = self._tokens(f"\n\n{question.text}")
        # The stem's last letters can become other tokens with what follows.
        shared = common_length(asked, self._tokens(f"\n\n{question.stem}")) if question.stem else 0
        stem = asked[: shared if shared >= SHORTEST_STEM else 0]
        return stem, asked[len(stem) :] + self.model.tokenize(self._tail or "\n", add_special=False)

    def _bring_stem(self, stem: list[int], position: int) -> int:
        """Have a question's beginning in the cache behind the document; returns how many tokens that computed."""
        if stem == self._stem:
            return 0
        # Should this be interrupted, nothing is written down of what the cache holds.
        self._stem = []
        self.context.remove_sequence(_STEM)
        if stem:
            self.context.copy_sequence(_DOCUMENT, _STEM)
            self.context.decode(stem, position, _STEM, logits="none")
        self._stem = stem
        return len(stem)

    def _grow(self, tokens: list[int], ends: list[int], emit: Callable[[object], None]) -> int:
        """Bring the document's sequence to exactly these tokens, read in these batches; returns how many were read."""
        known = len(self._ends)
        if self._ends != ends[:known] or self._read != tokens[: len(self._read)]:
            known = 0
        done = self._ends[known - 1] if known else 0
        # Should this be interrupted, the cache holds something else than what is written down here.
        self._read, self._ends, self._stem = [], [], []
        if known:
            for sequence in (_STEM, _QUESTION, _ANSWER):
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

    def _score(self, answers: Sequence[str], position: int, logits: Logits) -> AnswerScores:
        tokens = [self._tokens(answer) for answer in answers]
        return answer_scores(self.context, _QUESTION, _ANSWER, position, logits, tokens)

    def _tokens(self, text: str) -> list[int]:
        return self.model.tokenize(text, add_special=False, parse_special=False)


def answer_scores(
    context: Context, trunk: int, branch: int, position: int, logits: Logits, answers: Sequence[Sequence[int]]
) -> AnswerScores:
    """How likely each answer is, as a branch of what the sequence `trunk` holds before `position`.

    Args:
        logits: at `position`, where answers begin; float32 [vocabulary].
        answers: their tokens, the right one's first.

    Raises:
        NonFiniteLogits: the model computes no numbers.
    """
    begun = [next(score_rows(logits[None], [answer[0]])) for answer in answers]
    found = [ContinuationScore((score,)) for score in begun]
    alike: dict[int, list[int]] = {}
    for index, answer in enumerate(answers):
        if len(answer) > 1:
            alike.setdefault(answer[0], []).append(index)
    computed = 0
    for first, indices in sorted(alike.items()):

        def take(which: int, score: ContinuationScore, indices: list[int] = indices) -> None:
            index = indices[which]
            found[index] = ContinuationScore((begun[index], *score.tokens))

        rest = [answers[index][1:] for index in indices]
        computed += score_branches(context, trunk, branch, position, [first], rest, take)
    logprobs = tuple(max(score.logprob, LEAST_LOGPROB) for score in found)
    return AnswerScores(logprobs, found[0].is_greedy, computed)


def document_reader(worker: WorkerContext, model: Model, context: Context, frame: tuple[str, str]) -> DocumentReader:
    """The reader of a context: the one before, with what it has read, where the context is still the same."""
    reader: DocumentReader | None = worker.state.get("document_reader")
    if reader is None or reader.context is not context:
        reader = worker.state["document_reader"] = DocumentReader(model, context, frame)
    return reader
