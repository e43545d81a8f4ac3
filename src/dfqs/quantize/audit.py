"""A published quantization spot-checked: chosen tensors are made again from the source, and compared byte by byte.

Only the byte ranges of the chosen tensors are read, on both sides, wherever they lie. The type of each tensor is taken
from the file under audit; whether its types are those of its class is `verify`'s matter. What cannot be made again
because something is missing (its importance matrix, most of the time) is unknown, never equal and never different.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite, prod, sqrt
from pathlib import Path

from dfqs.errors import FormatError, RuntimeFailure, UsageError, printable
from dfqs.gguf.layout import TensorInfo, squeeze_shape, tensor_length
from dfqs.gguf.source import ByteSource
from dfqs.gguf.types import GGMLType
from dfqs.model.files import ModelFiles
from dfqs.model.making import Making, read_making
from dfqs.model.spec import INTEGER_TYPES
from dfqs.progress import Progress, no_progress
from dfqs.quantize.audit_rows import NOTHING, Rows, RowsCompared, compare_rows, importance_runs
from dfqs.quantize.audit_sample import Sample, draw_rows, draw_sample
from dfqs.quantize.imatrix_file import ImatrixFile
from dfqs.quantize.kernels import Float32
from dfqs.quantize.plan import LIBRARY_NEEDS_IMPORTANCE, NEEDS_IMPORTANCE, TARGETS
from dfqs.runtime import Worker
from dfqs.storage.hashing import hash_file

T = GGMLType

IGNORES_IMPORTANCE = frozenset({T.F32, T.F16, T.BF16, T.Q8_0, T.TQ1_0, T.TQ2_0, T.MXFP4})
"""Types whose kernels look at no weights (`ggml/src/ggml-quants.c`: `(void)quant_weights`)."""
DEFAULT_LIMIT_BYTES = 32_000_000
SLAB_ELEMENTS = 1 << 20
"""Values that are made again at a time; one row where a row is longer."""
LONGEST_ROW = 1 << 24
"""Values; a row is made as a whole, and no model has one that is a tenth of this."""
_FEW = 3
"""Of so few tensors each may have got lost; of more, not half."""
CONNECTIONS = 8
"""Ranges that are read at once: what comes over a network takes its time to begin."""


class Verdict(StrEnum):
    """What came of one tensor, or of all."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Side:
    """A model whose bytes can be read: its headers, and a source of bytes for each of them."""

    model: ModelFiles
    sources: tuple[ByteSource, ...]

    def places(self) -> dict[str, tuple[int, TensorInfo]]:
        """Each tensor's file and description."""
        return {
            tensor.name: (index, tensor) for index, header in enumerate(self.model.headers) for tensor in header.tensors
        }

    def read(self, index: int, tensor: TensorInfo, offset: int, length: int) -> bytes:
        """Bytes of a tensor.

        Raises:
            FormatError: the file ends before.
        """
        start = self.model.headers[index].span(tensor).offset + offset
        data = self.sources[index].read_at(start, length)
        if len(data) != length:
            raise FormatError(
                "ends too soon", path=self.sources[index].name, offset=start + len(data), name=tensor.name
            )
        return data


@dataclass(frozen=True, slots=True)
class TensorAudit:
    """One tensor that was drawn."""

    name: str
    type: str
    source_type: str | None
    """None: the source has no such tensor."""
    verdict: Verdict
    reason: str | None
    """Why it is not equal."""
    rows: int
    rows_compared: int
    blocks: int
    """Compared."""
    differing_blocks: int
    rmse: float | None
    """Of the blocks that differ, against the source."""
    expected_rmse: float | None
    """Of the same blocks, as they come out here."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found."""

    sample: Sample
    tensors: tuple[TensorAudit, ...]
    only_in_model: tuple[str, ...]
    only_in_source: tuple[str, ...]
    making: Making | None
    imatrix_sha256: str | None
    """Of the one that was given."""
    model_bytes_read: int
    source_bytes_read: int

    @property
    def verdict(self) -> Verdict:
        """Different where one tensor is, or where one side has a tensor that the other has not; equal where all are."""
        found = {tensor.verdict for tensor in self.tensors}
        if Verdict.DIFFERENT in found or self.only_in_model or self.only_in_source:
            return Verdict.DIFFERENT
        return Verdict.EQUAL if found == {Verdict.EQUAL} else Verdict.UNKNOWN

    def count(self, verdict: Verdict) -> int:
        """How many of the drawn tensors have that verdict."""
        return sum(tensor.verdict is verdict for tensor in self.tensors)


