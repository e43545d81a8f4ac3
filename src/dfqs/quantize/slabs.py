"""Tensors cut into slabs of whole rows, and slabs into pieces that fit into a processor's cache."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dfqs.errors import UsageError
from dfqs.quantize.kernels import Bytes, Float32
from dfqs.quantize.q8_0 import PIECE_ELEMENTS
from dfqs.quantize.work import TensorWork, Work
from dfqs.units import format_bytes

BASE_BYTES = 256 << 20
"""Counted for the interpreter, numpy, the native library and its tables, before any slab."""
SLAB_ELEMENTS = 1 << 19
"""Values a slab holds at most; one row where a row is longer."""
ELEMENT_BYTES = 12
"""A value takes at most so much while it is converted: as read, as float32, as written."""
_READ_BYTES, _WRITTEN_BYTES = 8, 4
"""Of a value at most; one of eight bytes is only copied. What is never touched of a buffer takes no memory."""


def slab_plan(work: Work) -> tuple[int, int]:
    """(elements a slab holds at most, threads) that keep within the memory allowed.

    Raises:
        UsageError: even one row at a time of the longest tensor does not fit.
    """
    row = max((t.shape[0] for t in work.tensors), default=1)
    fixed = BASE_BYTES + _importance_bytes(work)
    for threads in range(work.threads, 0, -1):
        # Twice as many slabs as threads are under way or waiting to be written.
        elements = (work.memory_bytes - fixed) // (2 * threads * ELEMENT_BYTES)
        if elements >= row:
            return max(min(elements, SLAB_ELEMENTS), row), threads
    least = fixed + 2 * ELEMENT_BYTES * row
    raise UsageError(f"--memory must be at least {format_bytes(least)} for this model")


def _importance_bytes(work: Work) -> int:
    if work.imatrix is None:
        return 0
    # Two tensors' weights at most (one being finished, one begun), and a copy while they are normalized.
    return 4 * 4 * max((t.shape[0] * (t.shape[2] if len(t.shape) > 2 else 1) for t in work.tensors), default=0)


@dataclass(frozen=True, slots=True)
class Slab:
    """Rows of a tensor that are converted together."""

    tensor: TensorWork
    first: int
    last: int
    importance: Float32 | None
    """Of the tensor, [experts, columns]."""

    def pieces(self) -> Iterator[tuple[int, int, Float32 | None]]:
        """Rows that fit into a processor's cache, with their importance: never of two experts."""
        columns, rows = self.tensor.shape[0], self.tensor.rows
        step = max(1, PIECE_ELEMENTS // columns)
        group_rows = rows // (1 if self.importance is None else len(self.importance))
        start = self.first
        while start < self.last:
            end = min(self.last, start + step, (start // group_rows + 1) * group_rows)
            yield start, end, None if self.importance is None else self.importance[start // group_rows]
            start = end


class Buffers:
    """Room for the bytes of one slab, used again for later ones: fresh memory costs as much as converting does."""

    def __init__(self, elements: int) -> None:
        self.source = np.empty(_READ_BYTES * elements, np.uint8).data
        self.result: Bytes = np.empty(_WRITTEN_BYTES * elements, np.uint8)
