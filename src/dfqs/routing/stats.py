"""What a trace says about its model's experts: load, hot set, company, working set. One pass, bounded memory."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dfqs.errors import UsageError
from dfqs.records import Document, Record
from dfqs.routing.coherence import are_logits, bin_start, context_bins, router_distribution
from dfqs.routing.identity import ModelIdentity
from dfqs.routing.reuse import ReuseProfile, StackDistances
from dfqs.routing.trace import Ids, RouteConditions, TraceChunk, TraceHeader, join_chunks
from dfqs.routing.tracefile import TraceReader

BLOCK_TOKENS = 256
WINDOWS = (1, 4, 16, 64, BLOCK_TOKENS)
TOP_PAIRS = 20
LEAST_LIFT = 1.1
MAX_PAIRS = 1 << 25
"""Layers x experts^2. DeepSeek-V3 has 4 million, 94 layers of 512 experts 25 million."""
MAX_EXPERTS_COUNTED = 2048
MAX_BLOCKS = 1 << 16
"""Layers x experts. 94 layers of 512 experts are 48 thousand."""
MAX_CHOICES = 1 << 13
"""Experts that one token uses in all layers. DeepSeek-V3 uses 464."""
MAX_TOGETHER = 1 << 21
"""Layers x experts used^2. DeepSeek-V3 has 4 thousand."""
_BINS = 26
_HOT_SHARE = 0.5
_PART_TOKENS = 32
"""Whose scores are made into distributions at a time."""


class LayerLoad(Record):
    """How one layer's choices fall on its experts."""

    layer: int
    counts: tuple[int, ...]
    """Tokens that chose each expert."""
    entropy_bits: float
    """Of the load; log2(experts) when balanced."""
    entropy_share: float
    """Of that maximum."""
    hot_experts: int
    """The fewest experts that take half of the load; experts / 2 when balanced."""
    unused_experts: int
    unique_experts: tuple[float | None, ...]
    """Mean number of different experts in windows of `windows` consecutive tokens; null: no such window."""


class ExpertPair(Record):
    """Two experts of a layer that are chosen together more often than their loads explain."""

    layer: int
    experts: tuple[int, int]
    tokens: int
    lift: float
    """Times as often as if the two were chosen independently."""


class ContextEntropy(Record):
    """Entropy at positions `[start, stop)` of prompts, mean over layers that are not hash-routed."""

    start: int
    stop: int
    tokens: int
    load_bits: float | None
    """Of the load in windows of 256 tokens; null: no whole window starts here."""
    router_bits: float | None
    """Of the router's distribution for one token; null: the trace holds no scores."""


class RouteStats(Document):
    """What `dfqs route stats` found."""

    schema_: Literal["dfqs.route-stats/1"] = Field(default="dfqs.route-stats/1", alias="schema")
    earlier_keys = (("format", "schema"),)
    trace_sha256: str
    model: ModelIdentity
    conditions: RouteConditions
    tokens: int
    prompts: int
    hash_layers: tuple[int, ...]
    windows: tuple[int, ...] = WINDOWS
    layers: tuple[LayerLoad, ...]
    pairs: tuple[ExpertPair, ...]
    by_context: tuple[ContextEntropy, ...]
    reuse: ReuseProfile


def measure_stats(path: Path) -> RouteStats:
    """Read a trace once and describe it.

    Raises:
        FormatError: the file is no trace, or was changed.
        UsageError: it holds no tokens, or counting it would need memory without end.
    """
    with TraceReader(path) as reader:
        header = reader.header
        tally = StatsTally(header)
        for block in aligned_blocks(reader.chunks()):
            tally.add(block)
        if not tally.tokens:
            raise UsageError(f"{path} holds no tokens")
        return RouteStats(
            trace_sha256=reader.sha256 or "",
            model=header.model,
            conditions=header.conditions,
            tokens=tally.tokens,
            prompts=tally.prompts,
            hash_layers=header.hash_layers,
            layers=tuple(tally.describe_layer(row) for row in range(len(header.layers))),
            pairs=tally.describe_pairs(),
            by_context=tally.describe_context(),
            reuse=tally.distances.profile(),
        )


def aligned_blocks(chunks: Iterable[TraceChunk]) -> Iterator[TraceChunk]:
    """The same tokens cut at every multiple of `BLOCK_TOKENS` of their prompts, whatever their chunks were."""
    held: list[TraceChunk] = []
    for chunk in chunks:
        if held and chunk.prompt != held[0].prompt:
            yield join_chunks(held)
            held = []
        start = 0
        while start < len(chunk):
            room = BLOCK_TOKENS - (chunk.position + start) % BLOCK_TOKENS
            part = chunk.part(start, min(start + room, len(chunk)))
            held.append(part)
            start += len(part)
            if len(part) == room:
                yield join_chunks(held)
                held = []
    if held:
        yield join_chunks(held)


