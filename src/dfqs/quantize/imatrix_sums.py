"""Where the sums of an importance matrix stand in a file: which weights, how many numbers, and the numbers of one.

Two containers hold the same: llama.cpp's GGUF, and the older `.dat` (`legacy_imatrix`).
"""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import FormatError
from dfqs.gguf.file import GGUFFile
from dfqs.gguf.layout import MAGIC
from dfqs.gguf.metadata import Metadata
from dfqs.gguf.source import FileSource
from dfqs.gguf.types import GGMLType
from dfqs.quantize.legacy_imatrix import LegacySums

Float32 = NDArray[np.float32]

SQUARES, COUNTS, SUMS = ".in_sum2", ".counts", ".in_sum"
MAX_SUMS = 1 << 24
"""Sums of one weight: 1,024 experts of 16,384 columns. No model comes near; bounds memory for a file that lies."""
MAX_TOTAL_SUMS = 1 << 31
"""Sums of a whole file: those of a model of a trillion parameters are a third of it."""


class Sums(Protocol):
    """An open container."""

    metadata: Metadata

    @property
    def names(self) -> tuple[str, ...]:
        """Weights it knows, in file order."""
        ...

    def elements(self, name: str, suffix: str) -> int:
        """Numbers of a weight under `SQUARES`, `COUNTS` or `SUMS`; 0 where there are none."""
        ...

    def array(self, name: str, suffix: str) -> Float32:
        """Those numbers, flat."""
        ...

    def close(self) -> None: ...


class GGUFSums:
    """The sums in an open GGUF importance matrix.

    Raises:
        FormatError: it is no importance matrix, or its tensors contradict each other.
        UsageError: the file is missing or unreadable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = GGUFFile(path)
        self.metadata = self._file.header.metadata
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(t.name.removesuffix(SQUARES) for t in self._file.header.tensors if t.name.endswith(SQUARES))

    def elements(self, name: str, suffix: str) -> int:
        header = self._file.header
        return header.tensor(name + suffix).elements if header.has_tensor(name + suffix) else 0

    def array(self, name: str, suffix: str) -> Float32:
        return np.asarray(self._file.array(name + suffix), np.float32).reshape(-1)

    def _check(self) -> None:
        if self.metadata.text("general.type") != "imatrix" or not self.names:
            raise FormatError("a GGUF file, but not an importance matrix", path=self._path)
        total = 0
        for name in self.names:
            squares, counts = self.elements(name, SQUARES), self.elements(name, COUNTS)
            sums = self.elements(name, SUMS)
            total += squares
            problem = None
            if not counts:
                problem = f"has {SQUARES} but no {COUNTS}"
            elif any(self._is_foreign(name + suffix) for suffix in (SQUARES, COUNTS, SUMS)):
                problem = "sums and counts must be F32"
            elif squares > MAX_SUMS:
                problem = f"claims {squares:,} sums; no weight has more than {MAX_SUMS:,}"
            elif squares % counts:
                problem = f"{squares} sums are not whole rows for {counts} counts"
            elif sums not in (0, squares):
                problem = f"{SUMS} and {SQUARES} differ in length"
            if problem is not None:
                raise FormatError(problem, path=self._path, name=name)
        if total > MAX_TOTAL_SUMS:
            raise FormatError(f"claims {total:,} sums; no model has more than {MAX_TOTAL_SUMS:,}", path=self._path)

    def _is_foreign(self, name: str) -> bool:
        header = self._file.header
        return header.has_tensor(name) and header.tensor(name).type is not GGMLType.F32

    def close(self) -> None:
        self._file.close()


def open_sums(path: Path) -> Sums:
    """The container that `path` is.

    Raises:
        FormatError: it is neither.
        UsageError: the file is missing or unreadable.
    """
    with FileSource(path) as source:
        is_gguf = source.read_at(0, len(MAGIC)) == MAGIC
    return GGUFSums(path) if is_gguf else LegacySums(path)
