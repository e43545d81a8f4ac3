"""Results on disk: torn lines, damage, a second writer, changed conditions."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfqs.errors import FormatError, UsageError
from dfqs.evaluate.conditions import ScoreConditions, differences
from dfqs.evaluate.store import RunRecord, latest_run, open_store, read_lines
from evaluate_runs import CONDITIONS, SUBJECT


def opened(out: Path, subject: Any = SUBJECT, conditions: Any = CONDITIONS, threads: int | None = None) -> Any:
    planned = RunRecord(
        subject=subject, conditions=conditions, threads=threads, curve_lengths=(1024,), decode_repeats=3
    )
    return open_store(out, planned)


def test_what_was_stored_is_there_after_reopening_and_the_last_of_a_key_counts(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append("a", "1", {"x": 1})
        store.append("a", "2", {"x": 2})
        store.append("a", "1", {"x": 3})
    with opened(tmp_path) as store:
        assert store.stage("a") == {"1": {"x": 3}, "2": {"x": 2}}
        assert store.get("b", "1") is None


@settings(max_examples=40)
@given(cut=st.integers(1, 200))
def test_a_file_cut_anywhere_loses_at_most_its_last_line(tmp_path_factory: pytest.TempPathFactory, cut: Any) -> None:
    out = tmp_path_factory.mktemp("store")
    with opened(out) as store:
        for number in range(4):
            store.append("a", str(number), {"x": number})
    path = out / "run-1" / "results.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[: max(0, len(data) - cut)])
    whole = data[: max(0, len(data) - cut)].count(b"\n")

    with opened(out) as store:
        assert len(store.stage("a")) == whole
        store.append("a", "new", {"x": 9})
    lines, length = read_lines(path)
    assert len(lines) == whole + 1
    assert length == path.stat().st_size


def test_a_last_line_of_garbage_is_forgotten_and_one_in_the_middle_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append("a", "1", {"x": 1})
    path = tmp_path / "run-1" / "results.jsonl"
    good = path.read_bytes()

    path.write_bytes(good + b"\x00\x00\x00\n")
    with opened(tmp_path) as store:
        assert store.stage("a") == {"1": {"x": 1}}
    assert path.read_bytes() == good

    path.write_bytes(b"garbage\n" + good)
    with pytest.raises(FormatError, match="at byte 0"), opened(tmp_path):
        pass


def test_two_evaluations_into_one_directory_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(UsageError, match="another evaluation"), opened(tmp_path):
        pass


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"conditions": CONDITIONS.model_copy(update={"runtime": "r 2"})}, "runtime: r 1 -> r 2"),
        ({"conditions": CONDITIONS.model_copy(update={"numerics": None})}, "numerics"),
        ({"subject": SUBJECT.model_copy(update={"file_sha256": "01"})}, "model file_sha256: 00 -> 01"),
        ({"threads": 2}, "threads: None -> 2"),
    ],
)
def test_another_condition_begins_another_run_that_says_why(tmp_path: Path, changed: Any, why: str) -> None:
    with opened(tmp_path) as store:
        store.append("a", "1", {"x": 1})
    with opened(tmp_path, **changed) as store:
        assert store.directory.name == "run-2"
        assert store.stage("a") == {}
        assert any(why in reason for reason in store.record.began_anew)
    latest = latest_run(tmp_path)
    assert latest is not None
    assert latest.name == "run-2"


def test_a_file_that_moved_and_a_sandbox_that_came_later_go_on_with_the_run(tmp_path: Path) -> None:
    without = CONDITIONS.model_copy(update={"code_python": None})
    moved = SUBJECT.model_copy(update={"location": "/b/m.gguf", "stamp": "1-2-3"})
    with opened(tmp_path, conditions=without):
        pass
    with opened(tmp_path) as store:
        assert (store.directory.name, store.record.conditions.code_python) == ("run-1", "3.11.2")
    with opened(tmp_path, subject=moved, conditions=without) as store:
        assert (store.directory.name, store.record.conditions.code_python) == ("run-1", "3.11.2")
    other = CONDITIONS.model_copy(update={"code_python": "3.12.0"})
    with opened(tmp_path, conditions=other) as store:
        assert store.directory.name == "run-2"


def test_a_run_killed_before_its_record_was_written_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "run-1").mkdir()

    with opened(tmp_path) as store:
        assert store.directory.name == "run-1"
    assert json.loads((tmp_path / "run-1" / "run.json").read_bytes())["subject"]["name"] == "m"


def test_fingerprints_are_equal_for_equal_conditions_only() -> None:
    same = ScoreConditions.model_validate_json(CONDITIONS.model_dump_json())
    other = CONDITIONS.model_copy(update={"max_tokens": {"reasoning": 513}})

    assert same.fingerprint == CONDITIONS.fingerprint
    assert other.fingerprint != CONDITIONS.fingerprint
    assert differences(CONDITIONS, other) == ("max_tokens.reasoning: 512 -> 513",)


def test_restart_begins_another_run_and_keeps_the_results_of_the_one_before(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append("a", "1", {"x": 1})
    before = (tmp_path / "run-1" / "results.jsonl").read_bytes()
    planned = RunRecord(subject=SUBJECT, conditions=CONDITIONS, threads=None, curve_lengths=(1024,), decode_repeats=3)

    with open_store(tmp_path, planned, restart=True) as store:
        assert (store.directory.name, store.record.began_anew) == ("run-2", ("--restart was given",))
        assert store.stage("a") == {}

    assert (tmp_path / "run-1" / "results.jsonl").read_bytes() == before


def test_results_that_0_1_stored_are_read_and_gone_on_with(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    path = tmp_path / "run-1" / "results.jsonl"
    line = '{"stage": "a", "key": "1", "data": {"x": "\N{SNOWMAN}"}}\n'
    path.write_text(line, encoding="utf-8")

    with opened(tmp_path) as store:
        assert store.get("a", "1") == {"x": "\N{SNOWMAN}"}
        store.append("a", "1", {"x": "\N{SNOWMAN}"})
        store.append("a", "2", {"x": "\N{SNOWMAN}"})

    assert path.read_text(encoding="utf-8") == line + line.replace('"1"', '"2"')
