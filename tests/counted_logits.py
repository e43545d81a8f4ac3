"""Models loaded so that the rows of logits that their graphs compute are counted. Runs in a worker process."""

from dataclasses import dataclass
from pathlib import Path

from dfqs.progress import Progress
from dfqs.runtime.library import Library
from dfqs.runtime.loading import InMemory, LoadedModel
from dfqs.runtime.observe import EvalCallback, TensorView
from dfqs.runtime.worker_context import WorkerContext

_COUNTED: list[int] = []


def _count(name: str, op: str, tensor: TensorView) -> None:
    _COUNTED.append(tensor.shape[1])


@dataclass(frozen=True, slots=True)
class Counted(InMemory):
    """As `InMemory`, and each graph's rows of logits are remembered for `take_counts`."""

    def load(self, library: Library, path: Path, progress: Progress) -> LoadedModel:
        loaded = InMemory.load(self, library, path, progress)
        loaded.model.callback = EvalCallback(lambda name, op: name == "result_output", _count)
        return loaded


def take_counts(worker: WorkerContext) -> list[int]:
    """Rows of logits of each graph since the last time; of one that ended before them, nothing."""
    counted, _COUNTED[:] = list(_COUNTED), []
    return counted
