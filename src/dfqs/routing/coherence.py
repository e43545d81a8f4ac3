"""How well two traces of one model agree: between quantizations, runtimes, or settings, on the same tokens.

One pass over both files, a chunk of each in memory. Every share is 1 for a trace against itself, exactly.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dfqs.errors import UsageError
from dfqs.records import Document, Record
from dfqs.routing.identity import ModelIdentity
from dfqs.routing.runs import same_sets
from dfqs.routing.trace import Ids, RouteConditions, Scores, TraceChunk, TraceHeader, pair_chunks
from dfqs.routing.tracefile import TraceReader

FIRST_BIN_TOKENS = 64
"""Context is binned by position: [0, 64), [64, 128), [128, 256), and so on, each twice as long."""
_BINS = 26
_PART_ENTRIES = 1 << 20
"""Ids or scores that are compared at a time: bounds the memory of numbers made of them."""


class Coherence(Record):
    """Agreement over a number of decisions (layers x tokens). Null where the traces hold no scores."""

    decisions: int
    jaccard: float
    """Mean of |both| / |either| of the two sets of chosen experts."""
    same_set: float
    """Share of decisions with the same set."""
    top1: float
    """Share with the same first expert."""
    weight_overlap: float | None
    """Mean routing weight on the same experts: the sum of the smaller weights, where those of the chosen sum to 1."""
    kl_nats: float | None
    """Mean Kullback-Leibler divergence of the router's distribution over all experts, reference || other."""
    chance_jaccard: float | None
    """The same for the other trace's decisions moved to other tokens of the chunk: equal loads, no coherence."""
    chance_top1: float | None

    @property
    def above_chance(self) -> float | None:
        """Jaccard on a scale where shuffled decisions are 0 and equal ones 1."""
        if self.chance_jaccard is None or self.chance_jaccard >= 1:
            return None
        return (self.jaccard - self.chance_jaccard) / (1 - self.chance_jaccard)


class LayerCoherence(Coherence):
    """Of one layer."""

    layer: int


class ContextCoherence(Coherence):
    """Of tokens at positions `[start, stop)` of their prompts, over the layers that are not hash-routed."""

    start: int
    stop: int


class TraceSide(Record):
    """One of the two traces."""

    sha256: str
    model: ModelIdentity
    conditions: RouteConditions


class RouteDiff(Document):
    """What `dfqs route diff` found."""

    schema_: Literal["dfqs.route-diff/1"] = Field(default="dfqs.route-diff/1", alias="schema")
    earlier_keys = (("format", "schema"),)
    reference: TraceSide
    other: TraceSide
    differing_conditions: tuple[str, ...]
    notices: tuple[str, ...]
    tokens: int
    hash_layers: tuple[int, ...]
    uniform_chance_jaccard: float
    """Expected Jaccard of two random sets of this size."""
    uniform_chance_top1: float
    overall: Coherence
    """Over the layers that are not hash-routed (over all, if every layer is)."""
    by_layer: tuple[LayerCoherence, ...]
    by_context: tuple[ContextCoherence, ...]


def uniform_chance_jaccard(experts: int, used: int) -> float:
    """Expected Jaccard index of two independent uniform `used`-subsets of `experts` (hypergeometric)."""
    both = range(max(0, 2 * used - experts), used + 1)
    logs = [-sum(math.lgamma(n + 1) for n in (k, used - k, used - k, experts - 2 * used + k)) for k in both]
    largest = max(logs)
    weights = [math.exp(value - largest) for value in logs]
    return math.fsum(w * k / (2 * used - k) for w, k in zip(weights, both, strict=True)) / math.fsum(weights)


def compare_headers(reference: TraceHeader, other: TraceHeader) -> tuple[str, ...]:
    """Check that two traces are of one model.

    Returns:
        Sentences on what could not be proved.

    Raises:
        UsageError: they are of different models or tokenizers; says what differs.
    """
    a, b = reference.model, other.model
    for what, left, right in (
        ("architectures", a.architecture, b.architecture),
        ("numbers of layers", a.layers, b.layers),
        ("numbers of experts", a.experts, b.experts),
        ("numbers of experts used", a.experts_used, b.experts_used),
        ("routed layers", reference.layers, other.layers),
        ("hash-routed layers", reference.hash_layers, other.hash_layers),
    ):
        if left != right:
            raise UsageError(f"the traces are of different models: their {what} differ ({left} and {right})")
    if a.tokenizer_sha256 != b.tokenizer_sha256:
        raise UsageError(
            "the traces are of different tokenizers: their tokens do not mean the same "
            f"({_short(a.tokenizer_sha256)} and {_short(b.tokenizer_sha256)})"
        )
    if a.header_sha256 == b.header_sha256:
        return ()
    if a.router_sha256 is None or b.router_sha256 is None:
        return ("a router is quantized, so it is not proved that both traces are of one model",)
    if a.router_sha256 != b.router_sha256:
        raise UsageError(
            "the traces are of different models: the weights of their routers differ "
            f"({_short(a.router_sha256)} and {_short(b.router_sha256)})"
        )
    return ()


