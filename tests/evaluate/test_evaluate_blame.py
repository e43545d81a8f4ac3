"""What makes two files differ is named rightly: one thing is changed at a time, with real models."""

import json
from pathlib import Path

import numpy as np
import pytest

from dfqs.cli.blame import open_reference
from dfqs.cli.main import run
from dfqs.evaluate.closeness import rounding, sample_tensors
from dfqs.gguf import GGMLType
from dfqs.gguf.file import GGUFFile
from dfqs.gguf.layout import tensor_length
from dfqs.gguf.quants import dequantize, quantize
from dfqs.gguf.values import string
from dfqs.gguf.writer import TensorSource, write_gguf
from quantize_inputs import WIDTH, write_model

TEMPLATE_KEY = "tokenizer.chat_template"
OTHER = "{% for m in messages %}Q: {{ m.content }}{% endfor %}\nA: "


def changed(source: Path, out: Path, *, template: str | None = None, type_: GGMLType | None = None) -> Path:
    """A copy with another template, or with its matrices in another type."""
    with GGUFFile(source) as file:
        header = file.header
        keys = [header.raw_entry(entry) for entry in header.entries if template is None or entry.name != TEMPLATE_KEY]
        tensors = []
        for tensor in header.tensors:
            data, stored = file.read_tensor(tensor.name), tensor.type
            if type_ is not None and len(tensor.shape) > 1 and stored is GGMLType.F16 and not tensor.shape[0] % 32:
                stored, data = type_, quantize(file.dequantized(tensor.name), type_)
            tensors.append(TensorSource(tensor.name, tensor.shape, stored, lambda data=data: [data]))  # type: ignore[misc]
        write_gguf(out, [*keys, *([] if template is None else [string(TEMPLATE_KEY, template)])], tensors)
    return out


