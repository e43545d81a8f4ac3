"""`dfqs report` and several runs in one directory: each can be seen, none takes another's place."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dfqs.cli.main import run
from dfqs.evaluate.endpoint import EndpointAnswerer
from dfqs.evaluate.run import Request, evaluate
from dfqs.evaluate.store import RunRecord, open_store, runs_of
from dfqs.evaluate.suites import QUICK
from evaluate_runs import CONDITIONS, SUBJECT
from evaluate_server import Reply, oracle, serve
from report_documents import run_documents


def begin(out: Path, subject: Any = SUBJECT, conditions: Any = CONDITIONS) -> Any:
    planned = RunRecord(subject=subject, conditions=conditions, threads=1, curve_lengths=(1024,), decode_repeats=1)
    with open_store(out, planned) as store:
        return store.directory.name, store.record.began_anew


@pytest.fixture
def two_runs(tmp_path: Path) -> Any:
    """A finished run, and behind it one of another model that measured nothing."""
    record, lines = run_documents()
    for number, name in ((1, "first"), (2, "second")):
        directory = tmp_path / f"run-{number}"
        directory.mkdir()
        named = {**record, "subject": {**record["subject"], "name": name}}
        (directory / "run.json").write_text(json.dumps(named))
        kept = lines if number == 1 else [line for line in lines if line["stage"] == "notes"]
        (directory / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    return tmp_path


def shown(arguments: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    assert run(["report", *map(str, arguments)]) == 0
    return capsys.readouterr()


def test_an_empty_run_does_not_hide_the_finished_one_and_both_can_be_asked_for(
    two_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = shown([two_runs], capsys)
    assert said.out.startswith("# first: DFQS evaluation")
    assert "run 1: first, 5 of 5 metrics (shown)" in said.err
    assert "run 2: second, 0 of 5 metrics" in said.err

    assert shown([two_runs, "--run", 2], capsys).out.startswith("# second: DFQS")
    assert shown([two_runs / "run-1"], capsys).out.startswith("# first: DFQS")
    assert shown([two_runs / "run-2"], capsys).out.startswith("# second: DFQS")
    assert json.loads(shown([two_runs, "--run", 2, "--json"], capsys).out)["artifact"]["name"] == "second"


@pytest.mark.thorough
def test_report_writes_nothing_unless_asked_and_replaces_nothing_unless_told(
    two_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (two_runs / "report.json").write_text("{}")
    before = sorted(two_runs.rglob("*"))
    shown([two_runs], capsys)
    assert sorted(two_runs.rglob("*")) == before
    assert (two_runs / "report.json").read_text() == "{}"

    shown([two_runs, "-o", two_runs / "new", "--dry-run"], capsys)
    assert not (two_runs / "new").exists()
    shown([two_runs, "-o", two_runs / "new"], capsys)
    assert (two_runs / "new" / "report.md").read_text().startswith("# first")
    assert run(["report", str(two_runs), "-o", str(two_runs / "new")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    shown([two_runs, "-o", two_runs / "new", "--run", 2, "--overwrite"], capsys)
    assert (two_runs / "new" / "report.md").read_text().startswith("# second")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--run", "3"], "no run 3"), (["--run", "0"], "--run"), (["-x"], "-x")],
)
def test_a_run_that_is_not_there_is_a_sentence(
    two_runs: Path, capsys: pytest.CaptureFixture[str], arguments: Any, said: str
) -> None:
    assert run(["report", str(two_runs), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_damaged_run_does_not_keep_the_others_from_being_seen(
    two_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (two_runs / "run-1" / "run.json").write_text("[" * 10_000)

    assert "run 1: not readable" in shown([two_runs, "--run", 2], capsys).err


def test_another_model_is_called_another_model_and_the_first_one_goes_on_where_it_was(tmp_path: Path) -> None:
    other = SUBJECT.model_copy(update={"name": "other\x1b[2J", "file_sha256": "01"})
    template = CONDITIONS.model_copy(update={"template_sha256": "ff"})
    begin(tmp_path)

    name, why = begin(tmp_path, other, template)
    assert (name, why[0]) == ("run-2", "another model: other\\x1b[2J in place of m")
    assert not any("template" in reason for reason in why)
    assert begin(tmp_path)[0] == "run-1"
    assert begin(tmp_path, other, template)[0] == "run-2"
    same_name = other.model_copy(update={"file_sha256": "02"})
    assert begin(tmp_path, same_name)[1][0] == "another model under the same name, other\\x1b[2J"


@pytest.mark.thorough
def test_every_run_keeps_its_report_and_an_empty_one_takes_no_place_at_the_top(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Reply(raw=b"<html>", content_type="text/html")
    arguments = ["-o", str(tmp_path), "--only", "reasoning", "--limit"]
    with serve(oracle()) as endpoint:
        assert run(["eval", "--endpoint", endpoint.url, *arguments, "2"]) == 0
    finished = (tmp_path / "report.json").read_bytes()
    with serve(lambda _prompt: broken) as endpoint:
        assert run(["eval", "--endpoint", endpoint.url, *arguments, "1"]) == 0
    said = capsys.readouterr().err

    assert "another model" in said
    assert (tmp_path / "report.json").read_bytes() == finished
    reports = [json.loads((path / "report.json").read_bytes()) for path in runs_of(tmp_path)]
    assert [report["metrics"]["reasoning_score"] for report in reports] == [1.0, None]


def test_what_was_asked_before_is_no_part_of_the_rate(tmp_path: Path) -> None:
    seen: dict[str, list[Any]] = {}

    @contextmanager
    def draw(stage: Any) -> Iterator[Any]:
        yield lambda done, total=None, note="": seen.setdefault(stage, []).append((done, total))

    def measure(stages: Any) -> None:
        seen.clear()
        with serve(oracle()) as endpoint, EndpointAnswerer(endpoint.url, max_context=3072) as target:
            evaluate(target, subject, None, Request(QUICK, stages, limit=3), tmp_path, draw)

    subject = SUBJECT.model_copy(update={"kind": "endpoint"})
    measure(("context",))
    (begun, total), ended = seen["context"][0], seen["context"][-1]
    assert (begun, ended) == (0, (total, total))
    measure(("context", "boundary"))
    assert seen["context"] == [(total, total)]
    assert {done == of for done, of in seen["boundary"]} == {True}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["evil [/b]", "a[/x]", "[link=http://x]y", "\x1b]0;t\x07", "\x9b31m"])
def test_a_name_with_markup_or_escapes_neither_stops_nor_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("dfqs.serving.client.Client.models", lambda self: (name,))
    with serve(oracle()) as endpoint:
        arguments = ["--endpoint", endpoint.url, "-o", str(tmp_path), "--only", "reasoning", "--limit", "1"]
        assert run(["eval", *arguments]) == 0
        assert run(["eval", *arguments, "--threads", "3"]) == 0
    assert run(["report", str(tmp_path)]) == 0

    said = capsys.readouterr()
    text = said.out + said.err + (tmp_path / "report.md").read_text()
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "url", ["http://h\nx", "http://h:99999", "http://[::1", "http://\u2100", "http://a..b", "http://h\x1b"]
)
def test_an_address_that_is_none_is_a_sentence_and_no_internal_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    assert run(["eval", "--endpoint", url, "-o", str(tmp_path / "out")]) == 2

    said = capsys.readouterr().err
    assert "is no address" in said
    assert said.replace("\n", "").isprintable()
    assert not (tmp_path / "out").exists()
