"""Where in a long document facts are found: right answers by context length and depth, counted from the answers."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from dfqs.evaluate.scores import ScoredItem
from dfqs.evaluate.stages import CONTEXT
from dfqs.evaluate.statistics import Count

BINS = 5
LENGTHS_LIMIT = 40


@dataclass(frozen=True, slots=True)
class DepthGrid:
    """Counts by length (rows, shortest first) and depth (columns, the beginning first)."""

    lengths: tuple[int, ...]
    depths: tuple[str, ...]
    cells: tuple[tuple[Count, ...], ...]


def depth_grid(items: Iterable[ScoredItem]) -> DepthGrid | None:
    """The grid of the context stages' answers; None where no answer says where its fact stood."""
    found: dict[int, list[list[int]]] = defaultdict(lambda: [[0, 0] for _ in range(BINS)])
    for item in items:
        length, depth = item.place.get("length_tokens"), item.place.get("depth")
        if item.stage == CONTEXT and isinstance(length, int) and isinstance(depth, int | float) and 0 <= depth <= 1:
            cell = found[length][min(BINS - 1, int(depth * BINS))]
            cell[0] += item.right
            cell[1] += 1
    if not found:
        return None
    lengths = tuple(sorted(found))[:LENGTHS_LIMIT]
    names = tuple(f"{100 * k // BINS} to {100 * (k + 1) // BINS} %" for k in range(BINS))
    return DepthGrid(lengths, names, tuple(tuple(Count(*cell) for cell in found[length]) for length in lengths))
