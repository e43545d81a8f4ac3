"""How a model's weights come into memory: an order that crosses to the worker, and what it gives there."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from dfqs.progress import Progress
from dfqs.runtime.given_template import GivenTemplate
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
    tokens: int | None = None
    """Computed in those passes. Null in documents that were written before it was told, as all below."""
    passes_s: float | None = None
    """How long the passes took, waiting included."""
    disk_bytes_per_s: float | None = None
    """As measured while the part that stays was read; null where too little was read to tell."""
    checked: int | None = None
    """Slices and tensors whose bytes were held against a manifest; null where that was not done."""
    ahead_bytes: int | None = None
    """Of those read, what was read while the disk would have stood still, before the layer had chosen; null where
    nothing is guessed, as below."""
    unused_bytes: int | None = None
    """Of those read, guesses that no layer chose."""

    bytes_per_token: float | None = None
    """Read from disk for each token; null where nothing was computed. Follows from the others, as the next one."""
    bound_share: float | None = None
    """The rate, of the one that would be reached if every byte came at the disk's rate and nothing else were waited
    for: (computing + bytes / disk rate) / (computing + waiting). Null where the disk's rate is not known."""

    def __post_init__(self) -> None:
        if self.tokens:
            object.__setattr__(self, "bytes_per_token", self.read_bytes / self.tokens)
        if self.passes_s and self.disk_bytes_per_s is not None:
            computing = self.passes_s - self.wait_s
            share = (computing + self.read_bytes / self.disk_bytes_per_s) / self.passes_s
            object.__setattr__(self, "bound_share", share)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in a worker."""

    model: Model
    figures: Callable[[], StreamFigures] | None = None
    close: Callable[[], None] = lambda: None
    """After the contexts, in place of `model.close`."""

    def read_figures(self) -> StreamFigures | None:
        """What streaming did up to now; None where all weights are in memory."""
        return self.figures() if self.figures is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for context in list(self.model.contexts):
            context.close()
        self.close()


class ServerCompanion(Protocol):
    """What stands beside a server that loads the model by itself, in the same worker."""

    @property
    def callback(self) -> int:
        """Address of the function that must see every graph (see `dfqs.serving.server_watch`)."""
        ...

    def loading(self) -> AbstractContextManager[object]:
        """Around the server's start; raises at its end what went wrong with the weights."""
        ...

    def raise_pending(self) -> None:
        """Raise what ended the computation, if anything did. It does not go on, so no answer is wrong."""
        ...

    def figures(self) -> StreamFigures | None:
        """What streaming did up to now."""
        ...


class LoadOrder(Protocol):
    """How to load; a plain value that pickles."""

    @property
    def load_mode(self) -> str:
        """A key of `abi.LOAD_MODES`."""
        ...

    @property
    def repack(self) -> bool:
        """Whether weights may be copied into an order that the processor likes better, which changes the last bits of
        what is computed."""
        ...

    @property
    def is_streamed(self) -> bool:
        """Whether experts are read from disk when they are chosen."""
        ...

    def load(self, library: Library, path: Path, progress: Progress) -> LoadedModel:
        """In the worker. `progress` counts whatever the way of loading counts."""
        ...

    def accompany(self, library: Library, progress: Progress) -> ServerCompanion | None:
        """In the worker, for a server that loads the model; None where it needs nothing beside it."""
        ...


@dataclass(frozen=True, slots=True)
class InMemory:
    """All weights in memory, as llama.cpp does by itself unless told otherwise."""

    load_mode: str = "auto"
    repack: bool = True
    gpu_layers: int | None = None
    """To offload; None leaves it to llama.cpp."""

    @property
    def is_streamed(self) -> bool:
        return False

    def load(self, library: Library, path: Path, progress: Progress) -> LoadedModel:
        model = Model(
            library,
            path,
            load_mode=self.load_mode,
            repack=self.repack,
            gpu_layers=self.gpu_layers,
            progress=progress,
        )
        return LoadedModel(model, close=model.close)

    def accompany(self, library: Library, progress: Progress) -> ServerCompanion | None:
        return None


@dataclass(frozen=True, slots=True)
class Mapped:
    """No weight copied: a file that is in memory already is used where it lies."""

    load_mode: str = "mmap"
    repack: bool = False

    @property
    def is_streamed(self) -> bool:
        return False

    def load(self, library: Library, path: Path, progress: Progress) -> LoadedModel:
        model = Model(library, path, load_mode=self.load_mode, repack=self.repack, progress=progress)
        return LoadedModel(model, close=model.close)

    def accompany(self, library: Library, progress: Progress) -> ServerCompanion | None:
        return None


@dataclass(frozen=True, slots=True)
class Templated:
    """A model loaded as `order` says, that converses by a template which it was given."""

    order: LoadOrder
    template: GivenTemplate

    @property
    def load_mode(self) -> str:
        return self.order.load_mode

    @property
    def repack(self) -> bool:
        return self.order.repack

    @property
    def is_streamed(self) -> bool:
        return self.order.is_streamed

    def load(self, library: Library, path: Path, progress: Progress) -> LoadedModel:
        loaded = self.order.load(library, path, progress)
        loaded.model.use_template(self.template)
        return loaded

    def accompany(self, library: Library, progress: Progress) -> ServerCompanion | None:
        return self.order.accompany(library, progress)


def loading_as_note(emit: Callable[[tuple[int, None, str]], object]) -> Progress:
    """Progress of loading for work that counts something else: none of that is done yet, and the note says why."""

    def tell(done: int, total: int | None = None, note: str = "") -> None:
        share = f" {done / total:.0%}".replace("%", " %") if total else ""
        emit((0, None, f"loading{share}"))

    return tell


def with_template(order: LoadOrder, template: GivenTemplate | None) -> LoadOrder:
    """The order, with a template where one is given."""
    return order if template is None else Templated(order, template)
