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


def fill_context(worker: WorkerContext, path: Path, tokens: int, small: Path) -> tuple[int, int]:
    """(resident bytes at the most before the model is loaded, and after a full context was decoded).

    Args:
        small: a model that is run before, so that what the library takes once is there.
    """
    _fill(worker, small, 16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    _fill(worker, path, tokens)
    return before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def _fill(worker: WorkerContext, path: Path, tokens: int) -> None:
    with Model(worker.library, path) as model, Context(model, tokens) as context:
        context.decode([7 + i % 900 for i in range(tokens)], logits="none")
