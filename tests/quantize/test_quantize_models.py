"""Whole models through importance, quantization and measurement: what comes out loads, runs, and keeps its order."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dfqs.gguf import GGMLType, read_header
from dfqs.model.classes import CLASSES, recognise_class
from dfqs.model.spec import read_model_spec
from dfqs.quantize import imatrix, perplexity
from dfqs.quantize.calibration import heldout_text, shipped_corpus
from dfqs.quantize.declared import class_findings
from dfqs.quantize.imatrix import ImatrixJob, ImatrixOutcome
from dfqs.quantize.ladder import measure_ladder
from dfqs.quantize.perplexity import Measured, PerplexityJob
from dfqs.quantize.quantize import quantize
from dfqs.runtime import Worker
from fixtures_deepseek4 import Geometry, write_tiny_deepseek4


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


def imatrix_job(model: Path, out: Path, max_tokens: int) -> ImatrixJob:
    return ImatrixJob(
        model=model,
        out=out,
        corpus=shipped_corpus(),
        chunk_tokens=256,
        min_samples=1,
        min_tokens=max_tokens,
        max_tokens=max_tokens,
        add=(),
        threads=None,
    )


def test_deepseek4_at_one_bit_loads_and_decodes_finite_logits(
    smollm2_gguf: Path, worker: Worker, tmp_path: Path
) -> None:
    """With every kind of layer, among them the grouped output matrix whose importance llama-quantize cannot read."""
    geometry = Geometry(experts=4, experts_used=2, compress_ratios=(0, 4, 128), hash_layers=1)
    model = write_tiny_deepseek4(tmp_path / "tiny.gguf", smollm2_gguf, geometry)
    worker.call(imatrix.measure_imatrix, imatrix_job(model, tmp_path / "i.gguf", 512))

    quantize(model, tmp_path / "out.gguf", CLASSES["IQ1_S-XL"], imatrix=tmp_path / "i.gguf", worker=worker)
    job = PerplexityJob(tmp_path / "out.gguf", heldout_text(), 128, 64, 200)
    measured = worker.call(perplexity.measure_losses, job)

    header = read_header(tmp_path / "out.gguf")
    match = recognise_class(read_model_spec(header))
    assert match is not None and match.name == "IQ1_S-XL" and match.exact
    assert class_findings(header) == ()
    assert header.tensor("blk.0.ffn_down_exps.weight").type is GGMLType.IQ1_S
    assert isinstance(measured, Measured)
    assert np.isfinite(measured.losses.nll).all()


@pytest.mark.slow
def test_the_embedded_models_ladder_is_in_order_and_its_rungs_are_told_apart(
    embedded_model: Path, worker: Worker, tmp_path: Path
) -> None:
    job = imatrix_job(embedded_model, tmp_path / "i.gguf", 8192)
    outcome = worker.call(imatrix.measure_imatrix, job)
    assert isinstance(outcome, ImatrixOutcome) and outcome.coverage.unseen == 0

    names = ["Q8_0", "Q4_K-XL", "IQ2_XXS-XL", "IQ1_S-XL"]
    rungs = measure_ladder(
        embedded_model, tmp_path / "ladder", [CLASSES[name] for name in names], heldout_text(), imatrix=job.out
    )

    by_name = {rung.name: rung for rung in rungs[1:]}
    losses = [by_name[name].summary.nll.mean for name in names]
    assert losses == sorted(losses)
    sizes = [by_name[name].tensor_bytes for name in names]
    assert sizes == sorted(sizes, reverse=True)
    for worse in ("IQ2_XXS-XL", "IQ1_S-XL"):
        step = by_name[worse].from_previous
        assert step is not None and step.low is not None and step.low > 0