class StatsTally:
    """Counts over aligned blocks."""

    def __init__(self, header: TraceHeader) -> None:
        layers, model = len(header.layers), header.model
        if (
            layers * model.experts**2 > MAX_PAIRS
            or model.experts > MAX_EXPERTS_COUNTED
            or layers * model.experts > MAX_BLOCKS
            or layers * model.experts_used > MAX_CHOICES
            or layers * model.experts_used**2 > MAX_TOGETHER
        ):
            raise UsageError(
                f"{layers:,} layers with {model.experts_used:,} of {model.experts:,} experts used are more than can be "
                "counted in bounded memory"
            )
        self.header = header
        self.tokens = self.prompts = 0
        self.loads = np.zeros((layers, model.experts), np.int64)
        self.together = np.zeros((layers, model.experts, model.experts), np.int32)
        """Tokens that chose both experts, the lower number first."""
        self.unique = np.zeros((len(WINDOWS), layers))
        self.windows = np.zeros(len(WINDOWS), np.int64)
        self.distances = StackDistances(layers, model.experts, model.experts_used)
        self._bin_tokens = np.zeros(_BINS, np.int64)
        self._load_bits, self._load_windows = np.zeros(_BINS), np.zeros(_BINS, np.int64)
        self._router_bits = np.zeros(_BINS)

    def add(self, block: TraceChunk) -> None:
        """Count one block."""
        chosen = one_hot(block.ids, self.header.model.experts)
        self.tokens += len(block)
        self.prompts = block.prompt + 1
        loads = chosen.sum(1, dtype=np.int64)
        self.loads += loads
        self._add_pairs(np.sort(block.ids, axis=-1).astype(np.int64))
        self.distances.add(block.ids)
        for row, window in enumerate(WINDOWS):
            whole = len(block) // window
            if whole:
                parts = chosen[:, : whole * window].reshape(len(chosen), whole, window, -1)
                self.unique[row] += parts.any(2).sum((1, 2))
                self.windows[row] += whole
        self._add_context(block, loads)

    def _add_pairs(self, ids: NDArray[np.int64]) -> None:
        experts, used = self.header.model.experts, ids.shape[-1]
        first, second = np.triu_indices(used, 1)
        base = (np.arange(len(ids)) * experts * experts)[:, None, None]
        step = max(1, MAX_TOGETHER // (len(ids) * used * used))
        for start in range(0, ids.shape[1], step):
            part = ids[:, start : start + step]
            np.add.at(self.together.reshape(-1), base + part[..., first] * experts + part[..., second], 1)

    def _add_context(self, block: TraceChunk, loads: NDArray[np.int64]) -> None:
        learned = self.header.learned_rows
        bins = context_bins(block.position + np.arange(len(block)))
        np.add.at(self._bin_tokens, bins, 1)
        if len(block) == BLOCK_TOKENS and learned:
            self._load_bits[bins[0]] += np.mean([entropy_bits(loads[row]) for row in learned])
            self._load_windows[bins[0]] += 1
        if block.probabilities is not None and learned:
            logits = are_logits(block.probabilities[learned])
            for start in range(0, len(block), _PART_TOKENS):
                part = slice(start, start + _PART_TOKENS)
                p = router_distribution(block.probabilities[learned, part], logits)
                bits = -(p * np.log2(np.maximum(p, np.finfo(np.float32).tiny))).sum(-1).mean(0)
                np.add.at(self._router_bits, bins[part], bits)

    def describe_layer(self, row: int) -> LayerLoad:
        """One layer's load."""
        counts = self.loads[row]
        bits = entropy_bits(counts)
        descending = np.sort(counts)[::-1].cumsum()
        return LayerLoad(
            layer=self.header.layers[row],
            counts=tuple(int(count) for count in counts),
            entropy_bits=bits,
            entropy_share=bits / float(np.log2(len(counts))),
            hot_experts=int(np.searchsorted(descending, _HOT_SHARE * descending[-1])) + 1,
            unused_experts=int((counts == 0).sum()),
            unique_experts=tuple(
                float(self.unique[index, row] / count) if count else None for index, count in enumerate(self.windows)
            ),
        )

    def describe_pairs(self) -> tuple[ExpertPair, ...]:
        """The pairs of highest lift, among those that chance alone would bring together ten times or more."""
        found: list[tuple[float, int, int, int]] = []
        upper = np.triu(np.ones(self.together.shape[1:], np.bool_), 1)
        for row, together in enumerate(self.together):
            load = self.loads[row].astype(np.float32)
            expected = np.outer(load, load) / max(1, self.tokens)
            lift = np.where(upper & (expected >= 10), together / np.maximum(expected, 1), np.float32(0))
            for index in np.argsort(-lift, axis=None, kind="stable")[:TOP_PAIRS]:
                first, second = np.unravel_index(int(index), lift.shape)
                found.append((float(lift[first, second]), row, int(first), int(second)))
        # Stable: of equal lifts the lower layer first.
        found.sort(key=lambda pair: -pair[0])
        return tuple(
            ExpertPair(layer=self.header.layers[row], experts=(a, b), tokens=int(self.together[row, a, b]), lift=lift)
            for lift, row, a, b in found[:TOP_PAIRS]
            if lift >= LEAST_LIFT
        )

    def describe_context(self) -> tuple[ContextEntropy, ...]:
        """Entropy by context."""
        has_scores = bool(self.header.scores) and bool(self.header.learned_rows)
        return tuple(
            ContextEntropy(
                start=bin_start(index),
                stop=bin_start(index + 1),
                tokens=int(count),
                load_bits=float(self._load_bits[index] / self._load_windows[index])
                if self._load_windows[index]
                else None,
                router_bits=float(self._router_bits[index] / count) if has_scores else None,
            )
            for index, count in enumerate(self._bin_tokens)
            if count
        )


def one_hot(ids: Ids, experts: int) -> NDArray[np.bool_]:
    """Whether each expert was chosen. [layers, tokens, used] -> [layers, tokens, experts]"""
    chosen = np.zeros((*ids.shape[:-1], experts), np.bool_)
    np.put_along_axis(chosen, ids.astype(np.int64), True, axis=-1)
    return chosen


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Entropy of a load, in bits; 0 for no load."""
    total = counts.sum()
    shares = counts[counts > 0] / total if total else np.ones(1)
    return float(-(shares * np.log2(shares)).sum()) + 0.0
