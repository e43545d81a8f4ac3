"""llama.cpp's importance-matrix file: a GGUF of sums, read lazily and written whole.

For a weight `W` it holds `W.in_sum2` (sum over tokens of squared inputs, one number a column, one row an expert),
`W.counts` (how many inputs were summed, one an expert, or one for all) and, from newer versions, `W.in_sum` (sums of
inputs) and `W.stats`. Importance of a column is its mean square, `in_sum2 / counts`. An expert that no input reached
has count 0 and weighs every column the same (1), as llama-quantize does.
Source: `tools/imatrix/imatrix.cpp`, `common/imatrix-loader.cpp`, `tools/quantize/quantize.cpp` (`load_imatrix`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import FormatError, UsageError
from dfqs.gguf.file import GGUFFile
from dfqs.gguf.types import GGMLType, ValueType
from dfqs.gguf.values import array, string, u32
from dfqs.gguf.writer import TensorSource, write_gguf

Float32 = NDArray[np.float32]

Counts = NDArray[np.int64]

SQUARES, COUNTS, SUMS = ".in_sum2", ".counts", ".in_sum"

MAX_COUNT = 1 << 53
"""No measurement sees more inputs or tokens; a file that says so is made up."""

MAX_CHUNKS = 2**32 - 1


@dataclass(slots=True)
class Accumulated:
    """Sums of one weight's inputs. float32, as in the file: those of a 284 B model take 1.1 GB."""

    squares: Float32
    """[experts, columns]; one expert for a dense matrix."""
    counts: Counts
    """[experts]"""
    sums: Float32 | None = None
    """[experts, columns]; None where a file that was merged in has none."""

    def add(self, other: "Accumulated", name: str) -> None:
        """Add what another run saw.

        Raises:
            FormatError: it is of a weight of another shape.
        """
        if self.squares.shape != other.squares.shape:
            raise FormatError(
                "has sums of {} experts by {} columns in one file and {} by {} in another: they are of different "
                "models".format(*self.squares.shape, *other.squares.shape),
                name=name,
            )
        self.squares += other.squares
        self.counts += other.counts
        if self.sums is not None and other.sums is not None:
            self.sums += other.sums
        else:
            self.sums = None


@dataclass(slots=True)
class Imatrix:
    """An importance matrix in memory."""

    entries: dict[str, Accumulated]
    datasets: tuple[str, ...] = ()
    chunk_tokens: int = 512
    """Tokens that were computed together."""
    tokens: int = 0
    """Tokens seen in all; read back from `imatrix.chunk_count`, so rounded to whole chunks in a foreign file."""
    extra: dict[str, str] = field(default_factory=dict)
    """Further text keys, `dfqs.` ones: which model, which state of a resumable run."""


