"""Carries out a quantization, in the worker process: read, convert, write, in bounded memory and on all cores.

Tensors are cut into slabs of whole rows. Threads read and convert slabs; the main thread takes them back in order,
hashes both sides and writes. Nothing depends on which thread did what: the bytes are the same for any number of them.
"""

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dfqs.errors import FormatError, IntegrityError
from dfqs.gguf.layout import tensor_length
from dfqs.gguf.source import FileSource
from dfqs.model.hashes import content_line
from dfqs.quantize.imatrix_file import ImatrixFile
from dfqs.quantize.journal import LOCK_WAIT_S, FinishedTensor, Journal
from dfqs.quantize.kernels import Float32, Kernels
from dfqs.quantize.slabs import Buffers, Slab, slab_plan
from dfqs.quantize.work import Outcome, OutputFile, TensorWork, Work
from dfqs.storage.atomic import check_output_path, storage_errors
from dfqs.storage.files import read_at, write_at
from dfqs.storage.hashing import hash_range
from dfqs.storage.libc import start_writeback
from dfqs.storage.locks import open_locked

if TYPE_CHECKING:
    from dfqs.runtime.worker_context import WorkerContext

SYNC_BYTES, SYNC_S = 256 << 20, 1.0
"""Finished tensors are synced and journalled after so many bytes or so much time."""
PROGRESS_S = 0.1


def execute(worker: "WorkerContext", work: Work) -> Outcome:
    """Write the outputs of `work` whole and synced, under their partial names. Emits `(parameters done, tensor name)`.

    Raises:
        FormatError: weights that are no numbers, a source that was cut short. Nothing is left of the output then.
        UsageError: an unfinished run of something else lies there, or another process is writing the same output.
        SpaceError: the disk is full. What was written stays, and the same command goes on from there.
    """
    slab_plan(work)
    with ExitStack() as stack:
        journal = Journal(work.journal, work.fingerprint, restart=work.restart)
        stack.callback(journal.close)
        try:
            sources = [stack.enter_context(FileSource(path)) for path in work.sources]
            imatrix = stack.enter_context(ImatrixFile(work.imatrix)) if work.imatrix is not None else None
            handles = [_open_partial(file, journal.complete, work.overwrite, stack) for file in work.outputs]
        except BaseException:
            if journal.is_new:
                # Nothing was begun: nothing stays.
                journal.remove()
            raise
        run = _Run(work, sources, handles, journal, imatrix, Kernels(worker.library), worker.emit)
        try:
            outcome = run.carry_out()
        except FormatError:
            # Another input is needed, and another input is another work: there is nothing to go on with.
            _discard(work, journal)
            raise
    return outcome


