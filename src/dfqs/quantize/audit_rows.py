"""Rows made again and held against a file's, in a worker process: llama.cpp's own kernels, as `quantize` calls them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dfqs.errors import FormatError, RuntimeFailure
from dfqs.gguf.layout import tensor_length
from dfqs.gguf.types import BLOCKS, GGMLType
from dfqs.quantize.kernels import Bytes, Float32, Kernels

if TYPE_CHECKING:
    from dfqs.runtime.worker_context import WorkerContext

_KERNELS, _PREPARED = "audit kernels", "audit types"


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a tensor: in the source, and in the file under audit."""

    columns: int
    source_type: GGMLType
    type: GGMLType
    source: bytes
    found: bytes
    importance: tuple[tuple[int, Float32 | None], ...]
    """(how many rows, weights of their columns), one after the other: an expert's rows have its own."""


@dataclass(frozen=True, slots=True)
class RowsCompared:
    """What came of it; sums are over the values of blocks that differ."""

    blocks: int
    differing_blocks: int
    differing_values: int
    squares_found: float
    """Sum of squared errors of the file's values against the source's."""
    squares_made: float
    """Of ours."""

    def __add__(self, other: "RowsCompared") -> "RowsCompared":
        return RowsCompared(
            self.blocks + other.blocks,
            self.differing_blocks + other.differing_blocks,
            self.differing_values + other.differing_values,
            self.squares_found + other.squares_found,
            self.squares_made + other.squares_made,
        )


NOTHING = RowsCompared(0, 0, 0, 0.0, 0.0)


def importance_runs(
    weights: Float32 | None, group_rows: int, first: int, last: int
) -> tuple[tuple[int, Float32 | None], ...]:
    """Rows `first` to `last` in runs that share their weights."""
    if weights is None:
        return ((last - first, None),)
    runs: list[tuple[int, Float32 | None]] = []
    while first < last:
        end = min(last, (first // group_rows + 1) * group_rows)
        runs.append((end - first, weights[first // group_rows]))
        first = end
    return tuple(runs)


def compare_rows(worker: "WorkerContext", rows: Rows) -> RowsCompared:
    """Quantize the source's rows, and compare block by block.

    Raises:
        FormatError: the source's weights are no numbers.
        RuntimeFailure: llama.cpp cannot read the one type, or make the other.
    """
    if _KERNELS not in worker.state:
        worker.state[_KERNELS], worker.state[_PREPARED] = Kernels(worker.library), set()
    kernels: Kernels = worker.state[_KERNELS]
    prepared: set[GGMLType] = worker.state[_PREPARED]
    if rows.type not in prepared:
        kernels.prepare(rows.type)
        prepared.add(rows.type)
    if not kernels.is_valid(rows.source_type, rows.source):
        raise FormatError("the source holds weights that are no numbers")
    count = sum(length for length, _ in rows.importance)
    values = kernels.to_float(rows.source_type, rows.source, count * rows.columns).reshape(count, rows.columns)
    made = np.empty(tensor_length(rows.type, (rows.columns, count)), np.uint8)
    _quantize(kernels, rows, values, made, worker.threads)
    found = np.frombuffer(rows.found, np.uint8)
    block = BLOCKS[rows.type]
    differs = (made.reshape(-1, block.bytes) != found.reshape(-1, block.bytes)).any(axis=1)
    total = int(differs.sum())
    if not total:
        return RowsCompared(len(differs), 0, 0, 0.0, 0.0)
    wanted = values.reshape(-1, block.elements)[differs].astype(np.float64)
    squares = [
        float(
            np.square(
                _decode(kernels, rows.type, data.reshape(-1, block.bytes)[differs], block.elements) - wanted
            ).sum()
        )
        for data in (found, made)
    ]
    return RowsCompared(len(differs), total, total * block.elements, squares[0], squares[1])


def _quantize(kernels: Kernels, rows: Rows, values: Float32, made: Bytes, threads: int) -> None:
    """As `execute` does: every row by itself, with its own weights."""
    row_bytes = tensor_length(rows.type, (rows.columns,))
    pieces = tuple(_pieces(rows.importance, threads))

    def convert(piece: tuple[int, int, Float32 | None]) -> None:
        first, last, weights = piece
        kernels.quantize(rows.type, values[first:last], weights, made[first * row_bytes : last * row_bytes])

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(convert, piece) for piece in pieces]:
            future.result()


def _pieces(
    importance: Sequence[tuple[int, Float32 | None]], threads: int
) -> Sequence[tuple[int, int, Float32 | None]]:
    pieces: list[tuple[int, int, Float32 | None]] = []
    start = 0
    for length, weights in importance:
        step = max(1, -(-length // threads))
        pieces += [(start + at, start + min(at + step, length), weights) for at in range(0, length, step)]
        start += length
    return pieces


def _decode(kernels: Kernels, type_: GGMLType, blocks: Bytes, elements: int) -> Float32:
    try:
        return kernels.to_float(type_, np.ascontiguousarray(blocks).data.cast("B"), blocks.shape[0] * elements).reshape(
            -1, elements
        )
    except RuntimeFailure:
        # A type that is made and not read back: what differs is counted, by how much is not known.
        return np.full((blocks.shape[0], elements), np.nan, np.float32)
