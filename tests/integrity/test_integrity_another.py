"""Checked against what belongs to another model, the answer is that, once; and hints are not repeated."""

from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.gguf import GGMLType
from dfqs.integrity import hash_model, verify_against
from dfqs.integrity.manifest import make_manifest, manifest_findings
from dfqs.records import write_json
from gguf_builder import SMALL_TENSORS, write_small

OTHER = [(f"blk.{n}.ffn_up.weight", (32, 4 + n), GGMLType.F32) for n in range(30)]


def test_the_manifest_of_another_model_is_one_finding_that_says_so(tmp_path: Path) -> None:
    model, other = write_small(tmp_path / "m.gguf"), write_small(tmp_path / "o.gguf", OTHER)

    (finding,) = manifest_findings(make_manifest(other), hash_model(model))

    assert finding.code == "another-model"
    assert "another model (o.gguf): of 30 tensors that it records, 0 are here" in finding.message


def test_a_model_of_the_same_shape_with_other_weights_is_another_model(tmp_path: Path) -> None:
    model, other = write_small(tmp_path / "m.gguf"), write_small(tmp_path / "o.gguf", seed="other")

    (finding,) = manifest_findings(make_manifest(other), hash_model(model))

    assert finding.code == "another-model"
    assert "none of its 5 tensors has the bytes" in finding.message


def test_a_model_that_lost_some_tensors_is_still_this_model(tmp_path: Path) -> None:
    model, cut = write_small(tmp_path / "m.gguf"), write_small(tmp_path / "c.gguf", SMALL_TENSORS[:3])

    findings = manifest_findings(make_manifest(model), hash_model(cut))

    assert [finding.code for finding in findings] == ["missing-tensor", "missing-tensor"]


def test_the_shards_of_another_model_are_one_finding_too(tmp_path: Path) -> None:
    model, other = write_small(tmp_path / "m.gguf"), write_small(tmp_path / "o.gguf", OTHER)

    (finding,) = verify_against(model, other).findings

    assert finding.code == "another-model"
    assert "o.gguf is of another model: of its 30 tensors 0 are here" in finding.message


def test_a_hint_that_several_findings_share_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_small(tmp_path / "m.gguf")
    manifest = tmp_path / "m.json"
    write_json(manifest, make_manifest(model))
    cut = write_small(tmp_path / "c.gguf", SMALL_TENSORS[:3])

    assert run(["verify", str(cut), "--manifest", str(manifest)]) == 1
    shown = capsys.readouterr().out

    assert shown.count("the manifest has it, the model does not") == 2
    assert shown.count("Fetch or merge the model again") == 1


def test_names_in_a_manifest_cannot_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_small(tmp_path / "m.gguf")
    made = make_manifest(model)
    manifest = tmp_path / "m.json"
    name = "evil\x9b2J\x1b[2J\u202e"
    first = made.tensors[0].model_copy(update={"name": name, "type": name})
    write_json(manifest, made.model_copy(update={"tensors": [first, *made.tensors[1:]], "file_name": name}))

    assert run(["verify", str(model), "--manifest", str(manifest)]) == 1
    captured = capsys.readouterr()

    assert not any(c in captured.out + captured.err for c in "\x9b\x1b\u202e")
