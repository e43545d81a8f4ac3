"""A report is a function of what the run stored: it reads no model, and says what it said when the model is gone."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.evaluate.local import LocalAnswerer
from dfqs.evaluate.run import Request, evaluate
from dfqs.evaluate.stages import SPEED
from dfqs.evaluate.store import open_store, read_run
from dfqs.evaluate.subject import describe_subject
from dfqs.evaluate.suites import Suite
from dfqs.model.files import open_model
from dfqs.progress import no_progress
from dfqs.report.record import _statement, build_report
from dfqs.shards.split import plan_split, split
from report_documents import MODEL, RECORD


@pytest.fixture(scope="module")
def evaluated(tiny_deepseek4: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The first shard of a set, and where it was evaluated."""
    directory = tmp_path_factory.mktemp("evaluated")
    (directory / "models").mkdir()
    first = split(plan_split(tiny_deepseek4, directory / "models" / "tiny", max_tensors=20))[0]
    out = directory / "out"
    opened = open_model(first)
    subject = describe_subject(opened, opened.hashes())
    request = Request(Suite("tiny", 1, 1, (256,), 1, 4, 1, 32, 0), (SPEED,), threads=1)
    with LocalAnswerer(opened, threads=1, max_context=256) as target:
        evaluate(target, subject, opened, request, out, lambda stage: nullcontext(no_progress))
    return first, out


def document(out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert run(["report", str(out), "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return {**found, "measured_at": ""}


def test_a_set_of_shards_is_reported_with_all_its_parameters_and_not_those_of_its_first_shard(
    evaluated: tuple[Path, Path], tiny_deepseek4: Path
) -> None:
    report, whole = build_report(evaluated[1]), open_model(tiny_deepseek4).description

    assert f"file of {whole.parameters:,} parameters" in report.statement
    assert report.artifact.model is not None
    assert report.artifact.model.files > 2
    assert report.artifact.model.parameters == whole.parameters
    assert report.artifact.model.roles == whole.roles
    assert report.details.speed is not None
    assert report.details.speed.bytes_per_token == whole.bytes_per_token


def test_a_set_of_shards_is_reported_under_the_content_hash_of_the_merged_file(
    evaluated: tuple[Path, Path], tiny_deepseek4: Path
) -> None:
    artifact = build_report(evaluated[1]).artifact

    assert artifact.file_sha256 is None
    assert artifact.content_sha256 == open_model(tiny_deepseek4).hashes().content_sha256


def test_a_report_made_when_the_model_is_gone_is_the_same_and_still_says_that_it_is_not_the_reference_model(
    evaluated: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, out = evaluated
    before = document(out, capsys)
    elsewhere = first.parent.with_name("moved")

    first.parent.rename(elsewhere)
    moved = document(out, capsys)
    shutil.rmtree(elsewhere)
    deleted = document(out, capsys)

    assert "not scores of the DFQS reference model" in str(before["statement"])
    assert before == moved == deleted


def test_a_run_begun_before_descriptions_were_kept_goes_on_and_gets_its_own(tmp_path: Path) -> None:
    subject = RECORD.subject
    with open_store(tmp_path, RECORD.model_copy(update={"subject": subject.model_copy(update={"model": None})})):
        pass
    assert "Nothing shows that these are scores of the DFQS reference model" in _statement(
        read_run(tmp_path / "run-1").subject
    )

    # Another version of dfqs may describe the same file in other words: that is no other file.
    other = subject.model_copy(update={"model": MODEL.model_copy(update={"closest_class": None})})
    for planned in (RECORD, RECORD.model_copy(update={"subject": other})):
        with open_store(tmp_path, planned) as store:
            assert store.directory.name == "run-1"
            assert store.record.subject.model == MODEL
    assert read_run(tmp_path / "run-1").subject.model == MODEL
