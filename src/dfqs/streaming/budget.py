"""How a model is loaded within so much memory: whole where it fits, streamed where it does not.

The runtime itself says what a context takes (`dfqs.runtime.memory`); nothing here has formulas of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dfqs.errors import SpaceError
from dfqs.hardware import available_memory_bytes
from dfqs.model.files import ModelFiles, open_model
from dfqs.progress import Progress
from dfqs.runtime.context import DEFAULT_CONTEXT_TOKENS
from dfqs.runtime.library import Library
from dfqs.runtime.loading import InMemory, LoadedModel, LoadOrder, Mapped
from dfqs.runtime.memory import MemoryNeed, MemoryProbe
from dfqs.runtime.requests import ContextSettings
from dfqs.streaming.layout import PAGE_BYTES, StreamLayout, plan_layout
from dfqs.streaming.mechanism import Choice, Mechanism, choose_mechanism
from dfqs.streaming.opening import open_streamed
from dfqs.streaming.serving import ServedExperts
from dfqs.streaming.settings import StreamSettings
from dfqs.streaming.surroundings import read_facts
from dfqs.streaming.verification import Recorded
from dfqs.units import format_bytes, parse_size

PROGRAM_BYTES = 220_000_000
"""What both processes take beside the model: Python, the library, threads' stacks, page tables."""
_OF_FREE = 0.9
"""The rest is room for what others do meanwhile."""
_PLENTY = 2
_SMALL_BYTES = 2_000_000_000
"""Where so many times the file and as much again is free, no context of usual length can make it too much."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """Experts from disk, as many of them in memory as `settings.cache_bytes` hold."""

    paths: tuple[Path, ...]
    """The file, or all shards of a set in their order."""
    settings: StreamSettings

    @property
    def load_mode(self) -> str:
        return "mmap"

    @property
    def repack(self) -> bool:
        return False

    @property
    def is_streamed(self) -> bool:
        return True

    def load(self, library: Library, path: Path, progress: Progress) -> LoadedModel:
        streamed = open_streamed(library, self.paths, self.settings, progress=progress)
        return LoadedModel(streamed.model, streamed.experts.figures, streamed.close)

    def accompany(self, library: Library, progress: Progress) -> ServedExperts:
        return ServedExperts(library, self.paths, self.settings, progress)


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How a model will be loaded, and what that takes."""

    order: LoadOrder
    total_bytes: int
    """Weights or what stays of them and the cache, context, and the program itself."""
    cache_bytes: int | None
    """Of experts; None where all weights are in memory."""
    resident_bytes: int | None
    """Of the weights that stay where experts stream."""
    choice: Choice | None = None
    """How this machine streams the model; None where that was not asked."""
    limit_bytes: int | None = None
    """Memory that it was told to keep to, or keeps to because it streams; None: nobody set a limit."""
    verdict: str | None = None
    """Of a model that is loaded whole: how it fits, where that was looked at and is worth a line."""

    def checked_by(self, recorded: Recorded | None) -> "LoadPlan":
        """The same, with what is read from disk held against a manifest."""
        if not isinstance(self.order, Streamed):
            return self
        settings = replace(self.order.settings, recorded=recorded)
        return replace(self, order=replace(self.order, settings=settings))

    def streamed_by(self, order: Streamed) -> "LoadPlan":
        """The same model streamed in another way, or with a smaller cache."""
        if order == self.order or self.cache_bytes is None:
            return self
        choice = self.choice or Choice(Mechanism.CACHE)
        mechanism = Mechanism.HINTS if order.settings.hints else Mechanism.CACHE
        return replace(
            self,
            order=order,
            cache_bytes=order.settings.cache_bytes,
            total_bytes=self.total_bytes - self.cache_bytes + order.settings.cache_bytes,
            choice=replace(choice, mechanism=mechanism, reason=choice.reason or "as it was tuned"),
        )

    def describe(self) -> str | None:
        """One line for whoever waits; None where there is nothing to say."""
        why = "" if self.choice is None or self.choice.reason is None else f"; {self.choice.reason}"
        if self.cache_bytes is None or self.resident_bytes is None:
            return f"loading it where it lies{why}" if why else self.verdict
        through = ""
        if self.choice is not None and self.choice.mechanism is Mechanism.HINTS:
            through = " through the page cache"
        return (
            f"streaming experts from disk{through}: {format_bytes(self.resident_bytes)} of the weights in memory, "
            f"{format_bytes(self.cache_bytes)} for experts, {format_bytes(self.total_bytes)} in all{why}"
        )


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why a model cannot be loaded within so much memory, in numbers."""

    memory_bytes: int
    """That may be taken."""
    whole_bytes: int
    """That it takes with all weights in memory."""
    least_bytes: int | None
    """That it takes streamed, with the smallest cache that works; None: it is not streamed."""
    resident_bytes: int
    """Of the weights that every token uses."""
    context_bytes: int
    reason: str | None = None
    """Why its experts are not streamed, or not on this machine; None where it has none, or where they could be."""

    @property
    def no_stream_reason(self) -> str:
        """Why `least_bytes` is None."""
        return "a model without experts cannot be streamed" if self.reason is None else f"not streamed: {self.reason}"

    def describe(self, smaller: str = "a smaller --ctx", *, offers_force: bool = False) -> str:
        """What is missing, and what to do.

        Args:
            smaller: what takes less, in the words of the command.
            offers_force: the command loads it all the same when told to.
        """
        force = ", or --force" if offers_force else ""
        shown = format_bytes(self.memory_bytes)
        if self.reason is not None:
            return (
                f"it needs {format_bytes(self.whole_bytes)} with its context, and {shown} may be used; it is not "
                f"streamed, because {self.reason}: use {smaller}, or give it more (--ram){force}"
            )
        if self.least_bytes is None:
            return (
                f"it needs {format_bytes(self.whole_bytes)} with its context, and {shown} may be used; "
                f"{self.no_stream_reason}: use {smaller}, or a smaller quantization{force}"
            )
        return (
            f"streamed, it needs at least {format_bytes(self.least_bytes)} ({format_bytes(self.resident_bytes)} of "
            f"weights that every token uses, {format_bytes(self.context_bytes)} for the context), and {shown} may be "
            f"used; use {smaller}, or give it more (--ram){force}; `dfqs plan` says with which settings it would "
            "run"
        )


def choose_load(
    source: Path | ModelFiles,
    settings: ContextSettings,
    ram: str | None,
    *,
    sequences: int = 1,
    others: Sequence[ContextSettings] = (),
    beside_bytes: int = 0,
    whole: InMemory | None = None,
    force: bool | None = None,
    smaller: str = "a smaller --ctx",
) -> LoadPlan:
    """Look at a model and at this machine, and choose.

    Args:
        settings: of the context that is going to be made.
        ram: a size, `auto` for what is free now with room left for others, or None: whole where that fits into what is
            free now, else as `auto`.
        sequences: that share the context, each its part of it.
        others: of contexts that are made in place of that one, before or after it.
        beside_bytes: that are taken for other things.
        whole: how to load it where it fits.
        force: load it even where it does not fit, and let the kernel read weights again and again; None: the command
            does not offer that.
        smaller: what takes less memory, in the words of the command.

    Raises:
        UsageError: `ram` is no size.
        SpaceError: it does not fit.
        RuntimeFailure: llama.cpp does not know the model, or not these settings.
    """
    model, whole = open_model(source), whole or InMemory()
    available = available_memory_bytes()
    if ram is None and _is_plenty(model, available, beside_bytes):
        return LoadPlan(whole, model.file_bytes + beside_bytes + PROGRAM_BYTES, None, None)
    memory = usable_memory_bytes(available) if ram in (None, "auto") else parse_size(ram)
    settings = replace(settings, n_seq_max=max(settings.n_seq_max, sequences))
    need = _largest_need(model, (settings, *others))
    used = model.spec.experts_used

    def choose(layout: StreamLayout) -> Choice:
        return choose_mechanism(read_facts(model.paths, layout, used))

    program = PROGRAM_BYTES + beside_bytes
    weighed = weigh_load(need, memory, used, model.paths, lambda: plan_layout(model.headers), choose, program)
    limit = memory if ram is not None else None
    if isinstance(weighed, Shortfall):
        total = weighed.whole_bytes
        if ram is None and total <= available:
            return LoadPlan(whole, total, None, None, verdict=_near(total, available, smaller))
        if not force:
            raise SpaceError(weighed.describe(smaller, offers_force=force is not None))
        forced = replace(whole, repack=False)
        return LoadPlan(forced, total, None, None, limit_bytes=limit, verdict=_too_much(total, memory))
    total = weighed.total_bytes
    if weighed.order.is_streamed or weighed.choice is not None:
        return replace(weighed, limit_bytes=memory)
    verdict = None if ram is None else f"it fits whole: {format_bytes(total)} of {format_bytes(memory)}"
    return LoadPlan(whole, total, None, None, limit_bytes=limit, verdict=verdict)


def foresee_load(model: ModelFiles, settings: ContextSettings, ram: str | None) -> LoadPlan | Shortfall:
    """What `choose_load` will find of a model that is not here yet, by its headers alone. How this machine would stream
    it is looked at when it is here.

    Raises:
        UsageError: `ram` is no size.
        RuntimeFailure: llama.cpp does not know the model, or not these settings.
    """
    available = available_memory_bytes()
    if ram is None and _is_plenty(model, available):
        return LoadPlan(InMemory(), model.file_bytes + PROGRAM_BYTES, None, None)
    memory = available if ram is None else usable_memory_bytes(available) if ram == "auto" else parse_size(ram)
    need = _largest_need(model, (settings,))
    whole = need.total_bytes + PROGRAM_BYTES
    if whole <= memory:
        return LoadPlan(InMemory(), whole, None, None)
    memory = usable_memory_bytes(available) if ram is None else memory
    return weigh_load(need, memory, model.spec.experts_used, (), lambda: plan_layout(model.headers))


def _is_plenty(model: ModelFiles, available: int, beside_bytes: int = 0) -> bool:
    """Whether so much is free that nobody needs to wait for an answer that is known."""
    return model.file_bytes * _PLENTY + beside_bytes + _SMALL_BYTES < available


def _too_much(total: int, memory: int) -> str:
    taken, allowed = format_bytes(total), format_bytes(memory)
    return f"it takes {taken}, and {allowed} may be used: weights will be read again and again (--force)"


def _near(total: int, available: int, smaller: str) -> str:
    return f"it takes {format_bytes(total)} of the {format_bytes(available)} that are free; {smaller} takes less"


def _largest_need(model: ModelFiles, contexts: Sequence[ContextSettings]) -> MemoryNeed:
    """Of the context that takes most. Those that llama.cpp refuses are refused again when they are made."""
    most = min(model.spec.context_tokens or DEFAULT_CONTEXT_TOKENS, DEFAULT_CONTEXT_TOKENS)
    with MemoryProbe(model) as probe:
        needs = [probe.need(replace(settings, n_ctx=settings.n_ctx or most)) for settings in contexts]
    return max(needs, key=lambda need: need.context_bytes)


def usable_memory_bytes(available: int | None = None) -> int:
    """What may be taken of memory, with room left for others; None: of what this machine has free now."""
    return int((available_memory_bytes() if available is None else available) * _OF_FREE)


def choose_cache(layout: StreamLayout) -> Choice:
    """What a machine does in whose way nothing stands."""
    return Choice(Mechanism.CACHE)


def weigh_load(
    need: MemoryNeed,
    memory_bytes: int,
    used: int,
    paths: tuple[Path, ...],
    layout_of: Callable[[], StreamLayout],
    choose: Callable[[StreamLayout], Choice] = choose_cache,
    program_bytes: int = PROGRAM_BYTES,
) -> LoadPlan | Shortfall:
    """The decision whether a model is loaded whole, streamed, or not at all. Pure.

    Args:
        need: of the context that is going to be made.
        memory_bytes: all that may be taken.
        used: experts that a token uses in a layer; 0 for a dense model.
        paths: of the model's files.
        layout_of: gives how they are cut; asked only where the whole does not fit.
        choose: how the machine streams such a layout; asked as `layout_of` is.
        program_bytes: that are taken beside the model and its context.
    """
    whole = need.total_bytes + program_bytes
    if whole <= memory_bytes:
        return LoadPlan(InMemory(), whole, None, None)
    layout = layout_of()
    choice = choose(layout)
    if choice.mechanism is Mechanism.WHOLE:
        total = need.context_bytes + program_bytes if choice.is_in_memory else whole
        if total <= memory_bytes:
            return LoadPlan(Mapped(), total, None, None, choice)
        return Shortfall(memory_bytes, total, None, need.weights_bytes, need.context_bytes, choice.reason)
    if not layout.experts:
        small = f"its experts are smaller than a page of memory ({PAGE_BYTES:,} bytes)" if used else None
        return Shortfall(memory_bytes, whole, None, need.weights_bytes, need.context_bytes, small)
    fixed = layout.resident_bytes + need.context_bytes + program_bytes
    least = fixed + least_cache_bytes(layout, used)
    if least > memory_bytes:
        return Shortfall(memory_bytes, whole, least, layout.resident_bytes, need.context_bytes)
    cache = min(memory_bytes - fixed, layout.experts_bytes)
    if choice.most_experts is not None:
        # Of experts of several sizes the small ones could be the ones that are held.
        cache = min(cache, choice.most_experts * min(layout.sizes.values()))
    settings = StreamSettings(cache, choice.mechanism is Mechanism.HINTS, choice.copies_borders)
    return LoadPlan(Streamed(paths, settings), fixed + cache, cache, layout.resident_bytes, choice)


def least_cache_bytes(layout: StreamLayout, used: int) -> int:
    """One token's experts of one layer: fewer cannot be there together."""
    return used * layout.largest_expert_bytes