class _Run:
    def __init__(
        self,
        work: Work,
        sources: list[FileSource],
        handles: list[int],
        journal: Journal,
        imatrix: ImatrixFile | None,
        kernels: Kernels,
        emit: Callable[[tuple[int, str, bool]], None],
    ) -> None:
        self.work, self.sources, self.handles = work, sources, handles
        self.journal, self.imatrix, self.kernels, self.emit = journal, imatrix, kernels, emit
        self.slab_elements, self.threads = slab_plan(work)
        self.done_parameters = 0
        self._unsynced: list[FinishedTensor] = []
        self._unsynced_bytes = 0
        self._last_sync = self._last_emit = time.monotonic()
        self._spare: list[Buffers] = []
        self._own = threading.local()

    def carry_out(self) -> Outcome:
        started = time.monotonic()
        finished = self._check_finished()
        resumed = len(finished)
        # The header is written again even over a finished file: only tensors have hashes in the journal.
        for file, handle in zip(self.work.outputs, self.handles, strict=True):
            with storage_errors(file.path):
                if not finished:
                    os.ftruncate(handle, 0)
                os.ftruncate(handle, file.size)
                write_at(handle, file.header, 0)
        todo = [t for t in self.work.tensors if t.name not in finished]
        for type_ in {t.type for t in todo if t.type is not t.source_type}:
            self.kernels.prepare(type_)
        finished |= {t.name: t for t in self._convert_all(todo)}
        self._fill_hash_slots(finished)
        self._sync()
        if not self.journal.complete:
            self.journal.mark_complete()
        in_order = tuple(finished[t.name] for t in self.work.tensors)
        quantized = self.done_parameters - self._resumed_parameters
        return Outcome(in_order, resumed, quantized, time.monotonic() - started, self.threads)

    def _check_finished(self) -> dict[str, FinishedTensor]:
        """What an earlier run wrote, read back: a journal is believed only together with its bytes."""
        finished = {}
        for tensor in self.work.tensors:
            entry = self.journal.finished.get(tensor.name)
            if entry is None or self._hash_output(tensor) != entry.sha256:
                if self.journal.complete:
                    output = self.work.outputs[tensor.output]
                    changed = output.partial if output.partial.exists() else output.path
                    raise IntegrityError(
                        f"{changed}: tensor '{tensor.name}' changed after it was written; delete that file, or give "
                        "--restart to make it again"
                    )
                continue
            finished[tensor.name] = entry
            self._count(tensor, tensor.rows, done_before=True)
        self._resumed_parameters = self.done_parameters
        return finished

    def _hash_output(self, tensor: TensorWork) -> str | None:
        read = partial(read_at, self.handles[tensor.output])
        return hash_range(read, tensor.offset, tensor_length(tensor.type, tensor.shape))

    def _convert_all(self, tensors: list[TensorWork]) -> Iterator[FinishedTensor]:
        """Convert `tensors` in order. Slabs of the next tensor start before the last one is written."""
        waiting: deque[tuple[Slab, Buffers, Future[tuple[memoryview, memoryview]]]] = deque()
        source_hash, hash_, position = hashlib.sha256(), hashlib.sha256(), 0
        slabs = self._slabs(tensors)
        with ThreadPoolExecutor(self.threads) as pool:
            try:
                while True:
                    while len(waiting) < 2 * self.threads and (slab := next(slabs, None)) is not None:
                        buffers = self._spare.pop() if self._spare else Buffers(self.slab_elements)
                        waiting.append((slab, buffers, pool.submit(self._convert, slab, buffers)))
                    if not waiting:
                        break
                    slab, buffers, future = waiting.popleft()
                    tensor = slab.tensor
                    source, result = future.result()
                    source_hash.update(source)
                    hash_.update(result)
                    with storage_errors(self.work.outputs[tensor.output].path):
                        write_at(self.handles[tensor.output], result, tensor.offset + position)
                    start_writeback(self.handles[tensor.output], tensor.offset + position, len(result))
                    position += len(result)
                    self._unsynced_bytes += len(result)
                    self._spare.append(buffers)
                    self._count(tensor, slab.last - slab.first)
                    if slab.last == tensor.rows:
                        entry = FinishedTensor(tensor.name, source_hash.hexdigest(), hash_.hexdigest())
                        self._finish(entry)
                        yield entry
                        source_hash, hash_, position = hashlib.sha256(), hashlib.sha256(), 0
            except BaseException:
                for *_, future in waiting:
                    future.cancel()
                raise

    def _slabs(self, tensors: list[TensorWork]) -> Iterator[Slab]:
        for tensor in tensors:
            importance = None
            if self.imatrix is not None and tensor.type is not tensor.source_type:
                importance = self.imatrix.importance(tensor.name, tensor.shape)
            step = max(1, self.slab_elements // tensor.shape[0])
            for first in range(0, tensor.rows, step):
                yield Slab(tensor, first, min(first + step, tensor.rows), importance)

    def _convert(self, slab: Slab, buffers: Buffers) -> tuple[memoryview, memoryview]:
        """The source's bytes of a slab, and the result's."""
        tensor, first, count = slab.tensor, slab.first, slab.last - slab.first
        source = self.sources[tensor.source]
        row_bytes, out_row_bytes = self._row(tensor), tensor_length(tensor.type, (tensor.shape[0],))
        data = buffers.source[: count * row_bytes]
        source.fill(data, tensor.source_offset + first * row_bytes)
        if not self.kernels.is_valid(tensor.source_type, data):
            raise self._not_finite(tensor, first, data)
        if tensor.type is tensor.source_type:
            return data, data
        out = buffers.result[: count * out_row_bytes]
        for start, end, weights in slab.pieces():
            at, until = start - first, end - first
            values = self._values(tensor, data[at * row_bytes : until * row_bytes], end - start)
            self.kernels.quantize(tensor.type, values, weights, out[at * out_row_bytes : until * out_row_bytes])
        if not self.kernels.is_valid(tensor.type, out):
            raise FormatError(
                f"holds values too large for {tensor.type.name} (rows {first:,} to {slab.last - 1:,})",
                path=source.path,
                name=tensor.name,
            )
        return data, out.data

    def _values(self, tensor: TensorWork, data: memoryview, rows: int) -> Float32:
        """Rows as float32, in memory that this thread uses again."""
        elements = rows * tensor.shape[0]
        room: Float32 | None = getattr(self._own, "values", None)
        if room is None or room.size < elements:
            room = self._own.values = np.empty(elements, np.float32)
        values = self.kernels.to_float(tensor.source_type, data, elements, into=room[:elements])
        return values.reshape(rows, tensor.shape[0])

    def _not_finite(self, tensor: TensorWork, first: int, data: memoryview) -> FormatError:
        values = self.kernels.to_float(tensor.source_type, data, tensor.shape[0] * (len(data) // self._row(tensor)))
        bad = int(np.flatnonzero(~np.isfinite(values))[0]) if not np.isfinite(values).all() else 0
        row, column = divmod(bad + first * tensor.shape[0], tensor.shape[0])
        return FormatError(
            f"holds weights that are no numbers (NaN or infinite; the first at row {row:,}, column {column:,}); "
            "nothing sensible can be made of it: fetch or convert the model again",
            path=self.sources[tensor.source].path,
            name=tensor.name,
        )

    def _row(self, tensor: TensorWork) -> int:
        return tensor_length(tensor.source_type, (tensor.shape[0],))

    def _count(self, tensor: TensorWork, rows: int, *, done_before: bool = False) -> None:
        if tensor.type is not tensor.source_type:
            self.done_parameters += rows * tensor.shape[0]
        now = time.monotonic()
        if now - self._last_emit >= PROGRESS_S:
            self._last_emit = now
            self.emit((self.done_parameters, tensor.name, done_before))

    def _finish(self, entry: FinishedTensor) -> None:
        self._unsynced.append(entry)
        if self._unsynced_bytes >= SYNC_BYTES or time.monotonic() - self._last_sync >= SYNC_S:
            self._sync()

    def _sync(self) -> None:
        for file, handle in zip(self.work.outputs, self.handles, strict=True):
            with storage_errors(file.path):
                os.fsync(handle)
        self.journal.add(self._unsynced)
        self._unsynced, self._unsynced_bytes, self._last_sync = [], 0, time.monotonic()

    def _fill_hash_slots(self, finished: dict[str, FinishedTensor]) -> None:
        digest = source_content_sha256(self.work.tensors, finished).encode()
        for file, handle in zip(self.work.outputs, self.handles, strict=True):
            if file.hash_slot is not None:
                with storage_errors(file.path):
                    write_at(handle, digest, file.hash_slot)


def source_content_sha256(tensors: tuple[TensorWork, ...], finished: dict[str, FinishedTensor]) -> str:
    """Content hash of the source, from the tensor hashes taken on the way."""
    hashed = ((t.name, t.source_type.name, t.shape, finished[t.name].source_sha256) for t in tensors)
    return hashlib.sha256(b"".join(sorted(content_line(*entry) for entry in hashed))).hexdigest()


def _open_partial(file: OutputFile, complete: bool, overwrite: bool, stack: ExitStack) -> int:
    # Without its partial file, a finished run has renamed it already.
    path = file.path if complete and not file.partial.exists() else file.partial
    if path is file.partial:
        check_output_path(file.path, overwrite=overwrite)
    with storage_errors(file.path):
        # The worker of a killed run dies with its caller, but not before its last write to the disk has ended.
        handle = open_locked(path, f"another process is writing {file.path}", wait_s=LOCK_WAIT_S)
    stack.callback(os.close, handle)
    return handle


def _discard(work: Work, journal: Journal) -> None:
    for file in work.outputs:
        file.partial.unlink(missing_ok=True)
    journal.remove()
