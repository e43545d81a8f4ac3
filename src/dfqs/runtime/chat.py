"""Text from a model, for a caller: a worker with one model loaded and one conversation in its cache.

with ChatSession(path) as session:
    answer = session.answer([{"role": "user", "content": "Hello"}], on_text=print)
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dfqs.model.files import ModelFiles
from dfqs.progress import Progress, no_progress
from dfqs.runtime.checks import check_model
from dfqs.runtime.conversation import answer, open_conversation, read_figures
from dfqs.runtime.loading import InMemory, LoadOrder, StreamFigures
from dfqs.runtime.requests import Answer, ContextSettings, Prompt, ReadSoFar, Sampling, SessionInfo
from dfqs.runtime.worker import Worker


def _ignore_text(text: str) -> None:
    """Nobody listens."""


class ChatSession:
    """A loaded model, for use in a `with` block.

    Args:
        env: further environment variables of the worker.
        order: how its weights come into memory.
        tuned: whether the settings were found by tuning, for who tells of them.
        progress: called with bytes of the file(s) while the model loads.

    Raises:
        UsageError, FormatError, ShardError: as `check_model`.
        RuntimeFailure: llama.cpp refused the model or the settings.
        WorkerCrash: it died over them.
    """

    info: SessionInfo

    def __init__(
        self,
        model: Path | ModelFiles,
        settings: ContextSettings | None = None,
        *,
        threads: int | None = None,
        omp_wait_policy: str | None = None,
        env: Mapping[str, str] | None = None,
        order: LoadOrder | None = None,
        tuned: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        self._order = order or InMemory()
        self.model = check_model(model)
        self.tuned = tuned
        self._settings = settings or ContextSettings()
        self._progress = progress
        self._worker = Worker(threads, omp_wait_policy, env)
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as started:
            worker = started.enter_context(self._worker)
            worker.watch(self.model.paths)
            self.info = worker.reporting(self._report_load, doing=f"loading {self.model.path}").call(
                open_conversation, self.model.path, self._settings, self._order
            )
            self._exit = started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def answer(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] = _ignore_text,
        *,
        least_tokens: int = 1,
        progress: Progress = no_progress,
    ) -> Answer:
        """Continue a text, or answer a conversation. What an earlier call left in the cache is used again.

        Ctrl-C (KeyboardInterrupt) ends the answer; what came so far went to `on_text`, and the session goes on.

        Args:
            least_tokens: that the context must have left for the answer.
            progress: in tokens of the prompt, those of an earlier call among them; ends before the first text.

        Raises:
            ContextFull: the prompt does not fit.
            UsageError: a setting makes no sense.
            RuntimeFailure: no chat template, or llama.cpp failed.
        """

        def take(event: ReadSoFar | str) -> None:
            if isinstance(event, ReadSoFar):
                progress(event.tokens, event.of_tokens)
            else:
                on_text(event)

        return self._worker.reporting(take, doing="answering").call(
            answer, prompt, sampling or Sampling(), least_tokens
        )

    def read_figures(self) -> StreamFigures | None:
        """What streaming has done so far; None where the model is in memory."""
        return self._worker.call(read_figures)

    def _report_load(self, event: Any) -> None:
        done, total = event
        self._progress(self.model.file_bytes * done // total, self.model.file_bytes)
