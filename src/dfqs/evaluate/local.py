"""A GGUF file in a worker process, as something to evaluate."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from dfqs.errors import NonFiniteLogits, RuntimeFailure, UsageError, WorkerCrash
from dfqs.evaluate import jobs
from dfqs.evaluate.answerer import Answered, AnswererInfo, Asking, DocumentSize, LengthFailure, LengthFault
from dfqs.evaluate.conditions import Numerics
from dfqs.evaluate.context import GrowingDocument, fitting_lines
from dfqs.evaluate.documents import (
    PIECES,
    AnswerScores,
    AskedAnswer,
    AskedQuestion,
    DocumentJob,
    TokenWork,
)
from dfqs.evaluate.jobs import PROMPT_SEQUENCES, Generated, GivenAnswers, GivenTokens, OpenedModel
from dfqs.evaluate.scores import CHOSEN, Completion, LikelihoodScore
from dfqs.evaluate.speed import CPU_ONLY
from dfqs.evaluate.thoughts import split_output
from dfqs.evaluate.tool_offers import Tool
from dfqs.model.files import ModelFiles
from dfqs.progress import Progress, no_progress
from dfqs.quantize.noise_floor import NoiseFloor
from dfqs.runtime import Worker
from dfqs.runtime.checks import check_model
from dfqs.runtime.choice import runtime_name
from dfqs.runtime.loading import LoadOrder, StreamFigures
from dfqs.runtime.memory import MemoryProbe
from dfqs.runtime.requests import ContextSettings, ReadSoFar

ANSWER_CONTEXT_TOKENS = 2048
"""Of the context that reasoning and code are answered in: the longest prompt and the longest answer fit."""
QUESTION_TOKENS = 64
"""Room that a length keeps for its question and answer beside the template's own tokens."""
NARROWEST = 64
"""Tokens of a step: each step reads most of the weights of a Mixture-of-Experts again."""
_BATCH_LINES = 256


COMPUTE_BYTES = 4 << 30
"""That computing on a document may take beside its cache, if narrower steps can keep to it."""
SHORT_CONTEXT_TOKENS = 16_384
"""No model takes so much up to here."""


def answer_contexts(
    model: ModelFiles, max_context: int, thinking_tokens: int | None = None
) -> tuple[ContextSettings, ContextSettings]:
    """The contexts that questions are answered in, one at a time: of single prompts, and of the longest document."""
    trained = model.spec.context_tokens or max_context
    return (
        jobs.context_settings(
            Numerics(), min(ANSWER_CONTEXT_TOKENS + (thinking_tokens or 0), trained), PROMPT_SEQUENCES
        ),
        jobs.document_settings(document_numerics(model, max_context, Numerics()), min(max_context, trained)),
    )


def document_numerics(model: ModelFiles, max_context: int, numerics: Numerics) -> Numerics:
    """The numerics, with the widest step that computes on a document of this length in `COMPUTE_BYTES`.

    Without flash attention the scores of all attention heads are held at once: tokens of a step x tokens of the
    context x heads. What that takes llama.cpp itself says, from the header. It depends on nothing of this machine, so
    that scores of two machines compare.
    """
    context_tokens = min(max_context, model.spec.context_tokens or max_context)
    if context_tokens <= SHORT_CONTEXT_TOKENS:
        return numerics
    with MemoryProbe(model) as probe:
        width = numerics.ubatch
        while width > NARROWEST:
            found = numerics.model_copy(update={"document_ubatch": width if width < numerics.ubatch else None})
            if probe.need(jobs.document_settings(found, context_tokens)).compute_bytes <= COMPUTE_BYTES:
                return found
            width //= 2
    return numerics.model_copy(update={"document_ubatch": width})


