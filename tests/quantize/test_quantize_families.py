"""Every architecture of the tests from importance to a verified file, and what importance that says nothing does."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dfqs.cli.main import run
from dfqs.errors import FormatError, RuntimeFailure, UsageError
from dfqs.gguf import GGMLType, KeyValue, TensorSource, read_header, string, tensor_length, u32, write_gguf
from dfqs.model.classes import CLASSES
from dfqs.quantize import imatrix
from dfqs.quantize.calibration import read_corpus
from dfqs.quantize.checks import check_imatrix
from dfqs.quantize.imatrix import ImatrixJob, ImatrixOutcome, limit_chunks
from dfqs.quantize.imatrix_file import Accumulated, Imatrix, ImatrixFile, read_imatrix, write_imatrix
from dfqs.quantize.quantize import quantize
from dfqs.quantize.source import plan_source, read_source
from dfqs.runtime import Worker
from fixtures_moe import write_tiny_moe
from moe_families import FAMILIES
from quantize_inputs import TENSORS, WIDTH, vector_imatrix, weights, write_model

T = GGMLType
VECTORS = Path(__file__).parents[1] / "vectors" / "quantize"
IQ1 = CLASSES["IQ1_S-XL"]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=1) as worker:
        yield worker


def job(model: Path, out: Path, max_tokens: int | None) -> ImatrixJob:
    return ImatrixJob(
        model=model,
        out=out,
        corpus=read_corpus([VECTORS / "calibration.txt"]),
        chunk_tokens=256,
        min_samples=1,
        min_tokens=1000,
        max_tokens=max_tokens,
        add=(),
        threads=1,
    )


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_goes_from_importance_to_a_file_that_verify_agrees_with(
    architecture: str, smollm2_gguf: Path, worker: Worker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Qwen's gate of shared experts is a vector, which no importance matrix fitted."""
    model = write_tiny_moe(tmp_path / "model.gguf", smollm2_gguf, architecture)
    worker.call(imatrix.measure_imatrix, job(model, tmp_path / "i.gguf", 200))

    quantize(model, tmp_path / "out.gguf", IQ1, imatrix=tmp_path / "i.gguf", worker=worker)

    assert run(["verify", str(tmp_path / "out.gguf")]) == 0
    assert "IQ1_S-XL, and every tensor is as its recipe says" in capsys.readouterr().out
    measured = read_imatrix(tmp_path / "i.gguf").entries
    assert any("_exps" in name for name in measured)
    if architecture == "qwen2moe":
        assert "blk.0.ffn_gate_inp_shexp.weight" in measured


@pytest.mark.parametrize(("shape", "fits"), [((64,), True), ((64, 1), True), ((64, 1, 1), True), ((32,), False)])
def test_a_vector_is_a_matrix_of_one_row(shape: tuple[int, ...], fits: bool, tmp_path: Path) -> None:
    matrix = Imatrix({"w": Accumulated(np.ones((1, 64), np.float32), np.array([9]))})
    write_imatrix(tmp_path / "i.gguf", matrix)

    with ImatrixFile(tmp_path / "i.gguf") as file:
        if fits:
            assert file.groups("w", shape) == 1
        else:
            with pytest.raises(FormatError, match="another model"):
                file.groups("w", shape)


@pytest.mark.parametrize(("asked", "seen"), [(64, 64), (256, 256), (300, 300), (264, 256)])
def test_no_more_tokens_are_read_than_were_allowed(asked: int, seen: int, worker: Worker, tmp_path: Path) -> None:
    """64 became a whole chunk. Of 264 the last 8 are no sample of text."""
    out = tmp_path / "i.gguf"

    outcome = worker.call(imatrix.measure_imatrix, job(write_model(tmp_path / "m.gguf"), out, asked))

    assert isinstance(outcome, ImatrixOutcome) and outcome.tokens == seen
    assert read_imatrix(out).entries["blk.0.attn_q.weight"].counts.tolist() == [seen]
    assert outcome.stopped_because == "as many tokens as allowed were seen"


def test_fewer_tokens_than_a_sample_are_refused() -> None:
    with pytest.raises(UsageError, match="15 tokens are no sample"):
        limit_chunks([[0] * 512], 15)


def test_a_model_whose_logits_are_no_numbers_has_no_importance(worker: Worker, tmp_path: Path) -> None:
    """Inputs of every matrix are finite here: only the output matrix itself is broken."""
    values = weights("output.weight", (WIDTH, 257))
    values[3, 5] = np.nan
    broken = write_model(tmp_path / "broken.gguf", {"output.weight": values})

    with pytest.raises(RuntimeFailure, match="logits at position 0 are NaN"):
        worker.call(imatrix.measure_imatrix, job(broken, tmp_path / "i.gguf", 64))

    assert not (tmp_path / "i.gguf").exists()


