"""Whether two files' weights are one checkpoint, rounded, or two: some tensors of both, held against each other.

Values that are stored in R bits can have a relative error of 2^-R at best (the rate-distortion function of a Gaussian
source: Cover and Thomas, Elements of Information Theory, 10.3); llama.cpp's types come within a factor of four, on
weights with outliers too. Weights of another checkpoint differ by more, unrelated ones by 1.4. What both store without
rounding is the same in all quantizations of one checkpoint, to the bit.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import RuntimeFailure
from dfqs.gguf.layout import TensorInfo, tensor_length
from dfqs.gguf.quants import PLAIN_DTYPES
from dfqs.gguf.types import BLOCKS, GGMLType
from dfqs.model.files import ModelFiles, open_model
from dfqs.quantize.kernels import Kernels
from dfqs.records import Amount, AtLeastOne, Record, Text, Whole
from dfqs.runtime.worker_context import WorkerContext

SAMPLED = 24
"""Tensors of those that either file rounds, and as many of those that neither does."""
ELEMENTS = 1 << 18
"""Of each, in whole rows from a drawn place."""
ROUNDING_FACTOR = 4.0
MOST_ROUNDING = 0.9
"""No type's error is larger; two unrelated tensors of equal size differ by the root of 2."""
HALF = frozenset({GGMLType.F16, GGMLType.BF16})
EXACT = frozenset(PLAIN_DTYPES) - HALF
"""Types that hold float32, or the whole numbers of a table, as they are."""


class TensorCloseness(Record):
    """One tensor of both files."""

    name: Text
    reference_type: str
    type: str
    elements: AtLeastOne
    """That were compared."""
    relative_rmse: Amount | None
    """Root of the mean squared difference, by that of the reference's values; null where either has no numbers."""
    rounding: Amount
    """As much can be rounding to these types; 0 where neither rounds."""
    within: bool
    """No more than that."""


class WeightsCloseness(Record):
    """How close two files' weights are."""

    tensors: Whole
    """That both have, by name and shape."""
    only_reference: Whole
    only_model: Whole
    """Of other names or shapes."""
    compared: tuple[TensorCloseness, ...]
    identical: bool
    """All compared have the same values, and no tensor is in one file only."""
    rounded: bool
    """All are as close as rounding allows, and no tensor is in one file only."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A tensor that is looked at in both files."""

    name: str
    shape: tuple[int, ...]
    first_row: int
    rows: int


def sample_tensors(reference: Sequence[TensorInfo], model: Sequence[TensorInfo]) -> list[Sampled]:
    """The tensors to look at: drawn by a hash of their names, some that are rounded and some that are not."""
    theirs = {tensor.name: tensor for tensor in reference}
    both = [tensor for tensor in model if tensor.name in theirs and theirs[tensor.name].shape == tensor.shape]
    both.sort(key=lambda tensor: hashlib.sha256(tensor.name.encode("utf-8", "surrogatepass")).digest())
    rounded = [each for each in both if rounding(theirs[each.name].type, each.type) > 0]
    plain = [each for each in both if rounding(theirs[each.name].type, each.type) == 0]
    return [_part(tensor) for tensor in (*rounded[:SAMPLED], *plain[:SAMPLED])]


def rounding(first: GGMLType, second: GGMLType) -> float:
    """The relative difference that rounding to two types can make; 0 for types that hold float32 as it is."""
    if first is second and first in (*EXACT, *HALF):
        return 0.0
    return min(MOST_ROUNDING, float(np.hypot(_error(first), _error(second))))


def compare_weights(worker: WorkerContext, reference: Path, model: Path) -> WeightsCloseness:
    """In a worker: the sampled tensors of both files. Emits `(done, total)`."""
    first, second = open_model(reference), open_model(model)
    kernels = Kernels(worker.library)
    theirs, ours = ({tensor.name: tensor for tensor in each.tensors} for each in (first, second))
    shared = [name for name, tensor in ours.items() if name in theirs and theirs[name].shape == tensor.shape]
    chosen = sample_tensors(first.tensors, second.tensors)
    compared: list[TensorCloseness] = []
    for done, part in enumerate(chosen):
        worker.stop.raise_if_requested()
        worker.emit((done, len(chosen)))
        types = theirs[part.name].type, ours[part.name].type
        bound = rounding(*types)
        relative = _relative(*(_values(kernels, each, part) for each in (first, second)))
        compared.append(
            TensorCloseness(
                name=part.name,
                reference_type=types[0].name,
                type=types[1].name,
                elements=part.rows * part.shape[0],
                relative_rmse=relative,
                rounding=bound,
                within=relative is not None and relative <= bound,
            )
        )
    whole = len(shared) == len(theirs) == len(ours)
    return WeightsCloseness(
        tensors=len(shared),
        only_reference=len(theirs) - len(shared),
        only_model=len(ours) - len(shared),
        compared=tuple(compared),
        identical=whole and bool(compared) and all(each.relative_rmse == 0 for each in compared),
        rounded=whole and bool(compared) and all(each.within for each in compared),
    )


def _error(type_: GGMLType) -> float:
    if type_ in EXACT:
        return 0.0
    if type_ in HALF:
        # Of bfloat16, the coarser one; a float32 that was cut to it is off by up to 2^-8.
        return 2.0**-8
    block = BLOCKS[type_]
    return ROUNDING_FACTOR * math.pow(2.0, -8.0 * block.bytes / block.elements)


def _part(tensor: TensorInfo) -> Sampled:
    """Whole rows from a place that follows from the name."""
    columns = tensor.shape[0]
    total = tensor.elements // columns
    rows = max(1, min(total, ELEMENTS // columns))
    drawn = int.from_bytes(hashlib.sha256(f"place of {tensor.name!r}".encode()).digest()[:8], "big")
    return Sampled(tensor.name, tensor.shape, drawn % (total - rows + 1), rows)


def _values(kernels: Kernels, model: ModelFiles, part: Sampled) -> NDArray[np.float64] | None:
    for shard in model.shards:
        tensor = next((each for each in shard.header.tensors if each.name == part.name), None)
        if tensor is not None:
            row = tensor_length(tensor.type, (part.shape[0],))
            start = shard.header.span(tensor).offset + part.first_row * row
            with shard.path.open("rb") as file:
                file.seek(start)
                data = file.read(part.rows * row)
            if tensor.type in PLAIN_DTYPES:
                return np.frombuffer(data, PLAIN_DTYPES[tensor.type]).astype(np.float64)
            try:
                return kernels.to_float(tensor.type, data, part.rows * part.shape[0]).astype(np.float64)
            except RuntimeFailure:
                return None
    return None


def _relative(reference: NDArray[np.float64] | None, values: NDArray[np.float64] | None) -> float | None:
    if reference is None or values is None or not (np.isfinite(reference).all() and np.isfinite(values).all()):
        return None
    if np.array_equal(reference, values):
        return 0.0
    size = float(np.sqrt(np.square(reference).mean()))
    difference = float(np.sqrt(np.square(values - reference).mean()))
    return min(difference / size, 1e9) if size > 0 else 1e9