def audit(
    model: Side,
    source: Side,
    *,
    imatrix: Path | None = None,
    confidence: float = 0.95,
    share: float = 0.01,
    seed: int = 0,
    limit_bytes: int | None = DEFAULT_LIMIT_BYTES,
    threads: int | None = None,
    progress: Progress = no_progress,
    worker: Worker | None = None,
) -> Audit:
    """Draw tensors of `model`, make each again from `source`, and compare.

    Args:
        seed: of the draw. Whoever makes a file to pass must not know it beforehand.
        limit_bytes: of the source, for each tensor; a larger one is looked at in places (`draw_rows`). None: read all.
        progress: in bytes of the source.
        worker: one that runs already.

    Raises:
        UsageError: numbers out of their range, a source that is of another model, or an importance matrix that is not
            the one that the file names.
        FormatError: a file was cut short, or the importance matrix is damaged.
        NetworkError: a remote file could not be read.
    """
    ours, theirs = model.places(), source.places()
    _require_one_model(ours, theirs)
    sample = draw_sample(list(ours), confidence=confidence, share=share, seed=seed)
    making = read_making(model.model.header)
    with ExitStack() as stack:
        importance = stack.enter_context(ImatrixFile(imatrix)) if imatrix is not None else None
        sha256 = _checked_hash(imatrix, making)
        pairs = [_Pair(name, ours[name], theirs.get(name)) for name in sample.names]
        running = worker if worker is not None else stack.enter_context(Worker(threads=threads))
        run = _Run(model, source, importance, seed, limit_bytes, running)
        run.told = _told(run, pairs, progress)
        pool = stack.enter_context(ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="range"))
        found = tuple(run.audit_tensor(pair, pool) for pair in pairs)
    return Audit(
        sample,
        found,
        tuple(name for name in ours if name not in theirs),
        tuple(name for name in theirs if name not in ours),
        making,
        sha256,
        run.model_bytes,
        run.source_bytes,
    )


def _require_one_model(
    ours: Mapping[str, tuple[int, TensorInfo]], theirs: Mapping[str, tuple[int, TensorInfo]]
) -> None:
    fitting = sum(
        name in theirs and squeeze_shape(tensor.shape) == squeeze_shape(theirs[name][1].shape)
        for name, (_, tensor) in ours.items()
    )
    if 2 * fitting < max(len(ours), len(theirs)) and len(ours) >= _FEW:
        raise UsageError(
            f"the source is of another model: {fitting:,} of the file's {len(ours):,} tensors are in it with the same "
            f"shape, and it has {len(theirs):,}; give what the file was quantized from"
        )


def _checked_hash(imatrix: Path | None, making: Making | None) -> str | None:
    if imatrix is None:
        return None
    sha256 = hash_file(imatrix)
    if making is not None and sha256 != making.imatrix_sha256:
        made = f"with that of SHA-256 {making.imatrix_sha256}" if making.imatrix_sha256 else "without any"
        raise UsageError(f"{imatrix} is not the importance matrix that the file was made with: it was made {made}")
    return sha256


@dataclass(frozen=True, slots=True)
class _Pair:
    """One tensor on both sides."""

    name: str
    ours: tuple[int, TensorInfo]
    theirs: tuple[int, TensorInfo] | None


def _told(run: "_Run", pairs: Sequence[_Pair], progress: Progress) -> Callable[[str], None]:
    total = sum(
        (last - first) * tensor_length(pair.theirs[1].type, pair.theirs[1].shape[:1])
        for pair in pairs
        if pair.theirs is not None and run.unmakeable(pair) is None
        for first, last in run.rows_of(pair)
    )
    return lambda name: progress(run.source_bytes, max(total, run.source_bytes), name)