def test_sums_that_are_no_numbers_are_never_written(tmp_path: Path) -> None:
    matrix = Imatrix({"w": Accumulated(np.full((1, 32), np.inf, np.float32), np.array([9]))})

    with pytest.raises(FormatError, match="no importance of it is written"):
        write_imatrix(tmp_path / "i.gguf", matrix)

    assert list(tmp_path.iterdir()) == []


def silenced(*names: str) -> Imatrix:
    matrix = vector_imatrix()
    for name in names:
        entry = matrix.entries[name]
        matrix.entries[name] = Accumulated(np.zeros_like(entry.squares), entry.counts, None)
    return matrix


def test_an_importance_matrix_of_zeroes_is_refused_and_not_only_warned_of(tmp_path: Path) -> None:
    """With weights of zero the kernels make zeroes of every row."""
    model = read_source(write_model(tmp_path / "m.gguf"))
    write_imatrix(tmp_path / "i.gguf", silenced(*(name for name, shape, _ in TENSORS if len(shape) > 1)))

    for class_name in ("IQ1_S-XL", "Q4_K-XL"):
        with pytest.raises((FormatError, UsageError), match=r"nothing but zeroes|every sum in it is zero"):
            check_imatrix(plan_source(model, CLASSES[class_name]), model, tmp_path / "i.gguf")


def test_zeroes_for_a_tensor_that_cannot_do_without_are_refused_by_name(tmp_path: Path) -> None:
    model = read_source(write_model(tmp_path / "m.gguf"))
    write_imatrix(tmp_path / "i.gguf", silenced("blk.0.ffn_up_exps.weight"))

    with pytest.raises(UsageError, match=r"zeroes for 1 tensors that become IQ1_S.*blk\.0\.ffn_up_exps"):
        check_imatrix(plan_source(model, IQ1), model, tmp_path / "i.gguf")


def test_zeroes_for_one_tensor_or_expert_weigh_its_columns_the_same_and_are_counted(tmp_path: Path) -> None:
    model = read_source(write_model(tmp_path / "m.gguf"))
    matrix = silenced("blk.0.attn_q.weight")
    matrix.entries["blk.0.ffn_up_exps.weight"].squares[3] = 0
    write_imatrix(tmp_path / "i.gguf", matrix)

    origin = check_imatrix(plan_source(model, IQ1), model, tmp_path / "i.gguf")

    assert origin is not None and (origin.silent_weights, origin.unseen_experts) == (1, 2)
    with ImatrixFile(tmp_path / "i.gguf") as file:
        attention = file.importance("blk.0.attn_q.weight", (WIDTH, WIDTH))
        experts = file.importance("blk.0.ffn_up_exps.weight", (WIDTH, 288, 4))
    assert attention is not None and (attention == 1).all()
    assert experts is not None and (experts[3] == 1).all() and not (experts[0] == 1).all()


def native_model(path: Path, architecture: str, dense_type: GGMLType = T.Q8_0) -> Path:
    """Experts in the type that gpt-oss and DeepSeek-V4 are published in."""
    tensors = [
        ("token_embd.weight", (256, 10), T.Q8_0),
        ("blk.0.attn_q.weight", (256, 256), dense_type),
        ("blk.0.ffn_gate_inp.weight", (256, 3), T.F32),
        ("blk.0.ffn_gate_exps.weight", (256, 8, 3), T.MXFP4),
        ("blk.0.ffn_down_exps.weight", (256, 8, 3), T.MXFP4),
    ]
    keys: list[KeyValue] = [string("general.architecture", architecture), u32(f"{architecture}.block_count", 1)]
    keys += [u32(f"{architecture}.expert_count", 3), u32(f"{architecture}.expert_used_count", 2)]

    sources = [
        TensorSource(name, shape, type_, lambda t=type_, s=shape: [bytes(tensor_length(t, s))])  # type: ignore[misc]
        for name, shape, type_ in tensors
    ]
    write_gguf(path, keys, sources)
    return path


@pytest.mark.parametrize("architecture", ["gpt-oss", "deepseek4"])
def test_experts_in_the_type_they_are_published_in_are_no_requantization(
    architecture: str, worker: Worker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no F16 of such a model to start from."""
    model = native_model(tmp_path / "m.gguf", architecture)

    assert run(["quantize", str(model), "--class", "Q2_K-XL", "--dry-run"]) == 0
    text = capsys.readouterr()
    quantize(model, tmp_path / "out.gguf", CLASSES["Q2_K-XL"], worker=worker)

    assert "2 expert tensors of MXFP4 in the input" in text.out and "allow-requantize" not in text.err
    assert read_header(tmp_path / "out.gguf").tensor("blk.0.ffn_gate_exps.weight").type is T.Q2_K


def test_the_same_type_on_what_is_not_published_in_it_has_lost_its_detail(tmp_path: Path) -> None:
    model = native_model(tmp_path / "m.gguf", "gpt-oss", dense_type=T.MXFP4)

    with pytest.raises(UsageError, match=r"1 tensors are already quantized \(MXFP4; the first is 'blk\.0\.attn_q"):
        quantize(model, tmp_path / "out.gguf", CLASSES["Q2_K-XL"])
