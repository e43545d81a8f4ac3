"""What the planning tests do inside a worker."""

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfqs.runtime.context import Context, Model
from dfqs.runtime.memory import MemoryPart, name_parts
from dfqs.runtime.worker_context import WorkerContext

KIB = 1024


def allocate(
    worker: WorkerContext, path: Path, contexts: Sequence[dict[str, Any]]
) -> tuple[int, list[tuple[MemoryPart, ...]]]:
    """Bytes of weights that a loaded model really has, and what its contexts have."""
    with Model(worker.library, path, load_mode="none") as model:
        weights = sum(buffer.bytes for buffer in model.buffers if buffer.kind == "model")
        parts = []
        for settings in contexts:
            with Context(model, **settings) as context:
                parts.append(name_parts(context.buffers))
        return weights, parts


def fill_context(worker: WorkerContext, path: Path, tokens: int) -> tuple[int, int]:
    """(resident bytes before a model is loaded, at the most after a full context was decoded)."""
    library = worker.library
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    with Model(library, path) as model, Context(model, tokens) as context:
        context.decode([7 + i % 900 for i in range(tokens)])
    return before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
