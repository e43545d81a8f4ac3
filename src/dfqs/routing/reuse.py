"""How soon an expert's weights are needed again: LRU stack distances over expert blocks, in one pass.

A block is one expert of one layer; all are of one size. Decoding token by token touches, layer after layer, the blocks
that the router chose. The stack distance of a touch is the number of *other* blocks touched since the block's last
touch: a cache of C blocks that evicts the least recently used hits exactly the touches of distance < C (Mattson et al.,
1970).
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dfqs.records import Record
from dfqs.routing.trace import Ids, TraceChunk, TraceHeader

CURVE_POINTS = 20


class ReuseProfile(Record):
    """Hits of an LRU cache of expert blocks, for every size of it."""

    blocks: int
    """Layers x experts."""
    blocks_touched: int
    touches: int
    cold: int
    """First touches: no cache avoids them."""
    cache_blocks: tuple[int, ...]
    hit_share: tuple[float, ...]
    """Of all touches, for each size in `cache_blocks`."""


class StackDistances:
    """Streaming LRU stack distances. Memory: a few numbers a block, however long the trace.

    Touches are numbered; a block's rank is the number of its last touch.
    """

    def __init__(self, layers: int, experts: int, used: int) -> None:
        self.blocks = layers * experts
        self.histogram = np.zeros(self.blocks, np.int64)
        """Touches by stack distance."""
        self.cold = self.touches = 0
        self._experts = experts
        self._rank = np.full(self.blocks, -1, np.int64)
        self._order = np.empty(0, np.int64)
        """Ranks of all blocks touched so far, ascending."""
        self._earlier = np.tril(np.ones((layers * used, layers * used), np.bool_), -1)

    def add(self, ids: Ids) -> None:
        """Touch the experts of consecutive tokens. ids: [layers, tokens, used], no expert twice in a layer."""
        layers, tokens, _ = ids.shape
        base = (np.arange(layers) * self._experts)[:, None]
        for token in range(tokens):
            self._touch((base + ids[:, token].astype(np.int64)).ravel())

    def _touch(self, blocks: NDArray[np.int64]) -> None:
        """The touches of one token, in order: no block twice."""
        last = self._rank[blocks]
        known = last >= 0
        ranks = last[known]
        places = np.searchsorted(self._order, ranks)
        # Other blocks touched since: those above this one before the token began, ...
        distance = len(self._order) - 1 - places
        # ... those that this token has just lifted from below it, ...
        earlier = self._earlier[: len(ranks), : len(ranks)]
        distance += (earlier & (places[None, :] < places[:, None])).sum(1)
        # ... and those that it has just touched for the first time.
        distance += np.cumsum(~known)[known]
        self.histogram += np.bincount(distance, minlength=self.blocks)
        fresh = np.arange(self.touches, self.touches + len(blocks))
        self._order = np.concatenate([np.delete(self._order, places), fresh])
        self._rank[blocks] = fresh
        self.touches += len(blocks)
        self.cold += int((~known).sum())

    def hits(self, cache_blocks: int) -> int:
        """Touches that an LRU cache of so many blocks serves."""
        return int(self.histogram[: max(0, cache_blocks)].sum())

    def profile(self) -> ReuseProfile:
        """The curve, at evenly spaced cache sizes up to all blocks."""
        sizes = sorted({max(1, round(self.blocks * point / CURVE_POINTS)) for point in range(1, CURVE_POINTS + 1)})
        return ReuseProfile(
            blocks=self.blocks,
            blocks_touched=int((self._rank >= 0).sum()),
            touches=self.touches,
            cold=self.cold,
            cache_blocks=tuple(sizes),
            hit_share=tuple(self.hits(size) / self.touches if self.touches else 0.0 for size in sizes),
        )


def measure_reuse(header: TraceHeader, chunks: Iterable[TraceChunk]) -> StackDistances:
    """Stack distances of a whole trace; one prompt follows the other in the same cache."""
    distances = StackDistances(len(header.layers), header.model.experts, header.model.experts_used)
    for chunk in chunks:
        distances.add(chunk.ids)
    return distances
