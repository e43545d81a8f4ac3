"""What tests of the noise floor ask of a worker."""

from pathlib import Path

from dfqs.quantize.noise_floor import NUMERICS, NoiseFloor, OtherNumerics, measure_floor, tokens_for_floor
from dfqs.runtime.context import Model
from dfqs.runtime.worker_context import WorkerContext


def floor_of(
    worker: WorkerContext, path: Path, text: str, tokens: int, others: tuple[OtherNumerics, ...] = NUMERICS
) -> tuple[NoiseFloor, int]:
    """A floor, and how many tokens its progress counted."""
    told = 0

    def count() -> None:
        nonlocal told
        told += 1

    with Model(worker.library, path) as model:
        held = tokens_for_floor(model, text, tokens)
        return measure_floor(model, *held, others=others, on_token=count), told
