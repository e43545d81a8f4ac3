"""The runtime, asked about a model's header: a new worker where one died of a question."""

from collections.abc import Iterable
from dataclasses import replace
from types import TracebackType
from typing import Self

from dfqs.errors import RuntimeFailure, WorkerCrash
from dfqs.model.files import ModelFiles
from dfqs.runtime.memory import MemoryNeed, MemoryProbe
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.worker import Worker

_MOST_DEATHS = 3
"""Of one model's questions; then no more are asked."""


class Asker:
    """Answers about one model, from a worker that is started in the background. For a `with` block.

    Args:
        worker: to use; None starts one. Where it dies, another takes its place.
    """

    def __init__(self, model: ModelFiles, worker: Worker | None = None) -> None:
        self._model = model
        self._given = worker
        self._own: Worker | None = None
        self._probe: MemoryProbe | None = None
        self._known: dict[ContextSettings, MemoryNeed] = {}
        self._refused: dict[ContextSettings, RuntimeFailure] = {}
        self._deaths = 0

    def __enter__(self) -> Self:
        if self._given is None:
            # It imports what it needs while the caller goes on.
            self._own = Worker().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._probe is not None:
            self._probe.__exit__(kind, error, trace)
            self._probe = None
        if self._own is not None:
            self._own.close()

    def open(self) -> None:
        """Have the runtime load the header.

        Raises:
            RuntimeFailure: it does not load such a model, or dies of it; says why.
        """
        if self._probe is not None:
            return
        if self._deaths >= _MOST_DEATHS:
            raise RuntimeFailure(f"llama.cpp died {self._deaths} times of questions about this model")
        worker = self._given or self._own
        if worker is None:
            worker = self._own = Worker().__enter__()
        probe = MemoryProbe(self._model, worker, check_tokens=True)
        try:
            probe.__enter__()
        except WorkerCrash as error:
            raise self._buried(error) from error
        self._probe = probe

    def require_loads(self) -> None:
        """As `open`, and have it take the model's tokens. They are loaded while other questions are answered: ask last.

        Raises:
            RuntimeFailure: it does not load such a model, or dies of it; says why.
        """
        self.open()
        assert self._probe is not None
        try:
            self._probe.require_tokens()
        except WorkerCrash as error:
            raise self._buried(error) from error

    def ask(self, settings: ContextSettings) -> MemoryNeed:
        """What a context takes; the same question is asked once.

        Raises:
            RuntimeFailure: the runtime refuses these settings, or dies of them.
        """
        if settings in self._refused:
            raise self._refused[settings]
        if settings not in self._known:
            self.open()
            assert self._probe is not None
            try:
                self._keep(settings, self._probe.need(settings))
            except WorkerCrash as error:
                raise self._buried(error) from error
        return self._known[settings]

    def expect(self, questions: Iterable[ContextSettings]) -> None:
        """Have the answers to what is going to be asked: several at once take less time than one after another."""
        new = [one for one in dict.fromkeys(questions) if one not in self._known and one not in self._refused]
        if len(new) < 2:
            return
        self.open()
        assert self._probe is not None
        try:
            for settings, found in zip(new, self._probe.needs(new), strict=True):
                self._keep(settings, found)
        except WorkerCrash:
            # Which of them it died of shows when they are asked one by one.
            self._end_probe()

    def _keep(self, settings: ContextSettings, found: MemoryNeed | RuntimeFailure) -> None:
        if isinstance(found, RuntimeFailure):
            self._refused[settings] = found
            return
        self._known[settings] = found
        if settings.flash_attention == "auto" and found.flash_attention is not None:
            # What llama.cpp chose by itself is what it does when told to.
            chosen = "on" if found.flash_attention else "off"
            self._known[replace(settings, flash_attention=chosen)] = found

    def _end_probe(self) -> None:
        """The worker died; the next question starts another."""
        self._probe, self._given = None, None
        if self._own is not None:
            self._own.close()
            self._own = None

    def _buried(self, error: WorkerCrash) -> RuntimeFailure:
        self._deaths += 1
        self._end_probe()
        return RuntimeFailure(error.sentence)
