"""Memory stays bounded whatever the model's size and the machine's cores."""

import contextlib
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfqs.errors import UsageError
from dfqs.gguf import GGMLType, encode_header, tensor_length
from dfqs.model.classes import CLASSES
from dfqs.quantize.imatrix_file import Accumulated, Imatrix, write_imatrix
from dfqs.quantize.q8_0 import PIECE_ELEMENTS
from dfqs.quantize.quantize import quantize
from dfqs.quantize.slabs import BASE_BYTES, ELEMENT_BYTES, SLAB_ELEMENTS, Slab, slab_plan
from dfqs.quantize.work import TensorWork, Work
from dfqs.runtime import Worker
from quantize_inputs import model_keys

EXPERT_SHAPE = (4096, 2048, 256)
"""DeepSeek-V4-Flash's: 4.3 GB a tensor at F16."""


def work(columns: int, memory_bytes: int, threads: int) -> Work:
    tensor = TensorWork("w", (columns, 7, 3), 0, GGMLType.F16, 0, GGMLType.Q4_K, 0, 0)
    return Work((), (), (tensor,), None, Path("j"), "", memory_bytes, threads, False)


@given(st.integers(1, 1 << 24).map(lambda n: 256 * n), st.integers(1 << 28, 1 << 34), st.integers(1, 256))
def test_slabs_under_way_never_take_more_than_allowed(columns: int, memory_bytes: int, threads: int) -> None:
    try:
        elements, used = slab_plan(work(columns, memory_bytes, threads))
    except UsageError:
        assert BASE_BYTES + 2 * ELEMENT_BYTES * columns > memory_bytes
        return

    assert BASE_BYTES + 2 * used * elements * ELEMENT_BYTES <= memory_bytes
    assert elements >= columns
    assert elements <= max(SLAB_ELEMENTS, columns)
    assert 1 <= used <= threads


@given(st.data(), st.integers(1, 1 << 18), st.integers(1, 40), st.integers(1, 5), st.booleans())
def test_every_row_of_a_slab_is_converted_once_and_with_the_importance_of_its_own_expert(
    data: st.DataObject, columns: int, rows: int, experts: int, weighed: bool
) -> None:
    tensor = TensorWork("w", (columns, rows, experts), 0, GGMLType.F16, 0, GGMLType.Q4_K, 0, 0)
    first = data.draw(st.integers(0, tensor.rows - 1))
    last = data.draw(st.integers(first + 1, tensor.rows))
    importance = np.arange(experts, dtype=np.float32)[:, None] if weighed else None

    pieces = list(Slab(tensor, first, last, importance).pieces())

    assert [row for start, end, _ in pieces for row in range(start, end)] == list(range(first, last))
    for start, end, weights in pieces:
        assert end - start == 1 or (end - start) * columns <= PIECE_ELEMENTS
        assert (weights is None) is not weighed
        assert weights is None or {row // rows for row in range(start, end)} == {int(weights[0])}


def write_sparse_model(path: Path, tensors: int) -> int:
    """A header over a hole; returns the file's length."""
    shapes = [(f"blk.{i}.ffn_up_exps.weight", EXPERT_SHAPE, GGMLType.F16) for i in range(tensors)]
    header = encode_header(model_keys(), shapes)
    size = len(header) + tensors * tensor_length(GGMLType.F16, EXPERT_SHAPE)
    with path.open("xb") as file:
        file.write(header)
        file.truncate(size)
    return size


def peak_resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.slow
def test_quantizing_20_gb_for_a_minute_takes_less_than_2_gb(tmp_path: Path) -> None:
    model = tmp_path / "huge.gguf"
    assert write_sparse_model(model, 5) > 20e9
    ones = np.ones((EXPERT_SHAPE[2], EXPERT_SHAPE[0]), np.float32)
    counts = np.ones(EXPERT_SHAPE[2], np.int64)
    names = [f"blk.{i}.ffn_up_exps.weight" for i in range(5)]
    write_imatrix(tmp_path / "i.gguf", Imatrix({name: Accumulated(ones, counts, ones) for name in names}))
    started = time.monotonic()
    seen = 0

    def stop_after_a_minute(done: int, total: int | None = None, note: str = "") -> None:
        nonlocal seen
        seen = done
        if time.monotonic() - started > 60:
            raise KeyboardInterrupt

    with Worker() as worker:
        with contextlib.suppress(KeyboardInterrupt):
            quantize(
                model,
                tmp_path / "out.gguf",
                CLASSES["IQ1_S-XL"],
                imatrix=tmp_path / "i.gguf",
                progress=stop_after_a_minute,
                worker=worker,
            )
        peak = peak_resident_bytes(worker.pid)

    assert seen > 50_000_000
    assert peak < 2.2e9
    for path in tmp_path.iterdir():
        path.unlink()
    print(f"peak {peak / 1e6:.0f} MB after {seen / 1e6:.0f} million parameters")
