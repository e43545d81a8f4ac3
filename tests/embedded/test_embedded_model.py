"""The demonstration model itself: experts that differ, true figures, and a source that we understand."""

import hashlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import embedded_jobs
from dfqs.embedded import build, build_embedded_model
from dfqs.embedded.dense import forward, read_dense_model
from dfqs.gguf import GGMLType
from dfqs.gguf.file import GGUFFile
from dfqs.model.spec import Role, read_model_spec
from dfqs.quantize.perplexity import Measured, PerplexityJob, measure_losses, summarise
from dfqs.runtime import Worker
from runtime_functions import WORKER_ENV

HELDOUT = Path(__file__).parents[1] / "data" / "heldout.txt"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(env=WORKER_ENV) as worker:
        yield worker


@pytest.fixture(scope="module")
def model(embedded_model: Path) -> Iterator[GGUFFile]:
    with GGUFFile(embedded_model) as file:
        yield file


def test_no_two_experts_of_a_layer_are_equal_so_that_a_swapped_one_is_noticed(model: GGUFFile) -> None:
    for layer in range(30):
        for name in ("gate", "up", "down"):
            data = model.read_tensor(f"blk.{layer}.ffn_{name}_exps.weight")
            length = len(data) // build.EXPERTS
            slices = {data[start : start + length] for start in range(0, len(data), length)}
            assert len(slices) == build.EXPERTS, f"{name} of layer {layer}"


def test_routers_differ_between_experts_and_layers(model: GGUFFile) -> None:
    rows = np.concatenate([model.array(f"blk.{layer}.ffn_gate_inp.weight") for layer in range(30)])

    assert len(np.unique(rows, axis=0)) == 30 * build.EXPERTS


def test_rows_are_whole_blocks_of_256_so_that_one_bit_types_are_possible(model: GGUFFile) -> None:
    experts = [tensor for tensor in model.header.tensors if "_exps" in tensor.name]

    assert len(experts) == 90
    assert all(tensor.shape[0] % 256 == 0 for tensor in experts)


def test_it_is_the_model_that_the_documents_describe(model: GGUFFile) -> None:
    spec = read_model_spec(model.header)

    assert (spec.architecture, spec.layers, spec.experts, spec.experts_used) == ("llama", 30, 6, 5)
    assert spec.expert_length == 256
    assert spec.chat_template
    assert spec.name == build.NAME
    routed = spec.role(Role.ROUTED_EXPERT)
    assert routed is not None
    assert routed.types == {GGMLType.Q8_0: 30 * 3 * 6 * 256 * 768}


def test_our_forward_pass_of_the_source_is_the_runtime_s(worker: Worker, smollm2_gguf: Path) -> None:
    tokens = build.read_calibration(512)[:64].astype(np.int32)
    theirs: NDArray[np.float32] = worker.call(embedded_jobs.logits, smollm2_gguf, tokens.tolist())

    ours = forward(read_dense_model(smollm2_gguf), tokens)

    # The runtime rounds activations to 8 bits where weights are Q4_1; a wrong rotation or epsilon changes everything.
    deviation = (ours - theirs).std(axis=1) / theirs.std(axis=1)
    assert deviation.max() < 0.2
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.85


@pytest.mark.parametrize(
    "tokens", [pytest.param(258, id="a window"), pytest.param(513, id="two windows", marks=pytest.mark.slow)]
)
def test_it_still_predicts_text_that_it_was_not_fitted_on(
    worker: Worker, embedded_model: Path, smollm2_gguf: Path, tokens: int
) -> None:
    text = HELDOUT.read_text(encoding="utf-8")

    def perplexity(path: Path) -> float:
        job = PerplexityJob(path, text, window_tokens=256, stride_tokens=255, max_tokens=tokens)
        measured: Measured = worker.call(measure_losses, job)
        return summarise(measured).perplexity

    dense, routed = perplexity(smollm2_gguf), perplexity(embedded_model)

    # A random split and router give ten times the dense perplexity.
    assert dense < routed < 1.8 * dense


def test_the_shipped_text_is_what_the_calibration_tokens_say(worker: Worker, smollm2_gguf: Path) -> None:
    tokens = np.frombuffer(files("dfqs.embedded").joinpath("calibration.u16").read_bytes(), "<u2").tolist()

    text = worker.call(embedded_jobs.detokenize, smollm2_gguf, tokens)

    assert text == files("dfqs.embedded").joinpath("calibration.txt").read_bytes().decode()


def test_it_is_not_judged_on_the_text_that_it_was_fitted_on() -> None:
    fitted = files("dfqs.embedded").joinpath("calibration.txt").read_text(encoding="utf-8")
    sentences = [s for s in HELDOUT.read_text(encoding="utf-8").split(". ") if len(s) > 40 and "SmolLM" not in s]

    assert len(sentences) > 50
    assert not [sentence for sentence in sentences if sentence in fitted]


@pytest.mark.slow
def test_building_it_again_gives_the_cached_bytes(embedded_model: Path, smollm2_gguf: Path, tmp_path: Path) -> None:
    build_embedded_model(tmp_path / "again.gguf", smollm2_gguf)

    again = hashlib.sha256((tmp_path / "again.gguf").read_bytes()).hexdigest()
    assert again == hashlib.sha256(embedded_model.read_bytes()).hexdigest()
