"""What tests of forecasts let a worker do."""

from pathlib import Path

from dfqs.gguf import GGMLType
from dfqs.planning.probe_models import ProbeShape, write_probe
from dfqs.quantize.kernels import Kernels
from dfqs.runtime import Worker
from dfqs.runtime.worker_context import WorkerContext


def made(worker: WorkerContext, path: Path, shape: ProbeShape, type_: GGMLType) -> None:
    """In the worker: write a random model."""
    write_probe(path, Kernels(worker.library), shape, type_)


def make_probe(path: Path, shape: ProbeShape, type_: GGMLType) -> Path:
    """Write a random model; returns `path`."""
    with Worker(1, env={"PYTHONPATH": str(Path(__file__).parent)}) as worker:
        worker.call(made, path, shape, type_)
    return path
"""What the planning tests do inside a worker."""
import resource
from collections.abc import Sequence
from typing import Any
from dfqs.runtime.context import Context, Model
from dfqs.runtime.memory import MemoryPart, name_parts
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
