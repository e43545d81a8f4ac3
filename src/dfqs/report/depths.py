"""Where in a long document facts are found: right answers by context length and depth."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from dfqs.evaluate.scores import ScoredItem
from dfqs.evaluate.stages import CONTEXT
from dfqs.evaluate.statistics import Count
from dfqs.report.schema import ContextDetail

BINS = 5
LENGTHS_LIMIT = 40


@dataclass(frozen=True, slots=True)
class DepthGrid:
    """Counts by length (rows, shortest first) and depth (columns, the beginning first)."""

    lengths: tuple[int, ...]
    depths: tuple[str, ...]
    cells: tuple[tuple[Count, ...], ...]


def depth_grid(context: ContextDetail | None, items: Iterable[ScoredItem]) -> DepthGrid | None:
    """The grid as the report has it, or, of an older one, as its answers say; None where neither tells depths."""
    found: dict[int, list[list[int]]] = defaultdict(lambda: [[0, 0] for _ in range(BINS)])
    cells = context.grid if context is not None else []
    for told in cells:
        cell = found[told.length_tokens][min(BINS - 1, int(told.depth * BINS))]
        cell[0] += min(told.right, told.n)
        cell[1] += told.n
    for item in items if not cells else ():
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