class _Run:
    """One audit under way."""

    def __init__(
        self,
        model: Side,
        source: Side,
        imatrix: ImatrixFile | None,
        seed: int,
        limit_bytes: int | None,
        worker: Worker,
    ) -> None:
        self._model, self._source, self._imatrix = model, source, imatrix
        self._seed, self._limit_bytes, self._worker = seed, limit_bytes, worker
        self._recorded = _recorded_imatrix(model.model)
        self.model_bytes = self.source_bytes = 0
        self.told: Callable[[str], None] = lambda name: None

    def rows_of(self, pair: _Pair) -> tuple[tuple[int, int], ...]:
        """Rows that are compared."""
        tensor = pair.theirs[1] if pair.theirs is not None else pair.ours[1]
        row_bytes = tensor_length(tensor.type, tensor.shape[:1])
        rows = prod(tensor.shape[1:])
        return draw_rows(pair.name, rows, row_bytes, limit_bytes=self._limit_bytes, seed=self._seed)

    def unmakeable(self, pair: _Pair) -> tuple[Verdict, str] | None:
        """Why a tensor need not, or cannot, be made again; None: it can."""
        tensor = pair.ours[1]
        if pair.theirs is None:
            return Verdict.DIFFERENT, "the source has no tensor of this name"
        source = pair.theirs[1]
        if squeeze_shape(source.shape) != squeeze_shape(tensor.shape):
            return Verdict.DIFFERENT, f"its shape is {list(tensor.shape)}, the source's {list(source.shape)}"
        if tensor.shape[0] > LONGEST_ROW:
            return Verdict.UNKNOWN, f"its rows of {tensor.shape[0]:,} values are longer than any model's"
        if tensor.type is source.type:
            return None
        if tensor.type not in TARGETS or source.type in INTEGER_TYPES:
            return Verdict.UNKNOWN, f"{tensor.type.name} is not made of {source.type.name}"
        if self._imatrix is None:
            if tensor.type in LIBRARY_NEEDS_IMPORTANCE:
                return Verdict.UNKNOWN, self._missing_imatrix(tensor.type)
        elif tensor.type in LIBRARY_NEEDS_IMPORTANCE and tensor.name not in self._imatrix.names:
            return Verdict.UNKNOWN, f"{tensor.type.name} needs importance, and the matrix says nothing of this tensor"
        return None

    def audit_tensor(self, pair: _Pair, pool: ThreadPoolExecutor) -> TensorAudit:
        """Make a tensor again, and compare."""
        reason = self.unmakeable(pair)
        if reason is not None:
            return self._result(pair, *reason)
        assert pair.theirs is not None
        copied = pair.ours[1].type is pair.theirs[1].type
        compared, rows = NOTHING, 0
        try:
            weights = None if copied else self._weights(pair.ours[1])
            for slab in self._slabs(pair, weights, pool):
                compared += _compare_copies(slab) if copied else self._worker.call(compare_rows, slab)
                rows += sum(count for count, _ in slab.importance)
                self.told(pair.name)
        except (FormatError, RuntimeFailure) as error:
            if isinstance(error, FormatError) and error.path is not None:
                # A file that ends too soon, or a matrix of another model: no matter of this tensor alone.
                raise
            return self._result(pair, Verdict.UNKNOWN, f"it cannot be made again: {printable(error.sentence, 200)}")
        if not compared.differing_blocks:
            return self._result(pair, Verdict.EQUAL, None, rows, compared)
        return self._result(pair, *self._judge(pair.ours[1].type, copied=copied), rows, compared)

    def _judge(self, type_: GGMLType, *, copied: bool) -> tuple[Verdict, str]:
        """What a difference means."""
        if copied:
            return Verdict.DIFFERENT, "the source has the same type and other bytes"
        needs = type_ in NEEDS_IMPORTANCE or self._recorded is not None
        if self._imatrix is None and needs and type_ not in IGNORES_IMPORTANCE:
            return Verdict.UNKNOWN, self._missing_imatrix(type_)
        return Verdict.DIFFERENT, "made again from the source, it has other bytes"

    def _missing_imatrix(self, type_: GGMLType) -> str:
        which = f" ({printable(self._recorded)})" if self._recorded else ""
        return f"{type_.name} depends on the importance matrix that it was made with{which}, and none was given"

    def _weights(self, tensor: TensorInfo) -> Float32 | None:
        return self._imatrix.importance(tensor.name, tensor.shape) if self._imatrix is not None else None

    def _slabs(self, pair: _Pair, weights: Float32 | None, pool: ThreadPoolExecutor) -> Iterator[Rows]:
        """Rows of both sides, read some ahead."""
        assert pair.theirs is not None
        tensor = pair.ours[1]
        step = max(1, SLAB_ELEMENTS // tensor.shape[0])
        # Of long rows fewer wait: what is held stays the same.
        ahead = max(1, min(CONNECTIONS, CONNECTIONS * SLAB_ELEMENTS // (step * tensor.shape[0])))
        group = prod(tensor.shape[1:]) // (1 if weights is None else len(weights))
        places = [
            (start, min(start + step, last)) for first, last in self.rows_of(pair) for start in range(first, last, step)
        ]
        waiting: list[Future[Rows]] = []
        try:
            for first, last in places:
                waiting.append(pool.submit(self._read, pair, first, last, importance_runs(weights, group, first, last)))
                if len(waiting) >= ahead:
                    yield self._counted(waiting.pop(0).result())
            while waiting:
                yield self._counted(waiting.pop(0).result())
        finally:
            for future in waiting:
                future.cancel()

    def _read(self, pair: _Pair, first: int, last: int, importance: tuple[tuple[int, Float32 | None], ...]) -> Rows:
        assert pair.theirs is not None
        sides = []
        for side, (index, tensor) in ((self._source, pair.theirs), (self._model, pair.ours)):
            row_bytes = tensor_length(tensor.type, tensor.shape[:1])
            sides.append(side.read(index, tensor, first * row_bytes, (last - first) * row_bytes))
        ours = pair.ours[1]
        return Rows(ours.shape[0], pair.theirs[1].type, ours.type, sides[0], sides[1], importance)

    def _counted(self, rows: Rows) -> Rows:
        self.source_bytes += len(rows.source)
        self.model_bytes += len(rows.found)
        return rows

    def _result(
        self, pair: _Pair, verdict: Verdict, reason: str | None, rows: int = 0, compared: RowsCompared = NOTHING
    ) -> TensorAudit:
        tensor = pair.ours[1]
        return TensorAudit(
            pair.name,
            tensor.type.name,
            pair.theirs[1].type.name if pair.theirs is not None else None,
            verdict,
            reason,
            prod(tensor.shape[1:]),
            rows,
            compared.blocks,
            compared.differing_blocks,
            _rmse(compared.squares_found, compared.differing_values),
            _rmse(compared.squares_made, compared.differing_values),
        )


def _recorded_imatrix(model: ModelFiles) -> str | None:
    """What the file says of the importance matrix it was made with; None: of none. llama-quantize writes its name."""
    making = read_making(model.header)
    if making is not None:
        return f"SHA-256 {making.imatrix_sha256}" if making.imatrix_sha256 else None
    metadata = model.header.metadata
    if not any(key.startswith("quantize.imatrix.") for key in metadata):
        return None
    return metadata.text("quantize.imatrix.file") or "its name is not said"


def _compare_copies(rows: Rows) -> RowsCompared:
    """Bytes that should be the source's own, row by row."""
    if rows.source == rows.found:
        return RowsCompared(sum(count for count, _ in rows.importance), 0, 0, 0.0, 0.0)
    row_bytes = tensor_length(rows.type, (rows.columns,))
    starts = range(0, len(rows.source), row_bytes)
    differing = sum(rows.source[at : at + row_bytes] != rows.found[at : at + row_bytes] for at in starts)
    return RowsCompared(len(starts), differing, 0, 0.0, 0.0)


def _rmse(squares: float, values: int) -> float | None:
    return sqrt(squares / values) if values and isfinite(squares) else None