class LocalAnswerer:
    """For use in a `with` block; starts and, after a crash, restarts its worker.

    Raises:
        FormatError, RuntimeFailure: the file cannot be loaded.
    """

    def __init__(
        self,
        model: Path | ModelFiles,
        *,
        threads: int | None = None,
        max_context: int,
        order: LoadOrder = CPU_ONLY,
        progress: Progress = no_progress,
        thinking_tokens: int | None = None,
    ) -> None:
        self._model = check_model(model)
        self._threads = threads
        self._max_context = max_context
        self._order = order
        numerics = Numerics(repack=order.repack, question_pieces=PIECES)
        self._numerics = document_numerics(self._model, max_context, numerics)
        self._progress = progress
        self._thinking_tokens = thinking_tokens
        self._worker: Worker | None = None
        self._opened: OpenedModel | None = None
        self._head_tokens = self._frame_tokens = 0
        self._line_tokens: dict[int, list[int]] = {}
        """Of each document's lines as far as they were counted, by its number."""
        self._context_tokens: int | None = None
        """Of the context that documents are read in, once there was memory for one."""
        self.work = TokenWork()
        """What the last questions took."""

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker; the next question starts it again."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def read_figures(self) -> StreamFigures | None:
        """What streaming did for the answers since the model was loaded (again); None where it is in memory."""
        if self._worker is None or not self._order.is_streamed:
            return None
        return self._worker.call(jobs.read_figures)

    @property
    def path(self) -> Path:
        return self._model.path

    @property
    def info(self) -> AnswererInfo:
        assert self._opened is not None
        notices = []
        if self._opened.template_sha256 is None:
            notices.append(
                "the model has no chat template; prompts are continued as plain text "
                "(--chat-template FILE gives it one)"
            )
        if self._opened.given_template is not None:
            notices.append(f"the chat template is {self._opened.given_template}, which is not the model's own")
        if self._opened.trained_context_tokens < self._max_context:
            notices.append(f"the model is trained for {self._opened.trained_context_tokens:,} tokens of context")
        if self._numerics.document_ubatch is not None:
            notices.append(
                f"documents are computed {self._numerics.document_ubatch} tokens at a time, to keep to memory "
                "without flash attention"
            )
        return AnswererInfo(
            name=self._model.name,
            template_sha256=self._opened.template_sha256,
            thinking=self._opened.thinking,
            numerics=self._numerics,
            runtime=f"llama.cpp in {runtime_name()}",
            context_tokens=min(self._opened.trained_context_tokens, self._max_context),
            tells_likelihoods=True,
            offers_tools=self._opened.takes_tools,
            notices=tuple(notices),
        )

    def complete(
        self, prompt: str, max_tokens: int, progress: Progress = no_progress, tools: Sequence[Tool] = ()
    ) -> Completion:
        """Answer one user message. A crash of the runtime is raised, not scored."""
        worker = self._running().reporting(lambda tokens: progress(tokens, max_tokens))
        generated = worker.call(jobs.complete, prompt, max_tokens, self._numerics, self._answer_context(), tools)
        return _completion(generated, self._thinks)

    def prefer(
        self, prompt: str, answers: Sequence[str], numerics: Numerics | None = None
    ) -> tuple[Completion, LikelihoodScore | None]:
        """Score given answers, the right one first, as branches of one prefill."""
        found: GivenAnswers = self._running().call(
            jobs.score_answers, prompt, answers, numerics or self._numerics, self._answer_context()
        )
        if found.scores is None:
            reason, failure = found.finish_reason, found.failure
            return Completion(text=failure, finish_reason=reason, prompt_tokens=found.prompt_tokens), None
        return _chosen(answers, found.scores, found.prompt_tokens), _likelihood(found.scores, 1 / len(answers))

    def render(self, prompt: str, answers: Sequence[str]) -> GivenTokens:
        """A message and given answers as this model's template and tokenizer write them."""
        return self._running().call(jobs.render_answers, prompt, answers)

    def score_given(self, given: GivenTokens, numerics: Numerics | None = None) -> GivenAnswers:
        """As `prefer`, of tokens."""
        return self._running().call(jobs.score_given, given, numerics or self._numerics, self._answer_context())

    def pieces(self, tokens: Sequence[int]) -> list[bytes | None]:
        """What tokens stand for; None where there is no such token."""
        return self._running().call(jobs.read_pieces, tokens)

    def hold_against_itself(self, tokens: int, progress: Progress = no_progress) -> NoiseFloor:
        """The same file under other numerics, on held-out text."""
        return self._running().reporting(lambda event: progress(*event)).call(jobs.hold_against_itself, tokens)

    def size(self, document: GrowingDocument, length_tokens: int) -> DocumentSize:
        """The longest document that leaves room for a question and its answer."""
        if length_tokens > (self.info.context_tokens or 0):
            message = f"{length_tokens:,} tokens are more than the model is trained for"
            raise LengthFailure(message, LengthFault.TRAINED)
        self._running()
        opening = self._count([document.vocabulary.opening])[0]
        frame = self._frame_tokens + opening + QUESTION_TOKENS + (self._thinking_tokens or 0)
        counts = self._line_tokens.setdefault(document.number, [])

        def count(index: int, _text: str) -> int:
            while len(counts) <= index:
                first = len(counts)
                counts.extend(self._count([document.line(first + offset) for offset in range(_BATCH_LINES)]))
            return counts[index]

        lines = fitting_lines(document, count, length_tokens - frame)
        return DocumentSize(lines, self._head_tokens + opening + sum(counts[:lines]))

    def ask(self, asking: Asking, on_answer: Answered, progress: Progress = no_progress) -> None:
        """One prefill of the document as far as it is not read yet, and every question on a branch of it."""
        document, questions = asking.document, asking.questions

        def take(event: ReadSoFar | AskedAnswer) -> None:
            if isinstance(event, ReadSoFar):
                progress(event.tokens, event.of_tokens)
                return
            asked, scores = questions[event.index], event.scores
            likelihood = _likelihood(scores, asked.chance) if scores is not None else None
            if event.written is not None:
                completion = _completion(event.written, self._thinks)
            else:
                assert scores is not None, "an answer that is not written is chosen"
                completion = _chosen((asked.answer, *asked.near_misses), scores, event.prompt_tokens)
            completion = completion.model_copy(update={"stem_tokens": event.stem_tokens or None})
            on_answer(event.index, completion, likelihood)

        job = DocumentJob(
            (document.vocabulary.opening, *map(document.line, range(asking.lines))),
            tuple(1 + stop for stop in asking.stops),
            tuple(
                AskedQuestion(each.text, document.stem(each.kind), (each.answer, *each.near_misses))
                for each in questions
            ),
            asking.max_tokens if asking.written else 0,
        )
        try:
            context_tokens = self._open_context(asking.length_tokens)
            self.work = self._running().reporting(take).call(jobs.ask_document, job, self._numerics, context_tokens)
        except (RuntimeFailure, UsageError, WorkerCrash) as error:
            self.close()
            if isinstance(error, LengthFailure):
                raise
            fault = LengthFault.NOT_FINITE if isinstance(error, NonFiniteLogits) else LengthFault.REFUSED
            fault = LengthFault.DIED if isinstance(error, WorkerCrash) else fault
            raise LengthFailure(error.sentence, fault, isinstance(error, WorkerCrash)) from error

    def _open_context(self, length_tokens: int) -> int:
        """Make the context that documents are read in; returns its tokens.

        One for the longest length serves all. Where there is no memory for it, halves are tried: a length fails for
        want of memory only where its own context cannot be made.

        Raises:
            LengthFailure: there is no memory for this length.
        """
        longest = self._context_tokens or self.info.context_tokens
        assert longest is not None, "a file tells what its model was trained for"
        wanted = max(longest, length_tokens)
        while True:
            try:
                self._running().call(jobs.open_context, self._numerics, wanted)
            except (RuntimeFailure, WorkerCrash) as error:
                self.close()
                if wanted <= length_tokens:
                    raise LengthFailure(error.sentence, LengthFault.ALLOCATE) from error
                wanted = max(length_tokens, wanted // 2)
            else:
                self._context_tokens = wanted
                return wanted

    @property
    def _thinks(self) -> bool:
        """Whether the prompt opens a thought."""
        return self._opened is not None and self._opened.thinking in ("on", "always")

    def _answer_context(self) -> int:
        return min(
            ANSWER_CONTEXT_TOKENS + (self._thinking_tokens or 0),
            self._opened.trained_context_tokens if self._opened else 0,
        )

    def _count(self, texts: list[str]) -> list[int]:
        return self._running().call(jobs.count_tokens, texts)

    def _running(self) -> Worker:
        if self._worker is None:
            self._start()
        assert self._worker is not None
        return self._worker

    def _start(self) -> None:
        worker = Worker(threads=self._threads)
        worker.__enter__()
        self._worker = worker
        try:
            loading = worker.reporting(lambda event: self._progress(*event))
            self._opened = loading.call(jobs.open_model, self._model.path, self._order, self._thinking_tokens)
            self._head_tokens, self._frame_tokens = worker.call(jobs.frame_tokens)
        except BaseException:
            self.close()
            raise


def _completion(generated: Generated, begun: bool) -> Completion:
    reasoning, text = split_output(generated.text, begun)
    return Completion(
        reasoning=reasoning,
        text=generated.failure or text,
        finish_reason=generated.finish_reason,
        prompt_tokens=generated.prompt_tokens,
        generated_tokens=generated.generated_tokens,
    )


def _likelihood(scores: AnswerScores, chance: float) -> LikelihoodScore:
    first, *others = scores.logprobs
    return LikelihoodScore(
        right=all(first > other for other in others),
        chance=chance,
        logprobs=scores.logprobs,
        greedy=scores.greedy,
        computed_tokens=scores.computed_tokens,
    )


def _chosen(given: Sequence[str], scores: AnswerScores, prompt_tokens: int) -> Completion:
    text = max(zip(scores.logprobs, given, strict=True), key=lambda pair: pair[0])[1]
    return Completion(text=text, finish_reason=CHOSEN, prompt_tokens=prompt_tokens, generated_tokens=0)
