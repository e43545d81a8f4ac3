"""Q8_0 by numpy is Q8_0 by llama.cpp, to the last bit: who compares a file's hashes sees one wrong rounding."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dfqs.gguf.types import GGMLType
from dfqs.quantize.kernels import Kernels
from dfqs.quantize.q8_0 import BLOCK, PIECE_ELEMENTS, quantize_q8_0
from dfqs.runtime import Worker
from dfqs.runtime.worker_context import WorkerContext

Blocks = NDArray[np.uint8]


def by_numpy(values: NDArray[np.float32]) -> Blocks | None:
    out = np.zeros(values.size // BLOCK * 34, np.uint8)
    return out.reshape(-1, 34) if quantize_q8_0(values.reshape(-1), out) else None


def by_llama(worker: WorkerContext, values: NDArray[np.float32]) -> Blocks:
    """In the worker: llama.cpp's own loop, whatever `Kernels` would take."""
    kernels = Kernels(worker.library)
    out = np.zeros(values.size // BLOCK * 34, np.uint8)
    with pytest.MonkeyPatch().context() as patch:
        patch.setattr("dfqs.quantize.kernels.quantize_q8_0", lambda *_: False)
        kernels.quantize(GGMLType.Q8_0, values.reshape(-1, BLOCK), None, out)
    return out.reshape(-1, 34)


def cases() -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(0)
    count = PIECE_ELEMENTS + 5 * BLOCK
    exponents = np.float32(2) ** np.repeat(random.integers(-60, 60, count // BLOCK), BLOCK).astype(np.float32)
    halves = (random.integers(-254, 255, count) / 2).astype(np.float32)
    halves[::BLOCK] = 127
    near = halves.copy().view(np.uint32)
    near += random.integers(-2, 3, count).astype(np.int32).view(np.uint32)
    bits = random.integers(0, 1 << 32, count, dtype=np.uint64).astype(np.uint32).view(np.float32)
    # Steps that are no normal float32, and of which the inverse still is one.
    small = np.repeat(np.linspace(4e-37, 2e-36, count // BLOCK), BLOCK) * random.uniform(-1, 1, count)
    return {
        "normal": random.standard_normal(count).astype(np.float32),
        "as float16": random.standard_normal(count).astype(np.float16).astype(np.float32),
        "halves": halves * exponents,
        "beside halves": near.view(np.float32) * exponents,
        "any bits": np.where(np.isfinite(bits), bits, np.float32(0)),
        "small": small.astype(np.float32),
        "zeroes": np.zeros(4 * BLOCK, np.float32),
        "one block": np.linspace(-1, 1, BLOCK, dtype=np.float32),
    }


def test_every_block_is_llama_cpps() -> None:
    with Worker(1, env={"PYTHONPATH": str(Path(__file__).parent)}) as worker:
        for name, values in cases().items():
            # A block too small to divide by leaves the whole to llama.cpp: those are looked at apart.
            blocks = values.reshape(-1, BLOCK)
            divisible = blocks[(np.abs(blocks).max(axis=1) > 3.8e-37) | ~blocks.any(axis=1)]
            made = by_numpy(divisible)
            assert made is not None and np.array_equal(made, worker.call(by_llama, divisible)), name


def test_halves_go_away_from_zero_and_what_is_just_below_does_not() -> None:
    below = np.nextafter(np.float32(0.5), np.float32(0))
    values = np.array([127, 0.5, -0.5, below, -below, 1.5, -1.5, 2.5, 126.5, -126.5] + [0] * 22, np.float32)

    made = by_numpy(values)

    assert made is not None
    assert made[0, 2:].view(np.int8)[:10].tolist() == [127, 1, -1, 0, 0, 2, -2, 3, 127, -127]
    assert made[0, :2].view(np.float16)[0] == 1.0


@pytest.mark.parametrize("largest", [1e-42, 1e-40, 3.7e-37])
def test_blocks_too_small_to_divide_by_are_left_to_llama_cpp(largest: float) -> None:
    values = np.ones(4 * BLOCK, np.float32)
    values[BLOCK : 2 * BLOCK] = np.float32(largest)

    assert by_numpy(values) is None


def test_threads_do_not_share_what_they_compute_in() -> None:
    values = [np.full(PIECE_ELEMENTS, number, np.float32) for number in range(1, 9)]
    alone = [by_numpy(each) for each in values]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(by_numpy, values * 4))

    pairs = zip(alone * 4, together, strict=True)
    assert all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)
