"""What a quantization is to do, as its caller tells the worker, and what came of it."""

import math
from dataclasses import dataclass
from pathlib import Path

from dfqs.gguf.types import GGMLType
from dfqs.quantize.journal import FinishedTensor


@dataclass(frozen=True, slots=True)
class TensorWork:
    """One tensor: where it comes from and goes to."""

    name: str
    shape: tuple[int, ...]
    source: int
    """Index into `Work.sources`."""
    source_type: GGMLType
    source_offset: int
    """Bytes from the start of the source file."""
    type: GGMLType
    output: int
    """Index into `Work.outputs`."""
    offset: int
    """Bytes from the start of the output file."""

    @property
    def rows(self) -> int:
        return math.prod(self.shape[1:])


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file to be written."""

    path: Path
    partial: Path
    """Its name until it is whole."""
    header: bytes
    size: int
    hash_slot: int | None
    """Where in the header 64 hex digits of the source's content hash go; None where it has no such key."""


@dataclass(frozen=True, slots=True)
class Work:
    """All that a worker needs."""

    sources: tuple[Path, ...]
    outputs: tuple[OutputFile, ...]
    tensors: tuple[TensorWork, ...]
    imatrix: Path | None
    journal: Path
    fingerprint: str
    memory_bytes: int
    threads: int
    overwrite: bool
    restart: bool = False
    """Forget what an interrupted run left."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was written."""

    tensors: tuple[FinishedTensor, ...]
    resumed: int
    """Tensors that an earlier, interrupted run had already written."""
    quantized_parameters: int
    """Values converted in this run."""
    wall_s: float
    threads: int
