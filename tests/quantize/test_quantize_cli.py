"""The command: sizes before the work, refusals with exit codes, a ladder with its table and plot."""

import json
from pathlib import Path
from typing import Any

import pytest

from dfqs.cli.main import run
from dfqs.gguf import GGMLType, read_header, string, u32
from dfqs.integrity import hash_model
from dfqs.model.classes import CLASSES
from dfqs.quantize.imatrix_file import write_imatrix
from dfqs.quantize.journal import KIND, FinishedTensor, Journal
from dfqs.quantize.perplexity import measure_losses
from dfqs.quantize.quantize import plan_source, plan_work, read_source
from dfqs.runtime import Worker
from gguf_builder import write_small
from quantize_inputs import vector_imatrix, write_model
from v4_flash_stub import write_v4_flash_stub

T = GGMLType


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.gguf")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("class_name", "gigabytes"), [("IQ1_S-XL", 62.1), ("IQ1_M-XL", 68.6), ("IQ2_XXS-XL", 79.4), ("Q4_K-XL", 163.8)]
)
def test_dry_run_says_the_size_at_the_true_geometry_whatever_types_the_input_has(
    class_name: str, gigabytes: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = write_v4_flash_stub(tmp_path / "stub.gguf")

    assert run(["quantize", str(stub), "--class", class_name, "--dry-run", "--json"]) == 0

    summary = json.loads(capsys.readouterr().out)
    assert summary["tensor_bytes"] / 1e9 == pytest.approx(gigabytes, rel=0.002)
    assert summary["tensor_bytes"] == sum(role["bytes"] for role in summary["roles"].values())
    assert summary["needs_allow_requantize"] == (class_name != "IQ1_S-XL")
    assert [path.name for path in tmp_path.iterdir()] == ["stub.gguf"]


def test_dry_run_for_people_names_what_the_real_run_needs(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", str(model), "--class", "iq1_s-xl", "--dry-run"]) == 0

    text = capsys.readouterr()
    assert "routed experts" in text.out
    assert "blk.0.ffn_down_exps.weight: IQ4_NL in place of IQ1_S: rows of 288" in text.out
    assert "for 3 tensors" not in text.err
    assert "for 2 tensors the real run needs an importance matrix (--imatrix)" in text.err


def test_experts_that_the_importance_never_saw_are_counted_before_hours_of_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_imatrix(tmp_path / "i.gguf", vector_imatrix())
    command = ["quantize", str(model), "--imatrix", str(tmp_path / "i.gguf"), "--dry-run"]

    assert run(command) == 0
    assert "no text reached 1 (layer, expert) pair when" in capsys.readouterr().err
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unseen_experts"] == 1


def test_a_dense_model_is_made_and_told_that_the_class_means_little(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = [("token_embd.weight", (64, 10), T.Q8_0), ("blk.0.ffn_up.weight", (64, 8), T.Q8_0)]
    keys = [string("general.architecture", "llama"), u32("llama.block_count", 1)]
    dense = write_small(tmp_path / "dense.gguf", tensors, keys)

    assert run(["quantize", str(dense), "--class", "Q4_K-XL", "--dry-run"]) == 0

    assert "a dense model: Q4_K-XL is about routed experts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--class", "Q9", "--dry-run"], 2, "'Q9' is no class"),
        (["--class", "Q8_0"], 2, "name the file to write"),
        (["out.gguf", "--class", "IQ1_S-XL"], 2, "needs an importance matrix"),
        (["out.gguf", "--memory", "much"], 2, "is not a size"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_a_sentence(
    arguments: list[str],
    code: int,
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    assert run(["quantize", str(model), *arguments]) == code

    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "schema"),
    [
        (["quantize", "MODEL"], "dfqs.quantize/1"),
        (["ladder", "MODEL", "ladder", "--classes", "Q8_0,IQ1_S-XL"], "dfqs.ladder-plan/1"),
        (["imatrix", "MODEL", "-o", "DIR/i.gguf"], "dfqs.imatrix/1"),
        (["perplexity", "MODEL"], "dfqs.perplexity/1"),
    ],
)
def test_a_dry_run_speaks_to_programs_too_and_writes_nothing(
    arguments: list[str], schema: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("MODEL", str(model)).replace("DIR", str(tmp_path)) for word in arguments]

    assert run([*words, "--dry-run", "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["schema"] == schema
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_verify_recognises_a_class_that_a_file_does_not_declare_and_lists_what_deviates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = [
        ("token_embd.weight", (256, 10), T.Q6_K),
        ("blk.0.ffn_norm.weight", (256,), T.F32),
        ("blk.0.ffn_gate_exps.weight", (256, 8, 3), T.IQ1_S),
    ]
    counts = {"block_count": 1, "context_length": 8, "embedding_length": 256, "expert_count": 3, "expert_used_count": 2}
    keys = [string("general.architecture", "llama"), *(u32(f"llama.{key}", value) for key, value in counts.items())]
    path = write_small(tmp_path / "m.gguf", tensors, keys)

    assert run(["verify", str(path)]) == 0
    text = capsys.readouterr().out
    assert run(["verify", str(path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)

    deviation = "embeddings: 100.0% of the weights are Q6_K, the class has Q8_0"
    assert "none (closest: IQ1_S-XL)" in text and deviation in text
    assert (record["class"], record["closest_class"], record["class_deviations"]) == (None, "IQ1_S-XL", [deviation])


def test_verify_of_a_file_without_a_models_keys_fails_with_findings_and_not_for_want_of_a_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_small(tmp_path / "m.gguf", keys=[u32("x", 1)])

    assert run(["verify", str(tmp_path / "m.gguf")]) == 1

    assert "architecture" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "Q8_0"], "Missing argument 'directory'"),
        (["ladder", "--classes", "Q8_0,Q8_0"], "each only once"),
        (["ladder", "--classes", "Q9"], "'Q9' is no class"),
    ],
)
def test_a_ladder_that_makes_no_sense_is_refused_in_a_sentence(
    arguments: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    assert run(["ladder", str(model), *arguments]) == 2

    assert message in capsys.readouterr().err


def test_a_ladder_leaves_models_numbers_table_and_plot(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_imatrix(tmp_path / "i.gguf", vector_imatrix())
    (tmp_path / "text.txt").write_text("A short text, said again and again. " * 12)
    target = tmp_path / "ladder"
    options = ["--imatrix", str(tmp_path / "i.gguf"), "--text", str(tmp_path / "text.txt")]

    assert run(["ladder", str(model), str(target), "--classes", "Q8_0, Q4_K-XL", *options]) == 0

    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()] == ["Class", "source", "Q8_0", "Q4_K-XL"]
    assert "…" not in text
    record = json.loads((target / "ladder.json").read_text())
    source, q8, q4 = record["rungs"]
    assert source["from_previous"] is None and source["summary"]["kl"] is None
    assert 0 <= q8["summary"]["kl"]["mean"] < q4["summary"]["kl"]["mean"]
    assert q4["summary"]["nll_difference"]["mean"] == pytest.approx(
        q4["summary"]["nll"]["mean"] - source["summary"]["nll"]["mean"], abs=1e-5
    )
    assert read_header(target / "model-Q4_K-XL.gguf").metadata["dfqs.class"] == "Q4_K-XL"
    plot = (target / "ladder.svg").read_text()
    assert plot.startswith("<?xml") and "Q4_K-XL" in plot

    # Again, as after a kill in the last rung: all before it was measured, and is not measured again.
    measured: list[str] = []

    def call(self: Worker, job: Any, *arguments: Any) -> Any:
        if job is measure_losses:
            measured.append(arguments[0].model.name)
        return self.reporting().call(job, *arguments)

    monkeypatch.setattr(Worker, "call", call)
    (target / "model-Q4_K-XL.measured.json").unlink()
    assert run(["ladder", str(model), str(target), "--classes", "Q8_0, Q4_K-XL", *options]) == 0
    assert measured == ["model-Q4_K-XL.gguf"]
    assert json.loads((target / "ladder.json").read_text()) == record
    # What only looks like a measurement is none.
    (target / "reference.measured.json").write_text((target / "model-Q8_0.measured.json").read_text())
    assert run(["ladder", str(model), str(target), "--classes", "Q8_0", *options]) == 0
    assert measured == ["model-Q4_K-XL.gguf", "model.gguf"]
    (target / "model-Q8_0.measured.json").write_text("{}")
    assert run(["ladder", str(model), str(target), "--classes", "Q8_0", *options]) == 2
    assert "model-Q8_0.measured.json" in capsys.readouterr().err
    (target / "model-Q8_0.measured.json").unlink()

    # Again with other importance: what lies there is of the first, and its numbers would be given out as the second's.
    matrix = vector_imatrix()
    matrix.datasets = ("other.txt",)
    write_imatrix(tmp_path / "i.gguf", matrix, overwrite=True)
    assert run(["ladder", str(model), str(target), "--classes", "Q8_0", *options]) == 2
    assert "is not this rung: its 'dfqs.imatrix_sha256' is another" in capsys.readouterr().err


def test_restart_of_a_ladder_makes_a_rung_anew_that_an_interrupted_run_had_begun_otherwise(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, text = tmp_path / "ladder", tmp_path / "text.txt"
    text.write_text("one two three " * 60)
    target.mkdir()
    rung = target / "model-Q8_0.gguf"
    Journal(KIND.path_beside(rung), "of other work").close()
    command = ["ladder", str(model), str(target), "--classes", "Q8_0", "--text", str(text)]

    assert run(command) == 2
    assert "is of another quantization; finish that one, or give --restart" in capsys.readouterr().err
    assert run([*command, "--restart"]) == 0

    made = rung.read_bytes()
    assert not KIND.path_beside(rung).exists() and rung.with_name(f"{rung.name}.manifest.json").exists()

    # Killed when its last rung had its name: the manifest is still to come.
    work = plan_work(
        read_source(model), plan_source(read_source(model), CLASSES["Q8_0"]), rung, None, None, 1, 1, False
    )
    rung.with_name(f"{rung.name}.manifest.json").unlink()
    hashes = {tensor.name: tensor.sha256 for tensor in hash_model(rung).tensors}
    sources = {tensor.name: tensor.sha256 for tensor in hash_model(model).tensors}
    journal = Journal(work.journal, work.fingerprint)
    journal.add([FinishedTensor(name, sources[name], hashes[name]) for name in hashes])
    journal.mark_complete()
    journal.close()
    assert run(command) == 0
    assert rung.read_bytes() == made and rung.with_name(f"{rung.name}.manifest.json").exists()
