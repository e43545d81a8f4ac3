"""llama.cpp's importance-matrix file: a GGUF of sums, read lazily and written whole.

For a weight `W` it holds `W.in_sum2` (sum over tokens of squared inputs, one number a column, one row an expert),
`W.counts` (how many inputs were summed, one an expert, or one for all) and, from newer versions, `W.in_sum` (sums of
inputs) and `W.stats`. Importance of a column is its mean square, `in_sum2 / counts`. An expert that no input reached
has count 0 and weighs every column the same (1), as llama-quantize does.
Source: `tools/imatrix/imatrix.cpp`, `common/imatrix-loader.cpp`, `tools/quantize/quantize.cpp` (`load_imatrix`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import FormatError, UsageError
from dfqs.gguf.layout import checked_product
from dfqs.gguf.types import GGMLType, ValueType
from dfqs.gguf.values import array, string, u32
from dfqs.gguf.writer import TensorSource, write_gguf
from dfqs.quantize.imatrix_sums import COUNTS, SQUARES, SUMS, Float32, open_sums
from dfqs.quantize.legacy_imatrix import LegacySums
from dfqs.storage.atomic import OnWhole, tell_nobody
from dfqs.storage.closing import Closing

Counts = NDArray[np.int64]

MAX_COUNT = 1 << 53
"""No measurement sees more inputs or tokens; a file that says so is made up."""

MAX_CHUNKS = 2**32 - 1
ONE_COUNT_KEY = "dfqs.imatrix.one_count_for_all"
OLDER_AND_NEWER = (
    "an older importance matrix (.dat) does not say what each expert saw, and cannot be added to one that does"
)
ALL_ZERO = "holds no importance: every sum in it is zero; measure again with `dfqs imatrix`"


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
    one_count_for_all: bool = False
    """Whether stacked weights have one count for all their experts: it comes from an older file."""


class ImatrixFile(Closing):
    """An open importance-matrix file: a GGUF, or the older `.dat`.

    Raises:
        FormatError: it is no importance matrix, or its tensors contradict each other.
        UsageError: the file is missing or unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sums = open_sums(path)
        self._names = frozenset(self._sums.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Weights it knows, in file order."""
        return self._sums.names

    @property
    def is_legacy(self) -> bool:
        """Whether it is (made of) an older file, with one count for all experts of a weight."""
        return isinstance(self._sums, LegacySums) or ONE_COUNT_KEY in self._sums.metadata

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the texts it was measured on."""
        return self._sums.metadata.texts("imatrix.datasets") or ()

    @property
    def chunks(self) -> int | None:
        """Chunks of text that were read; None where it does not say."""
        return self._number("imatrix.chunk_count")

    @property
    def chunk_tokens(self) -> int | None:
        """Tokens of a chunk; None where it does not say."""
        return self._number("imatrix.chunk_size")

    def _number(self, key: str) -> int | None:
        metadata = self._sums.metadata
        value = metadata.integer(key)
        if value is None and key in metadata:
            raise FormatError("must be a whole number", path=self.path, name=key)
        return value

    @property
    def extra(self) -> dict[str, str]:
        """Its `dfqs.` keys of text."""
        names = [name for name in self._sums.metadata if name.startswith("dfqs.")]
        return {name: value for name in names if (value := self._sums.metadata.text(name)) is not None}

    def shape(self, name: str) -> tuple[int, int]:
        """(counts, sums for each of them) of a weight: experts and columns."""
        size, counts = self._sizes(name)
        return counts, size // counts

    def read(self, name: str) -> Accumulated:
        """Sums of one weight.

        Raises:
            FormatError: numbers that no sum of squares, or no count, can be.
        """
        squares, counts = self._checked(name)
        sums = None
        if self._sums.elements(name, SUMS):
            sums = self._sums.array(name, SUMS).reshape(squares.shape).copy()
            if not np.isfinite(sums).all():
                raise FormatError("holds sums that are no numbers: the file is damaged", path=self.path, name=name)
        return Accumulated(squares.copy(), counts.astype(np.int64), sums)

    def importance(self, name: str, shape: Sequence[int]) -> Float32 | None:
        """Importance of a weight's columns; None for a weight it does not know.

        Groups of which it knows nothing (no input seen, or nothing but zeroes) weigh all their columns the same: with
        weights of zero, llama.cpp's kernels make zeroes of them.

        Args:
            shape: the weight's, GGUF order.

        Returns:
            float32 [groups, columns], for as many equal groups of rows: the experts, or the groups of a matrix that is
            multiplied in parts (DeepSeek-V4's `attn_output_a`), or one for all rows.

        Raises:
            FormatError: it is of a weight of another shape, or holds numbers that no sum of squares can be.
        """
        if name not in self._names:
            return None
        groups = self.groups(name, shape)
        squares, counts = self._checked(name)
        # float32 all the way, as llama-quantize divides: another rounding would give other bytes.
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.where(counts[:, None] > 0, squares / counts[:, None], np.float32(1))
        mean = np.ascontiguousarray(mean.astype(np.float32, copy=False).reshape(groups, shape[0]))
        mean[~mean.any(axis=1)] = 1
        return mean

    def groups(self, name: str, shape: Sequence[int]) -> int:
        """In how many equal groups of rows the weight of that name and shape has importance.

        A vector that is multiplied with (the gate of Qwen's shared experts) is a matrix of one row.

        Raises:
            FormatError: it is of a weight of another shape.
        """
        size, counts = self._sizes(name)
        rows = shape[1] if len(shape) > 1 else 1
        matrices = checked_product(shape[2:])
        groups, rest = divmod(size, shape[0])
        fits = groups == matrices if matrices > 1 else groups > 0 and rows % groups == 0
        if rest or not fits or groups % counts:
            raise FormatError(
                f"has {size:,} columns with {counts:,} counts, which does not fit the model's {list(shape)}: it was "
                "made from another model",
                path=self.path,
                name=name,
            )
        return groups

    def silent(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """Groups of a weight of which it says nothing: no input reached them, or nothing but zeroes did.

        Raises:
            FormatError: as `importance`.
        """
        groups = self.groups(name, shape)
        squares, counts = self._checked(name)
        heard = squares.reshape(groups, shape[0]).any(axis=1) & np.repeat(counts > 0, groups // len(counts))
        return tuple(int(i) for i in np.flatnonzero(~heard))

    def is_empty(self, name: str) -> bool:
        """Whether nothing of a weight was seen: no count, no sum.

        Raises:
            FormatError: as `importance`.
        """
        squares, counts = self._checked(name)
        return not counts.any() and not squares.any()

    def uncovered(self, name: str) -> tuple[int, ...]:
        """Experts of a weight that no input reached."""
        return tuple(int(i) for i in np.flatnonzero(self._sums.array(name, COUNTS) <= 0))

    def _sizes(self, name: str) -> tuple[int, int]:
        """(sums, counts) of a weight."""
        return self._sums.elements(name, SQUARES), self._sums.elements(name, COUNTS)

    def _checked(self, name: str) -> tuple[Float32, Float32]:
        """(squares [experts, columns], whole counts [experts]) of a weight."""
        squares = self._sums.array(name, SQUARES).reshape(self.shape(name))
        counts = np.rint(self._sums.array(name, COUNTS))
        # Comparisons with NaN are false. llama.cpp's kernels would make noise of a negative weight without a word.
        if not (squares.min() >= 0 and squares.max() < np.inf) or not ((counts >= 0) & (counts <= MAX_COUNT)).all():
            raise FormatError(
                "holds what is no sum of squares, or no count (negative, NaN or infinite): the file is damaged",
                path=self.path,
                name=name,
            )
        return squares, counts

    def close(self) -> None:
        self._sums.close()


def read_imatrix(path: Path) -> Imatrix:
    """A whole importance matrix.

    Raises:
        FormatError, UsageError: as `ImatrixFile`.
    """
    with ImatrixFile(path) as file:
        chunk_tokens, chunks = file.chunk_tokens or 0, file.chunks or 0
        if min(chunks, chunk_tokens) < 0 or chunk_tokens > MAX_CHUNKS or chunks * chunk_tokens > MAX_COUNT:
            raise FormatError(f"claims {chunks:,} chunks of {chunk_tokens:,} tokens, more than anybody saw", path=path)
        entries = {name: file.read(name) for name in file.names if not file.is_empty(name)}
        if not entries:
            raise FormatError(ALL_ZERO, path=path)
        return Imatrix(entries, file.datasets, chunk_tokens, chunks * chunk_tokens, file.extra, file.is_legacy)


def write_imatrix(path: Path, imatrix: Imatrix, *, overwrite: bool = False, on_whole: OnWhole = tell_nobody) -> None:
    """Write a file that llama-quantize and llama-imatrix read. Names in sorted order, as llama-imatrix has them.

    Raises:
        FormatError: sums that are no numbers, or too large for one.
        UsageError: nothing was accumulated, or `path` exists and `overwrite` is false.
        SpaceError: the disk is full.
    """
    if not imatrix.entries:
        raise UsageError("nothing was measured, so there is no importance matrix to write")
    for name, entry in imatrix.entries.items():
        if not np.isfinite(entry.squares).all():
            raise FormatError("its sums are no numbers, or too large: no importance of it is written", name=name)
    # A chunk count of 32 bits is what the tools read; files of small chunks may add up to more.
    chunk = max(imatrix.chunk_tokens, 1, -(-imatrix.tokens // MAX_CHUNKS))
    extra = {**imatrix.extra, **({ONE_COUNT_KEY: "true"} if imatrix.one_count_for_all else {})}
    keys = [
        string("general.type", "imatrix"),
        array("imatrix.datasets", ValueType.STRING, list(imatrix.datasets)),
        u32("imatrix.chunk_count", (imatrix.tokens + chunk // 2) // chunk),
        u32("imatrix.chunk_size", chunk),
        *(string(name, value) for name, value in sorted(extra.items())),
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
    write_gguf(path, keys, tensors, overwrite=overwrite, on_whole=on_whole)


def _tensor(name: str, values: NDArray[Any], shape: tuple[int, int]) -> TensorSource:
    data = values.astype(np.float32).tobytes()
    return TensorSource(name, shape, GGMLType.F32, lambda: [data])


def merge_imatrices(matrices: Sequence[Imatrix]) -> Imatrix:
    """Add what several runs saw: other machines, other corpora.

    Raises:
        FormatError: they are of different models, or older files (one count for all experts) and newer ones.
    """
    older = matrices[0].one_count_for_all
    if any(matrix.one_count_for_all is not older for matrix in matrices if matrix.entries):
        raise FormatError(OLDER_AND_NEWER)
    result = Imatrix({}, chunk_tokens=matrices[0].chunk_tokens, one_count_for_all=older)
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