class ImatrixFile:
    """An open importance-matrix file.

    Raises:
        FormatError: it is no importance matrix, or its tensors contradict each other.
        UsageError: the file is missing or unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = GGUFFile(path)
        except FormatError as error:
            if error.detail.startswith("not a GGUF file"):
                raise FormatError(
                    "not a GGUF file; an older importance matrix (.dat) can be converted: "
                    "llama-imatrix --in-file OLD.dat -o NEW.gguf",
                    path=path,
                ) from None
            raise
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> tuple[str, ...]:
        """Weights it knows, in file order."""
        return tuple(t.name.removesuffix(SQUARES) for t in self._file.header.tensors if t.name.endswith(SQUARES))

    @property
    def metadata(self) -> Mapping[str, object]:
        return self._file.header.metadata

    def shape(self, name: str) -> tuple[int, int]:
        """(experts, columns) of a weight."""
        counts = self._file.header.tensor(name + COUNTS).elements
        return counts, self._file.header.tensor(name + SQUARES).elements // counts

    def read(self, name: str) -> Accumulated:
        """Sums of one weight.

        Raises:
            FormatError: numbers that no sum of squares, or no count, can be.
        """
        squares, counts = self._checked(name)
        sums = None
        if self._file.header.has_tensor(name + SUMS):
            sums = self._array(name + SUMS).reshape(squares.shape).copy()
            if not np.isfinite(sums).all():
                raise FormatError("holds sums that are no numbers: the file is damaged", path=self.path, name=name)
        return Accumulated(squares.copy(), counts.astype(np.int64), sums)

    def importance(self, name: str, shape: Sequence[int]) -> Float32 | None:
        """Importance of a weight's columns; None for a weight it does not know.

        Args:
            shape: the weight's, GGUF order.

        Returns:
            float32 [groups, columns], for as many equal groups of rows: the experts, or the groups of a matrix that is
            multiplied in parts (DeepSeek-V4's `attn_output_a`), or one for all rows.

        Raises:
            FormatError: it is of a weight of another shape, or holds numbers that no sum of squares can be.
        """
        if not self._file.header.has_tensor(name + SQUARES):
            return None
        groups = self.groups(name, shape)
        squares, counts = self._checked(name)
        # float32 all the way, as llama-quantize divides: another rounding would give other bytes.
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.where(counts[:, None] > 0, squares / counts[:, None], np.float32(1))
        return np.ascontiguousarray(mean.astype(np.float32, copy=False).reshape(groups, shape[0]))

    def groups(self, name: str, shape: Sequence[int]) -> int:
        """In how many equal groups of rows the weight of that name and shape has importance.

        Raises:
            FormatError: it is of a weight of another shape.
        """
        size = self._file.header.tensor(name + SQUARES).elements
        counts = self._file.header.tensor(name + COUNTS).elements
        groups, rest = divmod(size, shape[0])
        fits = groups == shape[2] if len(shape) > 2 else len(shape) == 2 and shape[1] % max(groups, 1) == 0
        if rest or not fits or groups % counts:
            raise FormatError(
                f"has {size:,} columns with {counts:,} counts, which does not fit the model's {list(shape)}: it was "
                "made from another model",
                path=self.path,
                name=name,
            )
        return groups

    def uncovered(self, name: str) -> tuple[int, ...]:
        """Experts of a weight that no input reached."""
        return tuple(int(i) for i in np.flatnonzero(self._array(name + COUNTS).reshape(-1) <= 0))

    def _checked(self, name: str) -> tuple[Float32, Float32]:
        """(squares [experts, columns], whole counts [experts]) of a weight."""
        squares = self._array(name + SQUARES).reshape(self.shape(name))
        counts = np.rint(self._array(name + COUNTS).reshape(-1))
        # Comparisons with NaN are false. llama.cpp's kernels would make noise of a negative weight without a word.
        if not ((squares >= 0) & (squares < np.inf)).all() or not ((counts >= 0) & (counts <= MAX_COUNT)).all():
            raise FormatError(
                "holds what is no sum of squares, or no count (negative, NaN or infinite): the file is damaged",
                path=self.path,
                name=name,
            )
        return squares, counts

    def _array(self, name: str) -> Float32:
        return np.asarray(self._file.array(name), np.float32)

    def _check(self) -> None:
        header = self._file.header
        if header.metadata.get("general.type") != "imatrix" or not self.names:
            raise FormatError("a GGUF file, but not an importance matrix", path=self.path)
        for name in self.names:
            squares = header.tensor(name + SQUARES)
            if not header.has_tensor(name + COUNTS):
                raise FormatError(f"has {SQUARES} but no {COUNTS}", path=self.path, name=name)
            counts = header.tensor(name + COUNTS)
            if {squares.type, counts.type} != {GGMLType.F32}:
                raise FormatError("sums and counts must be F32", path=self.path, name=name)
            if squares.elements % counts.elements:
                raise FormatError(
                    f"{squares.elements} sums are not whole rows for {counts.elements} counts",
                    path=self.path,
                    name=name,
                )
            if header.has_tensor(name + SUMS) and header.tensor(name + SUMS).elements != squares.elements:
                raise FormatError(f"{SUMS} and {SQUARES} differ in length", path=self.path, name=name)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "ImatrixFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_imatrix(path: Path) -> Imatrix:
    """A whole importance matrix.

    Raises:
        FormatError, UsageError: as `ImatrixFile`.
    """
    with ImatrixFile(path) as file:
        metadata = file.metadata
        datasets = metadata.get("imatrix.datasets", ())
        chunk_tokens = metadata.get("imatrix.chunk_size", 0)
        chunks = metadata.get("imatrix.chunk_count", 0)
        if not isinstance(datasets, tuple) or not isinstance(chunk_tokens, int) or not isinstance(chunks, int):
            raise FormatError("its 'imatrix.' keys are not of the types they should be", path=path)
        if min(chunks, chunk_tokens) < 0 or chunk_tokens > MAX_CHUNKS or chunks * chunk_tokens > MAX_COUNT:
            raise FormatError(f"claims {chunks:,} chunks of {chunk_tokens:,} tokens, more than anybody saw", path=path)
        return Imatrix(
            entries={name: file.read(name) for name in file.names},
            datasets=tuple(str(name) for name in datasets),
            chunk_tokens=chunk_tokens,
            tokens=chunks * chunk_tokens,
            extra={k: v for k, v in metadata.items() if k.startswith("dfqs.") and isinstance(v, str)},
        )


def write_imatrix(path: Path, imatrix: Imatrix, *, overwrite: bool = False) -> None:
    """Write a file that llama-quantize and llama-imatrix read. Names in sorted order, as llama-imatrix has them.

    Raises:
        UsageError: nothing was accumulated, or `path` exists and `overwrite` is false.
        SpaceError: the disk is full.
    """
    if not imatrix.entries:
        raise UsageError("nothing was measured, so there is no importance matrix to write")
    # A chunk count of 32 bits is what the tools read; files of small chunks may add up to more.
    chunk = max(imatrix.chunk_tokens, 1, -(-imatrix.tokens // MAX_CHUNKS))
    keys = [
        string("general.type", "imatrix"),
        array("imatrix.datasets", ValueType.STRING, list(imatrix.datasets)),
        u32("imatrix.chunk_count", (imatrix.tokens + chunk // 2) // chunk),
        u32("imatrix.chunk_size", chunk),
        *(string(name, value) for name, value in sorted(imatrix.extra.items())),
    ]
    tensors: list[TensorSource] = []
    for name in sorted(imatrix.entries):
        entry = imatrix.entries[name]
        experts, columns = entry.squares.shape
        parts: list[tuple[str, NDArray[Any], tuple[int, int]]] = [
            (SQUARES, entry.squares, (columns, experts)),
            (COUNTS, entry.counts, (1, experts)),
        ]
        if entry.sums is not None:
            parts.append((SUMS, entry.sums, (columns, experts)))
        for suffix, values, shape in parts:
            tensors.append(_tensor(name + suffix, values, shape))
    write_gguf(path, keys, tensors, overwrite=overwrite)


def _tensor(name: str, values: NDArray[Any], shape: tuple[int, int]) -> TensorSource:
    data = values.astype(np.float32).tobytes()
    return TensorSource(name, shape, GGMLType.F32, lambda: [data])


def merge_imatrices(matrices: Sequence[Imatrix]) -> Imatrix:
    """Add what several runs saw: other machines, other corpora.

    Raises:
        FormatError: they are of different models.
    """
    result = Imatrix({}, chunk_tokens=matrices[0].chunk_tokens)
    for matrix in matrices:
        for name, entry in matrix.entries.items():
            if name in result.entries:
                result.entries[name].add(entry, name)
            else:
                sums = None if entry.sums is None else entry.sums.copy()
                result.entries[name] = Accumulated(entry.squares.copy(), entry.counts.copy(), sums)
        result.tokens += matrix.tokens
        result.datasets += tuple(d for d in matrix.datasets if d not in result.datasets)
    return result
