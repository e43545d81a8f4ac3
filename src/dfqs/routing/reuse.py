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
    """Streaming LRU stack distances. Memory: a few numbers a block, and one bit for each touch of a token still ranked.

    Blocks are ranked by their last touch: by token, and within a token by its slot in the order of touching.
    """

    def __init__(self, layers: int, experts: int, used: int) -> None:
        self.blocks = layers * experts
        self.histogram = np.zeros(self.blocks, np.int64)
        """Touches by stack distance."""
        self.cold = self.touches = 0
        self._experts, self._slots = experts, layers * used
        self._row_of = np.full(self.blocks, -1, np.int64)
        self._slot_of = np.zeros(self.blocks, np.int64)
        self._latest = np.zeros((64, self._slots), np.bool_)
        """[token, slot]: whether that touch is its block's latest."""
        self._counts = np.zeros(64, np.int64)
        self._rows = 0

    def add(self, ids: Ids) -> None:
        """Touch the experts of consecutive tokens. ids: [layers, tokens, used], no expert twice in a layer."""
        layers, tokens, _ = ids.shape
        base = (np.arange(layers) * self._experts)[:, None]
        slots = np.arange(self._slots)
        for token in range(tokens):
            touched = (base + ids[:, token].astype(np.int64)).ravel()
            self._count(touched, slots)
            self._promote(touched, slots)

    def _count(self, touched: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        rows, old = self._row_of[touched], self._slot_of[touched]
        known = rows >= 0
        self.touches += len(touched)
        self.cold += int((~known).sum())
        if not known.any():
            return
        rows, old, slots = rows[known], old[known], slots[known]
        newer_rows = np.concatenate([np.cumsum(self._counts[: self._rows][::-1])[::-1], [0]])
        distance = newer_rows[rows + 1]
        distance += (self._latest[rows] & (np.arange(self._slots) > old[:, None])).sum(1)
        # Blocks that this token touched just before, and that were below this one until then (or new).
        rank = rows * self._slots + old
        earlier = slots[None, :] < slots[:, None]
        distance += (earlier & (rank[None, :] < rank[:, None])).sum(1)
        first_touches = np.cumsum(~known)[known]
        self.histogram += np.bincount(distance + first_touches, minlength=self.blocks)

    def _promote(self, touched: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        rows = self._row_of[touched]
        known = rows >= 0
        self._latest[rows[known], self._slot_of[touched[known]]] = False
        np.subtract.at(self._counts, rows[known], 1)
        if self._rows == len(self._counts):
            self._compact()
        self._latest[self._rows] = True
        self._counts[self._rows] = self._slots
        self._row_of[touched], self._slot_of[touched] = self._rows, slots
        self._rows += 1

    def _compact(self) -> None:
        """Forget tokens none of whose touches is a block's latest; there are never more than blocks of the others."""
        kept = np.flatnonzero(self._counts[: self._rows] > 0)
        moved = np.full(self._rows + 1, -1, np.int64)
        moved[kept] = np.arange(len(kept))
        self._row_of = np.where(self._row_of >= 0, moved[self._row_of], -1)
        size = max(64, 2 * len(kept))
        latest, counts = np.zeros((size, self._slots), np.bool_), np.zeros(size, np.int64)
        latest[: len(kept)], counts[: len(kept)] = self._latest[kept], self._counts[kept]
        self._latest, self._counts, self._rows = latest, counts, len(kept)

    def hits(self, cache_blocks: int) -> int:
        """Touches that an LRU cache of so many blocks serves."""
        return int(self.histogram[: max(0, cache_blocks)].sum())

    def profile(self) -> ReuseProfile:
        """The curve, at evenly spaced cache sizes up to all blocks."""
        sizes = sorted({max(1, round(self.blocks * point / CURVE_POINTS)) for point in range(1, CURVE_POINTS + 1)})
        return ReuseProfile(
            blocks=self.blocks,
            blocks_touched=int((self._row_of >= 0).sum()),
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
