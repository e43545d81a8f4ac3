"""Tokens a second against memory: which experts are found there, what the others cost, and how fast that makes it.

Pure. Choices come from a routing trace, token by token, or are drawn with a skew that is made up and says so. Streamed,
the cache makes the decisions that it would make (`simulate_cache`); paged by the kernel, what was used least recently
is gone (`paging`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dfqs.planning.disk_probe import DiskSpeed
from dfqs.planning.paging import StackDistances, measure_distances
from dfqs.planning.speed import INTERVAL, Rate
from dfqs.records import Amount, Record, Share, Whole
from dfqs.routing.trace import TraceChunk, TraceHeader
from dfqs.streaming.lookahead import GuessRoom
from dfqs.streaming.policy import CacheUse, Pass, simulate_cache

POINTS = (0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of the file."""
SYNTHETIC_TOKENS = 600
SYNTHETIC_SKEW = 0.55
"""Choices are drawn with weight 1/rank^skew: of 64 experts the hottest 16 then take a little more than half, as they do
in models that were traced."""
_SEED = 11
WATCHED, READ_BESIDE = 1.06, 1.15
"""Computing a streamed token, as a multiple of one in memory: where the graph is only watched, and where the threads
that read and the pages that change places take time from it as well (docs/forecast.md)."""
GUESSED_RIGHT, _LOST_TO_HELD = 0.86, 0.22
"""Share of what is read ahead, for experts that are not in memory, that the next layer then chooses, and what of it is
lost by the share of choices that are: the surest guesses are held already. See docs/forecast.md; not known of a model
before it runs."""
AHEAD_SHARE = 0.65
"""Of what the disk gives in the time that a layer computes, as much is read ahead: guesses are read one at a time,
behind what is wanted."""
OVERLAP = (0.75, 0.9, 1.1)
"""Of the time that the disk takes, the share that a token waits for it (least, middle, most): the last matrix of an
expert is waited for later than the others."""
PAGED_WAIT = (1.0, 1.4, 1.9)
"""The same where the kernel pages: it reads more than is forecast, and one thread's fault holds up the others
(docs/forecast.md)."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Which experts tokens chose, one after the other."""

    passes: tuple[Pass, ...]
    source: str
    """A trace, or that it is made up."""
    experts: int
    layers: tuple[int, ...]
    used: int

    @property
    def warm(self) -> int:
        """Tokens at the start that fill the cache and are not counted."""
        return len(self.passes) // 3


class CurvePoint(Record):
    """One amount of memory."""

    memory_bytes: Whole
    """For the whole process."""
    of_file: Amount
    cache_bytes: Whole | None
    """For experts, streamed; null where the rest leaves nothing for them, or all is in memory."""
    hit_share: Share | None
    streamed_bytes_per_token: Amount | None
    """What is read ahead for nothing included."""
    streamed: Rate | None
    paged_bytes_per_token: Amount | None
    paged: Rate | None


@dataclass(frozen=True, slots=True)
class CurveModel:
    """A model as the curve needs it."""

    sizes: dict[tuple[int, int], int]
    """Bytes of each (layer, expert)."""
    resident_bytes: int
    """Weights that every token uses."""
    other_bytes: int
    """Context and program."""
    file_bytes: int
    token_s: float
    """With all weights in memory."""
    guess_room: Callable[[int], GuessRoom] = lambda _: GuessRoom(0, 0)
    """Of a cache of so many bytes, what is for reading ahead."""
    interval: float = INTERVAL
    """Of `token_s`: it may be so many times as long or as short."""


@dataclass(frozen=True, slots=True)
class _StreamedBytes:
    """Of one token."""

    wanted: float
    """That the cache does not hold."""
    ahead: float
    """Of them, those that are read before it is known: while nothing else is."""
    unused: float
    """Read ahead for nothing."""

    @property
    def read(self) -> float:
        return self.wanted + self.unused


def read_choices(header: TraceHeader, chunks: Iterable[TraceChunk], source: str, most: int = 2000) -> Choices:
    """The choices of a trace, its first `most` tokens; prompts follow each other."""
    passes: list[Pass] = []
    for chunk in chunks:
        for token in range(len(chunk)):
            passes.append([(layer, chunk.ids[row, token].tolist()) for row, layer in enumerate(header.layers)])
            if len(passes) == most:
                break
        if len(passes) == most:
            break
    return Choices(tuple(passes), source, header.model.experts, header.layers, header.model.experts_used)


def draw_choices(
    layers: Sequence[int], experts: int, used: int, skew: float = SYNTHETIC_SKEW, tokens: int = SYNTHETIC_TOKENS
) -> Choices:
    """Made up: each layer prefers experts of its own, and one token's choice says nothing of the next's."""
    random = np.random.default_rng(_SEED)
    weights = np.arange(1, experts + 1, dtype=np.float64) ** -skew
    orders = {layer: random.permutation(experts) for layer in layers}
    logs = np.log(weights)

    def draw() -> Iterator[Pass]:
        for _ in range(tokens):
            # The largest of logs of weights with Gumbel noise: drawn without putting back (Vieira 2014).
            noisy = logs + random.gumbel(size=(len(layers), experts))
            best = np.argsort(-noisy, axis=1)[:, :used]
            yield [(layer, orders[layer][row].tolist()) for layer, row in zip(layers, best, strict=True)]

    source = "synthetic: no trace was given" if skew else "uniform: every expert equally likely"
    return Choices(tuple(draw()), source, experts, tuple(layers), used)


