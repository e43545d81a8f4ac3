"""What dfqs itself asks of a worker. Every function here runs in the worker process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfqs.runtime.memory import MemoryNeed
from dfqs.runtime.session import Context, Model
from dfqs.runtime.worker_context import WorkerContext


def measure_stub(
    worker: WorkerContext, path: Path, context_tokens: Sequence[int], settings: dict[str, Any]
) -> tuple[MemoryNeed, ...]:
    """Bytes that contexts of these lengths would take; `settings` are those of `Context`."""
    needs = []
    with Model(worker.library, path, load_mode="none", no_alloc=True) as model:
        for tokens in context_tokens:
            with Context(model, tokens, **settings) as session:
                sizes = [(buffer.kind, buffer.bytes) for buffer in session.buffers]
                compute = sum(size for kind, size in sizes if kind == "compute")
                output = sum(size for kind, size in sizes if kind == "output")
                needs.append(
                    MemoryNeed(
                        context_tokens=session.n_ctx,
                        weights_bytes=model.size_bytes,
                        kv_bytes=sum(size for _, size in sizes) - compute - output,
                        compute_bytes=compute,
                        output_bytes=output,
                        notices=tuple(session.notices),
                    )
                )
    return tuple(needs)
