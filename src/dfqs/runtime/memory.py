"""How much memory a model needs at a context length, answered by llama.cpp itself from the header alone.

A *sparse stub* is the file's header followed by a hole of the right length: it takes disk for the header only. Loaded
with simulated allocations it makes llama.cpp report weights, caches and compute buffers for any architecture it knows,
in about a second and without reading a weight.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqs.errors import UsageError
from dfqs.gguf import ByteSource, FileSource, Header
from dfqs.model.files import ModelFiles
from dfqs.runtime.checks import check_model
from dfqs.runtime.context import Context, Model
from dfqs.runtime.worker import Worker
from dfqs.runtime.worker_context import WorkerContext
from dfqs.storage.atomic import storage_errors

_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that llama.cpp allocates for one context, beside those of Python and the library (some 200 MB)."""

    context_tokens: int
    """As granted: rounded up by llama.cpp, capped at what the model was trained for."""
    weights_bytes: int
    kv_bytes: int
    """Caches and recurrent states of all sequences."""
    compute_bytes: int
    output_bytes: int
    notices: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.output_bytes


def measure_memory(model: Path | ModelFiles, context_tokens: int, **settings: Any) -> MemoryNeed:
    """What a model needs at one context length; see `measure_memory_curve`."""
    return measure_memory_curve(model, [context_tokens], **settings)[0]


def measure_memory_curve(
    model: Path | ModelFiles, context_tokens: Sequence[int], worker: Worker | None = None, **settings: Any
) -> tuple[MemoryNeed, ...]:
    """What a model needs at several context lengths.

    Args:
        worker: to use; None starts one.
        settings: of `Context`: `n_ubatch`, `flash_attention`, `type_k`, `type_v`, `n_seq_max`, `kv_unified`,
            `swa_full`.

    Raises:
        FormatError: the header is not sound.
        RuntimeFailure: llama.cpp does not know the model, or not these settings.
    """
    with tempfile.TemporaryDirectory(prefix="dfqs-stub-") as directory:
        stubs = []
        for shard in check_model(model).shards:
            with FileSource(shard.path) as source:
                stubs.append(write_stub(source, shard.header, Path(directory) / shard.path.name))
        if worker is not None:
            return _measure(worker, stubs[0], context_tokens, settings)
        with Worker() as own:
            return _measure(own, stubs[0], context_tokens, settings)


def write_stub(source: ByteSource, header: Header, path: Path) -> Path:
    """Write `header` and a hole as long as its data; returns `path`."""
    with storage_errors(path), path.open("xb") as file:
        for offset in range(0, header.data_offset, _COPY_BYTES):
            file.write(source.read_at(offset, min(_COPY_BYTES, header.data_offset - offset)))
        file.truncate(header.file_size)
    return path


def _measure(
    worker: Worker, stub: Path, context_tokens: Sequence[int], settings: dict[str, Any]
) -> tuple[MemoryNeed, ...]:
    if not context_tokens:
        raise UsageError("no context length to measure")
    return worker.call(measure_stub, stub, list(context_tokens), settings)


def measure_stub(
    worker: WorkerContext, path: Path, context_tokens: Sequence[int], settings: dict[str, Any]
) -> tuple[MemoryNeed, ...]:
    """In the worker: bytes that contexts of these lengths would take; `settings` are those of `Context`."""
    needs = []
    with Model(worker.library, path, load_mode="none", no_alloc=True) as model:
        for tokens in context_tokens:
            with Context(model, tokens, **settings) as context:
                sizes = [(buffer.kind, buffer.bytes) for buffer in context.buffers]
                compute = sum(size for kind, size in sizes if kind == "compute")
                output = sum(size for kind, size in sizes if kind == "output")
                needs.append(
                    MemoryNeed(
                        context_tokens=context.n_ctx,
                        weights_bytes=model.size_bytes,
                        kv_bytes=sum(size for _, size in sizes) - compute - output,
                        compute_bytes=compute,
                        output_bytes=output,
                        notices=tuple(context.notices),
                    )
                )
    return tuple(needs)