def diff_traces(reference: Path, other: Path) -> RouteDiff:
    """Compare two trace files.

    Raises:
        FormatError: a file is no trace, or was changed.
        UsageError: they are of different tokens, models or tokenizers; says what differs.
    """
    with TraceReader(reference) as first, TraceReader(other) as second:
        notices = compare_headers(first.header, second.header)
        if first.header.scores != second.header.scores:
            notices += ("only one of the traces holds scores: no weight overlap, no divergence",)
        tally = measure_coherence(first.header, pair_chunks(first.chunks(), second.chunks()))
        sides = [
            TraceSide(sha256=reader.sha256 or "", model=reader.header.model, conditions=reader.header.conditions)
            for reader in (first, second)
        ]
        header = first.header
    model = header.model
    learned = header.learned_rows or list(range(len(header.layers)))
    overall = Coherence(**tally.over(learned, list(range(_BINS))))
    if not header.learned_rows or (overall.chance_jaccard is not None and overall.chance_jaccard >= 1):
        notices += ("the experts do not depend on the token, or follow from it alone: agreement proves nothing here",)
    return RouteDiff(
        reference=sides[0],
        other=sides[1],
        differing_conditions=sides[0].conditions.differences(sides[1].conditions),
        notices=notices,
        tokens=tally.tokens,
        hash_layers=header.hash_layers,
        uniform_chance_jaccard=uniform_chance_jaccard(model.experts, model.experts_used),
        uniform_chance_top1=1 / model.experts,
        overall=overall,
        by_layer=tuple(
            LayerCoherence(layer=layer, **tally.over([row], list(range(_BINS))))
            for row, layer in enumerate(header.layers)
        ),
        by_context=tuple(
            ContextCoherence(start=bin_start(bin_), stop=bin_start(bin_ + 1), **tally.over(learned, [bin_]))
            for bin_ in range(_BINS)
            if tally.counts[0, bin_]
        ),
    )


def bin_start(bin_: int) -> int:
    """First position of a context bin."""
    return 0 if bin_ == 0 else FIRST_BIN_TOKENS << (bin_ - 1)


