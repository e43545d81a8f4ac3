"""Which settings make a context fit: a search over the few that move memory by gigabytes. Asks, and has no formulas.

A *lever* is a setting with a value that takes less memory. What was asked for is tried first, then all levers together;
where that is enough, those are let go again that are not needed, the dearest first. Each lever that is then in use is
turned back once: where it does not fit any more, it is named as needed, also where it is what dfqs does by itself,
because other programs do not.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from dfqs.errors import RuntimeFailure
from dfqs.planning.document import NeededSetting
from dfqs.runtime.memory import SLIDING, MemoryNeed
from dfqs.runtime.requests import ContextSettings
from dfqs.streaming.budget import PROGRAM_BYTES

SMALL_UBATCH = 64
LEAST_CONTEXT_TOKENS = 512
_WIDE_CACHES = ("f32", "f16", "bf16")

Ask = Callable[[ContextSettings], MemoryNeed]
"""Raises RuntimeFailure where the runtime refuses the settings."""
Fits = Callable[[MemoryNeed], bool]


@dataclass(frozen=True, slots=True)
class Lever:
    """A setting, and what it may be turned to."""

    name: str
    saving: dict[str, Any]
    """Fields of `ContextSettings` with which less memory is taken."""
    plain: dict[str, Any]
    """The values that they have where nobody thinks of them."""
    value: str
    otherwise: str

    def in_use(self, settings: ContextSettings) -> bool:
        return all(getattr(settings, name) == value for name, value in self.saving.items())


_WINDOW = Lever("swa_full", {"swa_full": False}, {"swa_full": True}, "off", "on")
_FLASH = Lever("flash_attention", {"flash_attention": "on"}, {"flash_attention": "off"}, "on", "off")
_KV = Lever("kv", {"type_k": "q8_0", "type_v": "q8_0"}, {"type_k": "f16", "type_v": "f16"}, "q8_0", "f16")


def levers_for(asked: ContextSettings, *, deterministic: bool = False) -> tuple[Lever, ...]:
    """Levers, the cheapest in what it costs the user first.

    Args:
        deterministic: numerics stay as they are; the tokens that are computed at a time do not touch them.
    """
    usual = max(asked.n_ubatch, ContextSettings().n_ubatch)
    ubatch = Lever("ubatch", {"n_ubatch": SMALL_UBATCH}, {"n_ubatch": usual}, str(SMALL_UBATCH), str(usual))
    if deterministic:
        return (_WINDOW, ubatch)
    narrow = asked.type_k not in _WIDE_CACHES or asked.type_v not in _WIDE_CACHES
    kept = narrow_caches(asked) if narrow else _KV
    return (_WINDOW, _FLASH, ubatch, kept)


def narrow_caches(asked: ContextSettings) -> Lever:
    """Caches that are narrow already, as a lever that is in use."""
    name = asked.type_k if asked.type_k == asked.type_v else f"{asked.type_k}/{asked.type_v}"
    return Lever("kv", {"type_k": asked.type_k, "type_v": asked.type_v}, _KV.plain, name, _KV.otherwise)


@dataclass(frozen=True, slots=True)
class Found:
    """Settings with which a context fits."""

    settings: ContextSettings
    need: MemoryNeed
    needed: tuple[NeededSetting, ...]


class Search:
    """One question to the runtime after the other, none twice, and none whose answer follows from another's.

    Args:
        ask: the runtime. Ask for the longest context first: what fits there fits at shorter ones.
        expect: told of questions that come next, where there are several.
    """

    def __init__(self, ask: Ask, expect: Callable[[list[ContextSettings]], None] = lambda _: None) -> None:
        self._ask = ask
        self._expect = expect
        self._totals: dict[ContextSettings, list[tuple[int, int]]] = {}
        self.refusals: dict[ContextSettings, str] = {}
        """What the runtime said to settings that it does not take."""

    def need(self, settings: ContextSettings) -> MemoryNeed | None:
        """None: refused."""
        try:
            found = self._ask(settings)
        except RuntimeFailure as error:
            self.refusals[settings] = str(error)
            return None
        length = settings.n_ctx or found.context_tokens
        self._totals.setdefault(replace(settings, n_ctx=None), []).append((length, found.total_bytes))
        return found

    def find(self, asked: ContextSettings, levers: tuple[Lever, ...], fits: Fits) -> Found | None:
        """The settings nearest to what was asked for that fit; None: none do."""
        settings, need = asked, self.need(asked)
        if need is not None and need.flash_attention and asked.flash_attention == "auto":
            settings = replace(asked, flash_attention="on")
        changed: set[str] = set()
        if need is None or not fits(need):
            open_levers = [lever for lever in levers if not lever.in_use(settings)]
            if need is not None:
                open_levers = [lever for lever in open_levers if lever.name != "swa_full" or _has_window(need)]
            reduced = self._reduce(settings, open_levers, fits)
            if reduced is None:
                return None
            settings, need, changed = reduced
        needed = tuple(self._needed(settings, need, levers, changed, fits))
        return Found(settings, need, needed)

    def _reduce(
        self, asked: ContextSettings, levers: list[Lever], fits: Fits
    ) -> tuple[ContextSettings, MemoryNeed, set[str]] | None:
        """With all levers in use, and then without those that can be spared, the last of them first."""
        used = list(levers)
        self._expect([_with(asked, used), *([_with(asked, used[:-1])] if len(used) > 1 else [])])
        need = self.need(_with(asked, used)) if used else None
        if need is None or not fits(need):
            return None
        for lever in reversed(levers):
            fewer = [other for other in used if other is not lever]
            spared = self.need(_with(asked, fewer))
            if fewer and spared is not None and fits(spared):
                used, need = fewer, spared
        return _with(asked, used), need, {lever.name for lever in used}

    def _needed(
        self, settings: ContextSettings, need: MemoryNeed, levers: Iterable[Lever], changed: set[str], fits: Fits
    ) -> Iterator[NeededSetting]:
        """Levers in use that cannot be turned back."""
        turned = [
            (lever, replace(settings, **lever.plain))
            for lever in levers
            if lever.in_use(settings) and (lever.name != "swa_full" or _has_window(need))
        ]
        open_ = [(lever, back) for lever, back in turned if back != settings]
        open_ = [(lever, back) for lever, back in open_ if not self._known_to_fit(back, fits, need)]
        self._expect([back for _, back in open_])
        for lever, back in open_:
            otherwise = self.need(back)
            if otherwise is not None and fits(otherwise):
                continue
            yield NeededSetting(
                name=lever.name,
                value=lever.value,
                changed=lever.name in changed,
                otherwise=lever.otherwise,
                otherwise_bytes=None if otherwise is None else otherwise.total_bytes + PROGRAM_BYTES,
            )

    def _known_to_fit(self, settings: ContextSettings, fits: Fits, like: MemoryNeed) -> bool:
        """Whether the same settings fit at a longer context, which takes at least as much."""
        known = self._totals.get(replace(settings, n_ctx=None), [])
        longer = [total for length, total in known if length >= (settings.n_ctx or length)]
        if not longer:
            return False
        most = min(longer)
        return fits(replace(like, kv_bytes=most - like.weights_bytes, compute_bytes=0, output_bytes=0))

    def shorter(
        self, asked: ContextSettings, levers: tuple[Lever, ...], fits: Fits
    ) -> tuple[ContextSettings, MemoryNeed] | None:
        """The longest context of half, a quarter, ... of what was asked for that fits with all levers in use."""
        tokens = (asked.n_ctx or 0) // 2
        while tokens >= LEAST_CONTEXT_TOKENS:
            settings = _with(replace(asked, n_ctx=tokens), levers)
            need = self.need(settings)
            if need is not None and fits(need):
                return settings, need
            tokens //= 2
        return None


def _with(settings: ContextSettings, levers: Iterable[Lever]) -> ContextSettings:
    for lever in levers:
        settings = replace(settings, **lever.saving)
    return settings


def _has_window(need: MemoryNeed) -> bool:
    return any(part.name == SLIDING for part in need.parts)
