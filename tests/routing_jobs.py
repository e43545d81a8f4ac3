"""Functions that tests of routing run inside a worker process."""

from dfqs.routing.capture import REFERENCE, load_model
from dfqs.routing.load import _prompt_breaks
from dfqs.runtime.context import Context
from dfqs.runtime.worker_context import WorkerContext


def prompt_breaks(worker: WorkerContext, path: str) -> tuple[int, ...]:
    """Before how many last tokens of a prompt a batch ends."""
    settings = {**REFERENCE, "n_batch": 2048}
    model = load_model(worker, path)
    with Context(model, 2048, **settings) as context:
        return _prompt_breaks(model, context, settings)
