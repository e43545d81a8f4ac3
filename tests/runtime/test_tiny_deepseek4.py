"""The tiny DeepSeek-V4 that tests run on: every kind of layer, in any number of experts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import embedded_jobs
from dfqs.gguf.file import GGUFFile
from dfqs.model.spec import read_model_spec
from dfqs.runtime import Worker
from fixtures_deepseek4 import Geometry, write_tiny_deepseek4
from runtime_functions import WORKER_ENV


def test_it_has_every_kind_of_layer(tiny_deepseek4: Path) -> None:
    with GGUFFile(tiny_deepseek4) as file:
        ratios = file.header.metadata["deepseek4.attention.compress_ratios"]
        hashed = [layer for layer in range(6) if file.header.has_tensor(f"blk.{layer}.ffn_gate_tid2eid.weight")]
        biased = [layer for layer in range(6) if file.header.has_tensor(f"blk.{layer}.exp_probs_b.bias")]

    assert set(ratios) == {0, 4, 128}  # type: ignore[arg-type]
    assert (hashed, biased) == ([0, 1], [2, 3, 4, 5])


def test_a_hash_routed_token_goes_to_experts_that_differ(tiny_deepseek4: Path) -> None:
    with GGUFFile(tiny_deepseek4) as file:
        table = file.array("blk.0.ffn_gate_tid2eid.weight")

    assert table.shape == (Geometry().vocabulary, 4)
    assert (np.diff(np.sort(table, axis=1), axis=1) > 0).all()
    assert (table.min(), table.max()) == (0, 15)


def test_it_can_be_made_with_another_number_of_experts_and_runs(tmp_path: Path, smollm2_gguf: Path) -> None:
    geometry = Geometry(experts=6, experts_used=2, compress_ratios=(0, 4, 128), hash_layers=1)
    path = write_tiny_deepseek4(tmp_path / "other.gguf", smollm2_gguf, geometry)

    with GGUFFile(path) as file:
        spec = read_model_spec(file.header)
    with Worker(env=WORKER_ENV, threads=1) as worker:
        logits = worker.call(embedded_jobs.logits, path, list(range(1000, 1200)))
    path.unlink()

    assert (spec.experts, spec.experts_used, spec.experts_shared) == (6, 2, 1)
    assert np.isfinite(logits).all()
    assert logits.std() > 0.1


def test_the_geometry_that_kills_the_runtime_is_refused() -> None:
    with pytest.raises(ValueError, match="SIGFPE"):
        replace(Geometry(), indexer_length=256)
