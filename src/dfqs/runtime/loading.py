"""How a model's weights come into memory: an order that crosses to the worker, and what it gives there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dfqs.progress import Progress
from dfqs.runtime.library import Library
from dfqs.runtime.model import Model


@dataclass(frozen=True, slots=True)
class StreamFigures:
    """What streaming did since the model was loaded."""

    passes: int
    """Graphs that were computed: one a token when generating, one a batch before."""
    choices: int
    """Experts that layers asked for, over all passes."""
    hit_rate: float | None
    """Share of the choices that were in memory; None where nothing was asked for."""
    read_bytes: int
    wait_s: float
    """How long the computation stood still for the disk."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in a worker."""

    model: Model
    figures: Callable[[], StreamFigures] | None = None
    close: Callable[[], None] = lambda: None
    """After the contexts, in place of `model.close`."""


class LoadOrder(Protocol):
    """How to load; a plain value that pickles."""

    def load(self, library: Library, path: Path, progress: Progress) -> LoadedModel:
        """In the worker. `progress` counts whatever the way of loading counts."""
        ...


@dataclass(frozen=True, slots=True)
class InMemory:
    """All weights in memory, as llama.cpp does by itself unless told otherwise."""

    load_mode: str = "auto"
    repack: bool = True

    def load(self, library: Library, path: Path, progress: Progress) -> LoadedModel:
        model = Model(library, path, load_mode=self.load_mode, repack=self.repack, progress=progress)
        return LoadedModel(model, close=model.close)


@dataclass(frozen=True, slots=True)
class Mapped:
    """No weight copied: a file that is in memory already is used where it lies."""

    def load(self, library: Library, path: Path, progress: Progress) -> LoadedModel:
        model = Model(library, path, load_mode="mmap", repack=False, progress=progress)
        return LoadedModel(model, close=model.close)
