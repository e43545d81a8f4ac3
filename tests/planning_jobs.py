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
