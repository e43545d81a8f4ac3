"""What the kernel reads of a mapped model that is larger than memory: LRU stack distances. Pure.

How much of other pages was used since a page was used last says whether it is still there, for every amount of memory
at once (Mattson, Gecsei, Slutz and Traiger 1970). The kernel's lists of active and inactive pages only come near to
that order, so the mean is taken over rooms that are some percent smaller; what that gives is held against what was
read in docs/forecast.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from dfqs.streaming.policy import Pass

ROOMS = (1.0, 1.03, 1.06, 1.09)
"""What is there serves as if it were so much smaller: each counts alike."""
AHEAD_STAYS = 0.25
"""Of what is read ahead for nothing, the room that it takes: it leaves before the rest."""
_EVERY_TOKEN = -1
"""In place of an expert: what every token uses of a layer."""


@dataclass(frozen=True, slots=True)
class StackDistances:
    """Uses of pieces of a model, in passes that are counted."""

    distances: NDArray[np.float64]
    """Bytes of different pieces that were used since a piece was used last, its own included; infinite for the first
    time."""
    sizes: NDArray[np.float64]
    """Of the pieces."""
    passes: int

    def missed_bytes(self, room_bytes: float) -> float:
        """That a pass finds no longer in a room of so many bytes."""
        return float(self.sizes[self.distances > room_bytes].sum()) / self.passes

    def paged_bytes(self, room_bytes: float, read_per_wanted: float) -> float:
        """That the disk gives for a pass.

        Args:
            read_per_wanted: bytes for each that is wanted: read-ahead.
        """
        ahead = AHEAD_STAYS * (read_per_wanted - 1)
        missed = [self.missed_bytes(room_bytes / (smaller + ahead)) for smaller in ROOMS]
        return read_per_wanted * sum(missed) / len(missed)


def measure_distances(
    sizes: Mapping[tuple[int, int], int], resident_bytes: int, passes: Sequence[Pass], warm: int
) -> StackDistances | None:
    """Distances of all uses behind the first `warm` passes; None where there are no more.

    Args:
        sizes: bytes of each (layer, expert); others are not counted.
        resident_bytes: that every token uses besides, spread over the layers alike.
    """
    if len(passes) <= warm:
        return None
    layers = {layer for one in passes for layer, _ in one}
    pieces = dict(sizes) | {(layer, _EVERY_TOKEN): resident_bytes // len(layers) for layer in layers}
    uses = [
        (key, number >= warm)
        for number, one in enumerate(passes)
        for layer, experts in one
        for key in ((layer, expert) for expert in (_EVERY_TOKEN, *experts))
        if pieces.get(key)
    ]
    since = _BytesSince(len(uses))
    last: dict[tuple[int, int], int] = {}
    distances, counted_sizes = [], []
    for place, (key, is_counted) in enumerate(uses):
        size, before = pieces[key], last.get(key)
        if is_counted:
            distances.append(inf if before is None else since.total - since.up_to(before) + size)
            counted_sizes.append(size)
        if before is not None:
            since.add(before, -size)
        since.add(place, size)
        last[key] = place
    return StackDistances(np.array(distances, np.float64), np.array(counted_sizes, np.float64), len(passes) - warm)


class _BytesSince:
    """Sums over places in an order, each changed and asked for in logarithmic time (Fenwick 1994)."""

    def __init__(self, places: int) -> None:
        self._sums = [0] * (places + 1)
        self.total = 0

    def add(self, place: int, bytes_: int) -> None:
        self.total += bytes_
        place += 1
        while place < len(self._sums):
            self._sums[place] += bytes_
            place += place & -place

    def up_to(self, place: int) -> int:
        """The sum of places `[0, place]`."""
        found = 0
        place += 1
        while place:
            found += self._sums[place]
            place &= place - 1
        return found
