"""The runtime, asked about a model's header: a new worker where one died of a question."""

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
        worker = self._given if self._given is not None and not self._deaths else self._own
        if worker is None:
            worker = self._own = Worker().__enter__()
        probe = MemoryProbe(self._model, worker)
        try:
            probe.__enter__()
        except WorkerCrash as error:
            raise self._buried(error) from error
        self._probe = probe

    def ask(self, settings: ContextSettings) -> MemoryNeed:
        """What a context takes; the same question is asked once.

        Raises:
            RuntimeFailure: the runtime refuses these settings, or dies of them.
        """
        if settings in self._known:
            return self._known[settings]
        self.open()
        assert self._probe is not None
        try:
            found = self._probe.need(settings)
        except WorkerCrash as error:
            raise self._buried(error) from error
        self._known[settings] = found
        if settings.flash_attention == "auto" and found.flash_attention is not None:
            # What llama.cpp chose by itself is what it does when told to.
            chosen = "on" if found.flash_attention else "off"
            self._known[replace(settings, flash_attention=chosen)] = found
        return found

    def _buried(self, error: WorkerCrash) -> RuntimeFailure:
        self._deaths += 1
        self._probe = None
        if self._own is not None:
            self._own.close()
            self._own = None
        return RuntimeFailure(error.sentence)
