"""A GGUF file in a worker process, as something to evaluate."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from dfqs.errors import RuntimeFailure, UsageError, WorkerCrash
from dfqs.evaluate import jobs
from dfqs.evaluate.answerer import AnswererInfo, LengthFailure
from dfqs.evaluate.conditions import Numerics
from dfqs.evaluate.context import Question, fitting_notes, note, plan_questions
from dfqs.evaluate.jobs import Generated, OpenedModel, ReadSoFar
from dfqs.evaluate.prompts import ContextVocabulary
from dfqs.evaluate.scores import Completion
from dfqs.evaluate.speed import CPU_ONLY
from dfqs.model.files import ModelFiles
from dfqs.progress import Progress, no_progress
from dfqs.runtime import Worker
from dfqs.runtime.checks import check_model
from dfqs.runtime.choice import runtime_name
from dfqs.runtime.loading import LoadOrder, StreamFigures
from dfqs.runtime.requests import ContextSettings

ANSWER_CONTEXT_TOKENS = 2048
"""Of the context that reasoning and code are answered in: the longest prompt and the longest answer fit."""
QUESTION_TOKENS = 64
"""Room that a length keeps for its question and answer beside the template's own tokens."""
_BATCH_NOTES = 256


def answer_contexts(model: ModelFiles, max_context: int) -> tuple[ContextSettings, ContextSettings]:
    """The contexts that questions are answered in, one at a time: of single prompts, and of the longest document."""
    trained = model.spec.context_tokens or max_context
    return (
        jobs.context_settings(Numerics(), min(ANSWER_CONTEXT_TOKENS, trained), 1),
        jobs.context_settings(Numerics(), min(max_context, trained), jobs.DOCUMENT_SEQUENCES),
    )


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
    ) -> None:
        self._model = check_model(model)
        self._threads = threads
        self._max_context = max_context
        self._order = order
        self._numerics = Numerics(repack=order.repack)
        self._progress = progress
        self._worker: Worker | None = None
        self._opened: OpenedModel | None = None
        self._frame_tokens = 0
        self._note_tokens: list[int] = []

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
            notices.append("the model has no chat template; prompts are continued as plain text")
        if self._opened.trained_context_tokens < self._max_context:
            notices.append(f"the model is trained for {self._opened.trained_context_tokens:,} tokens of context")
        return AnswererInfo(
            name=self._model.name,
            template_sha256=self._opened.template_sha256,
            thinking=self._opened.thinking,
            numerics=self._numerics,
            runtime=f"llama.cpp in {runtime_name()}",
            context_tokens=min(self._opened.trained_context_tokens, self._max_context),
            notices=tuple(notices),
        )

    def complete(self, prompt: str, max_tokens: int, progress: Progress = no_progress) -> Completion:
        """Answer one user message. A crash of the runtime is raised, not scored."""
        worker = self._running().reporting(lambda tokens: progress(tokens, max_tokens))
        generated = worker.call(jobs.complete, prompt, max_tokens, self._numerics, self._answer_context())
        return _completion(generated)

    def plan_length(self, vocabulary: ContextVocabulary, length_tokens: int, questions: int) -> Sequence[Question]:
        """Questions on the longest document that leaves room for one of them and its answer."""
        if length_tokens > (self.info.context_tokens or 0):
            raise LengthFailure(f"{length_tokens:,} tokens are more than the model is trained for")
        return plan_questions(vocabulary, self._notes(vocabulary, length_tokens), questions)

    def ask(
        self,
        vocabulary: ContextVocabulary,
        length_tokens: int,
        questions: Sequence[Question],
        max_tokens: int,
        on_answer: Callable[[int, Completion], None],
        progress: Progress = no_progress,
    ) -> None:
        """One prefill of the document, and every question on a branch of it."""
        notes = [note(vocabulary, index).text for index in range(self._notes(vocabulary, length_tokens))]

        def take(event: ReadSoFar | tuple[int, Generated]) -> None:
            if isinstance(event, ReadSoFar):
                progress(event.tokens, event.of_tokens)
            else:
                on_answer(event[0], _completion(event[1]))

        texts = [question.note.question for question in questions]
        context_tokens = self.info.context_tokens
        assert context_tokens is not None, "a file tells what its model was trained for"
        try:
            self._running().reporting(take).call(
                jobs.ask_document, [vocabulary.opening, *notes], texts, max_tokens, self._numerics, context_tokens
            )
        except (RuntimeFailure, UsageError, WorkerCrash) as error:
            self.close()
            raise LengthFailure(error.sentence, isinstance(error, WorkerCrash)) from error

    def _answer_context(self) -> int:
        return min(ANSWER_CONTEXT_TOKENS, self._opened.trained_context_tokens if self._opened else 0)

    def _notes(self, vocabulary: ContextVocabulary, length_tokens: int) -> int:
        """How many notes fit a length; token counts are asked for once."""
        self._running()
        opening = self._count([vocabulary.opening])[0]
        budget = length_tokens - self._frame_tokens - opening - QUESTION_TOKENS

        def count(text: str) -> int:
            index = cursor[0]
            cursor[0] += 1
            while len(self._note_tokens) <= index:
                first = len(self._note_tokens)
                batch = [note(vocabulary, first + offset).text for offset in range(_BATCH_NOTES)]
                self._note_tokens += self._count(batch)
            return self._note_tokens[index]

        cursor = [0]
        return fitting_notes(vocabulary, count, budget)

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
            self._opened = loading.call(jobs.open_model, self._model.path, self._order)
            self._frame_tokens = worker.call(jobs.frame_tokens)
        except BaseException:
            self.close()
            raise


def _completion(generated: Generated) -> Completion:
    return Completion(
        text=generated.failure or generated.text,
        finish_reason=generated.finish_reason,
        prompt_tokens=generated.prompt_tokens,
        generated_tokens=generated.generated_tokens,
    )