def blame(model: Path, reference: Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, object]:
    assert run(["eval", str(model), "--blame", str(reference), "--limit", "2", "-t", "1", "--json"]) == code
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_the_same_file_differs_by_nothing_but_numerics(
    tiny_deepseek4: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = blame(tiny_deepseek4, tiny_deepseek4, capsys)

    assert (found["cause"], found["causes"]) == ("engine numerics", [])
    assert "no difference under the same numerics" in str(found["reason"])
    assert found["prompt"] is None and found["same_tokens"] == found["questions"] == 4


def test_another_template_alone_is_named(
    tiny_deepseek4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = changed(tiny_deepseek4, tmp_path / "template.gguf", template=OTHER)

    found = blame(model, tiny_deepseek4, capsys)

    assert (found["cause"], found["causes"]) == ("template", ["template"])
    assert (found["same_text"], found["same_vocabulary"]) == (0, True)
    assert run(["eval", str(model), "--blame", str(tiny_deepseek4), "--limit", "2", "-t", "1"]) == 0
    assert capsys.readouterr().out.startswith("template: the chat templates write the questions differently")


@pytest.fixture(scope="module")
def smooth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer without a template, whose context holds some of the questions: it does not magnify last
    bits, as a random DeepSeek-V4 does."""
    return write_model(tmp_path_factory.mktemp("smooth") / "model.gguf")


def test_rounding_alone_is_named(smooth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "q4.gguf"
    assert run(["quantize", str(smooth), str(model), "--class", "Q4_0", "-t", "1"]) == 0
    capsys.readouterr()

    found = blame(model, smooth, capsys)

    assert (found["cause"], found["causes"]) == ("quantization", ["quantization"])
    assert found["prompt"] is None
    assert 2 <= int(str(found["scored"])) <= 4


def test_rounding_that_is_no_more_than_arithmetic_is_not_called_found(
    smooth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = changed(smooth, tmp_path / "q8.gguf", type_=GGMLType.Q8_0)

    found = blame(model, smooth, capsys)

    assert (found["cause"], found["causes"]) == ("engine numerics", [])
    assert "the weights are otherwise rounded all the same" in str(found["reason"])


def test_other_weights_are_another_checkpoint(smooth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(4).standard_normal((WIDTH, WIDTH)).astype(np.float32) / np.float32(16)
    other = write_model(tmp_path / "other.gguf", {"blk.0.attn_v.weight": values, "blk.0.attn_q.weight": values})

    found = blame(other, smooth, capsys)

    assert (found["cause"], found["causes"]) == ("checkpoint", ["checkpoint"])


def test_a_file_without_numbers_is_not_decided_and_exits_with_1(
    smooth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = write_model(tmp_path / "nan.gguf", {"output_norm.weight": np.full(WIDTH, np.nan, np.float32)})

    found = blame(broken, smooth, capsys, 1)

    assert found["cause"] is None and found["total"] is None
    assert "no numbers" in str(found["reason"])


@pytest.mark.parametrize("type_", [GGMLType.Q8_0, GGMLType.BF16, GGMLType.F16])
def test_rounding_is_within_its_bound_and_other_weights_are_not(type_: GGMLType) -> None:
    random = np.random.default_rng(3)
    values = random.standard_t(5, 32 * 256).astype(np.float32)
    again = dequantize(type_, quantize(values, type_), (values.size,))

    relative = float(np.sqrt(np.square(again - values).mean() / np.square(values).mean()))
    assert 0 < relative <= rounding(GGMLType.F32, type_)
    assert rounding(GGMLType.F32, GGMLType.F32) == 0
    assert rounding(GGMLType.IQ1_S, GGMLType.IQ1_S) < 1 < np.sqrt(2)


def test_the_sampled_part_of_a_tensor_lies_in_it_and_is_always_the_same(tiny_deepseek4: Path) -> None:
    with GGUFFile(tiny_deepseek4) as file:
        tensors = file.header.tensors
        chosen = sample_tensors(tensors, tensors)

    assert chosen == sample_tensors(tensors, tensors)
    by_name = {tensor.name: tensor for tensor in tensors}
    for part in chosen:
        tensor = by_name[part.name]
        row = tensor_length(tensor.type, (tensor.shape[0],))
        assert (part.first_row + part.rows) * row <= tensor_length(tensor.type, tensor.shape)


@pytest.mark.parametrize("words", [["-o", "out"], ["--endpoint", "http://127.0.0.1:9"]])
def test_attribution_writes_nothing_and_needs_two_files(words: list[str], tmp_path: Path) -> None:
    model = [] if "--endpoint" in words else ["m.gguf"]

    assert run(["eval", *model, *words, "--blame", str(tmp_path)]) == 2


GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def evaluation_of(model: Path, directory: Path, **subject: object) -> Path:
    """The directory of an evaluation, with one run and the report on it, as they are stored."""
    record = json.loads((GOLDEN / "run-record-1.json").read_bytes())
    record["subject"] |= {"location": str(model), "file_bytes": model.stat().st_size} | subject
    report = json.loads((GOLDEN / "report-1.json").read_bytes())
    report["artifact"] |= {key: record["subject"][key] for key in ("kind", "file_bytes", "file_sha256")}
    (directory / "run-1").mkdir(parents=True)
    (directory / "run-1" / "run.json").write_text(json.dumps(record))
    (directory / "report.json").write_text(json.dumps(report))
    return directory


@pytest.mark.parametrize("place", ["", "report.json", "run-1", "run-1/run.json"])
def test_an_evaluation_leads_to_its_model(
    tiny_deepseek4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    evaluated = evaluation_of(tiny_deepseek4, tmp_path / "results")

    assert open_reference(evaluated / place).path == tiny_deepseek4
    # The golden run knows no such time of the file.
    assert "was written or moved since" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("subject", "alone", "said"),
    [
        ({}, True, "says what was measured (text, SHA-256 0123"),
        ({"location": "/nowhere.gguf"}, False, "is not at /nowhere.gguf any more"),
        ({"file_bytes": 7}, False, "and had 7 when"),
        ({"kind": "endpoint"}, False, "give the file that it serves"),
    ],
)
def test_a_report_that_leads_to_no_model_says_what_to_give(
    tiny_deepseek4: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    subject: dict[str, object],
    alone: bool,
    said: str,
) -> None:
    reported = evaluation_of(tiny_deepseek4, tmp_path / "results", **subject) / "report.json"
    if alone:
        reported = reported.rename(tmp_path / "alone.json")

    assert run(["eval", str(tiny_deepseek4), "--blame", str(reported)]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint and "give the" in complaint