def plot_points(model: CurveModel, shares: Sequence[float] = POINTS) -> list[int]:
    """Amounts of memory to look at: shares of the file."""
    return [int(model.file_bytes * share) for share in shares]


def draw_curve(
    model: CurveModel, choices: Choices, disk: DiskSpeed | None, memory: Sequence[int], warm: int | None = None
) -> list[CurvePoint]:
    """Rates at each amount of memory.

    Args:
        disk: None: not known, and neither are rates where something is read.
        warm: tokens that fill the cache and are not counted; None: the first third.
    """
    counted = choices.warm if warm is None else warm
    uses = None if disk is None else measure_distances(model.sizes, model.resident_bytes, choices.passes, counted)
    return [_point(model, choices, disk, uses, bytes_, counted) for bytes_ in memory]


def _point(
    model: CurveModel,
    choices: Choices,
    disk: DiskSpeed | None,
    uses: StackDistances | None,
    memory_bytes: int,
    warm: int,
) -> CurvePoint:
    room = memory_bytes - model.resident_bytes - model.other_bytes
    everything = sum(model.sizes.values())
    whole = room >= everything
    use = None
    streamed = _StreamedBytes(0.0, 0.0, 0.0) if whole else None
    if 0 < room < everything:
        guesses = model.guess_room(room)
        use = simulate_cache(model.sizes, room - guesses.bytes, choices.passes, warm_passes=warm)
        if use.bytes_per_pass is not None:
            streamed = _read_ahead(model, use, guesses, len(choices.layers), disk)
    paged_bytes = 0.0 if whole else None
    if not whole and disk is not None and uses is not None and memory_bytes > model.other_bytes:
        paged_bytes = uses.paged_bytes(memory_bytes - model.other_bytes, disk.paged.read_per_wanted)
    return CurvePoint(
        memory_bytes=memory_bytes,
        of_file=memory_bytes / model.file_bytes,
        cache_bytes=room if use is not None else None,
        hit_share=use.hit_rate if use is not None else None,
        streamed_bytes_per_token=None if streamed is None else streamed.read,
        streamed=None if streamed is None else _streamed_rate(model, streamed, disk),
        paged_bytes_per_token=paged_bytes,
        paged=None if paged_bytes is None else _paged_rate(model, paged_bytes, disk),
    )


def _read_ahead(
    model: CurveModel, use: CacheUse, guesses: GuessRoom, layers: int, disk: DiskSpeed | None
) -> _StreamedBytes:
    """What is read while the disk would stand still: of what a layer misses as much as there is room for, and as the
    disk gives while a layer computes."""
    wanted = use.bytes_per_pass or 0.0
    if disk is None:
        return _StreamedBytes(wanted, 0.0, 0.0)
    most = min(guesses.bytes, AHEAD_SHARE * model.token_s / layers * disk.direct.bytes_per_s)
    begun = sum(min(bytes_, most) * times for bytes_, times in use.layer_reads.items()) / use.passes
    right = GUESSED_RIGHT - _LOST_TO_HELD * (use.hit_rate or 0.0)
    return _StreamedBytes(wanted, begun * right, begun * (1 - right))


def _streamed_rate(model: CurveModel, bytes_: _StreamedBytes, disk: DiskSpeed | None) -> Rate | None:
    if not bytes_.read:
        return Rate.around(model.token_s, model.interval)
    if disk is None:
        return None
    waited = bytes_.wanted - bytes_.ahead
    fast = model.token_s * WATCHED / model.interval + OVERLAP[0] * waited / disk.direct.high
    # Guesses that are all wrong, or too late.
    slow = model.token_s * READ_BESIDE * model.interval + OVERLAP[2] * bytes_.read / disk.direct.low
    middle = model.token_s * READ_BESIDE + OVERLAP[1] * waited / disk.direct.bytes_per_s
    return Rate(tokens_per_s=1 / middle, low=1 / slow, high=1 / fast)


def _paged_rate(model: CurveModel, read_bytes: float, disk: DiskSpeed | None) -> Rate | None:
    if not read_bytes:
        return Rate.around(model.token_s, model.interval)
    if disk is None:
        return None
    wanted = read_bytes / disk.paged.read_per_wanted
    fast = model.token_s / model.interval + PAGED_WAIT[0] * wanted / disk.paged.high
    slow = model.token_s * model.interval + PAGED_WAIT[2] * wanted / disk.paged.low
    middle = model.token_s + PAGED_WAIT[1] * wanted / disk.paged.bytes_per_s
    return Rate(tokens_per_s=1 / middle, low=1 / slow, high=1 / fast)