def context_bins(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bin that each position falls into."""
    return np.minimum(_BINS - 1, np.frexp(positions // FIRST_BIN_TOKENS)[1]).astype(np.int64)


def _grid(layers: int) -> NDArray[np.float64]:
    return np.zeros((layers, _BINS))


@dataclass(slots=True)
class CoherenceTally:
    """Sums over decisions, by layer and context bin."""

    layers: int
    counts: NDArray[np.float64] = field(init=False)
    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    shuffled: NDArray[np.float64] = field(init=False)
    """Decisions that the chance baseline was taken over."""
    tokens: int = 0

    def __post_init__(self) -> None:
        self.counts, self.shuffled = _grid(self.layers), _grid(self.layers)

    def add(self, a: TraceChunk, b: TraceChunk) -> None:
        """Count the same tokens of two traces."""
        self.tokens += len(a)
        moved = np.roll(b.ids, len(a) // 2, axis=1) if len(a) > 1 else None
        widest = a.ids.shape[-1] if a.probabilities is None else a.probabilities.shape[-1]
        step = max(1, _PART_ENTRIES // (self.layers * widest))
        logits = (are_logits(a.probabilities), are_logits(b.probabilities))
        for start in range(0, len(a), step):
            part = slice(start, start + step)
            shuffled = None if moved is None else moved[:, part]
            self._add_part(a.part(part.start, part.stop), b.part(part.start, part.stop), shuffled, logits)

    def _add_part(self, a: TraceChunk, b: TraceChunk, moved: Ids | None, logits: tuple[bool, bool]) -> None:
        bins = context_bins(a.position + np.arange(len(a)))
        self._sum("jaccard", jaccard(a.ids, b.ids), bins)
        self._sum("same_set", same_sets(a.ids, b.ids), bins)
        self._sum("top1", a.ids[..., 0] == b.ids[..., 0], bins)
        np.add.at(self.counts.T, bins, 1)
        if a.probabilities is not None and b.probabilities is not None:
            sides = zip((a, b), logits, strict=True)
            weights = [chosen_weights(chunk.probabilities, chunk.ids, known) for chunk, known in sides]
            self._sum("weight_overlap", 1 - np.abs(weights[0] - weights[1]).sum(-1) / 2, bins)
            self._sum("kl_nats", divergence(a.probabilities, b.probabilities, logits), bins)
        if moved is not None:
            self._sum("chance_jaccard", jaccard(a.ids, moved), bins)
            self._sum("chance_top1", a.ids[..., 0] == moved[..., 0], bins)
            np.add.at(self.shuffled.T, bins, 1)

    def _sum(self, name: str, values: NDArray[np.generic], bins: NDArray[np.int64]) -> None:
        total = self.sums.setdefault(name, _grid(self.layers))
        np.add.at(total.T, bins, values.astype(np.float64).T)

    def over(self, rows: list[int], bins: list[int]) -> dict[str, float | int | None]:
        """Fields of a `Coherence` over some layers and bins."""
        cells = np.ix_(rows, bins)
        fields: dict[str, float | int | None] = {"decisions": int(self.counts[cells].sum())}
        for name in Coherence.model_fields.keys() - {"decisions"}:
            counted = self.shuffled if name.startswith("chance_") else self.counts
            count = float(counted[cells].sum())
            known = name in self.sums and count > 0
            fields[name] = float(self.sums[name][cells].sum()) / count if known else None
        return fields


def measure_coherence(header: TraceHeader, pairs: Iterable[tuple[TraceChunk, TraceChunk]]) -> CoherenceTally:
    """Tally every pair of chunks.

    Raises:
        UsageError: there are none.
    """
    tally = CoherenceTally(len(header.layers))
    for a, b in pairs:
        tally.add(a, b)
    if not tally.tokens:
        raise UsageError("the traces hold no tokens")
    return tally


def jaccard(a: Ids, b: Ids) -> NDArray[np.float64]:
    """|both| / |either| of the sets along the last axis, which names no expert twice."""
    used = a.shape[-1]
    either = np.sort(np.concatenate([a, b], axis=-1), axis=-1)
    both = (either[..., 1:] == either[..., :-1]).sum(-1)
    return np.asarray(both / (2 * used - both))


def are_logits(scores: Scores | None) -> bool:
    """Whether router scores are logits: some are negative. Asked of a whole chunk, as a few tokens may have none."""
    return scores is not None and bool(scores.min(initial=0.0) < 0)


def router_distribution(scores: Scores, logits: bool | None = None) -> NDArray[np.float64]:
    """Router scores as a distribution over experts: a softmax of logits, else a share.

    Args:
        logits: what they are; `are_logits` of these scores where it is not said.
    """
    rows = scores.astype(np.float64)
    if are_logits(scores) if logits is None else logits:
        rows = np.exp(rows - rows.max(-1, keepdims=True))
    return np.asarray(rows / np.maximum(rows.sum(-1, keepdims=True), np.finfo(np.float32).tiny))


def chosen_weights(scores: Scores | None, ids: Ids, logits: bool | None = None) -> NDArray[np.float64]:
    """The share of each expert in a token's output: its weight among the chosen, 0 for the others. [..., experts]"""
    assert scores is not None
    distribution = router_distribution(scores, logits)
    weights = np.zeros_like(distribution)
    index = ids.astype(np.int64)
    np.put_along_axis(weights, index, np.take_along_axis(distribution, index, -1), -1)
    total = weights.sum(-1, keepdims=True)
    return np.asarray(np.where(total > 0, weights / np.where(total > 0, total, 1), 1 / ids.shape[-1] * (weights > 0)))


def divergence(a: Scores, b: Scores, logits: tuple[bool | None, bool | None] = (None, None)) -> NDArray[np.float64]:
    """KL(a || b) in nats along the last axis; probabilities are kept above float32's smallest."""
    tiny = float(np.finfo(np.float32).tiny)
    p, q = router_distribution(a, logits[0]), router_distribution(b, logits[1])
    return np.asarray((p * (np.log(np.maximum(p, tiny)) - np.log(np.maximum(q, tiny)))).sum(-1))


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else sha256[:12]
