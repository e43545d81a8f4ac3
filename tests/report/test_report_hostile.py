"""Reports and results that anybody can have written: each is refused by a sentence, or it can be read."""

import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfqs.cli.main import run
from dfqs.errors import DfqsError, FormatError
from dfqs.evaluate.store import LINES_LIMIT, RESULTS_LIMIT_BYTES, runs_of
from dfqs.records import parse_json, parse_record
from dfqs.report import Report
from dfqs.report.markdown import render_markdown, render_summary
from dfqs.report.record import build_report
from gguf_builder import write_small
from memory_limits import LIMIT_BYTES, peak_under_limit
from report_documents import report_document, run_documents

ODD = st.sampled_from(
    [
        *(None, True, 0, -1, 1, 2**53, 2**63, 10**30, 0.5, -0.5, 1e308, 5e-324),
        *("", "x", "\x1b[31m", "\x9b", "`|\n# <b>"),
        *("[/b]", "1024", "-1", "right", [], {}, [None], [1, 2], ["x"], {"x": 1}, {"a": None}, [[0.5, 0.5]], [1] * 5),
    ]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Where something can be put: every key and index below."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def mutated(draw: Any, document: Any) -> Any:
    """The document with one to four places replaced, taken out or doubled."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 4))):
        found = list(places(document))
        if not found:
            break
        *way, last = draw(st.sampled_from(found))
        holder = document
        for step in way:
            holder = holder[step]
        action = draw(st.sampled_from(["replace", "replace", "remove", "double"]))
        if action == "remove":
            del holder[last]
        elif action == "double" and isinstance(holder, list):
            holder.insert(last, copy.deepcopy(holder[last]))
        else:
            holder[last] = copy.deepcopy(draw(ODD))
    return document


def read(document: Any) -> Report | None:
    try:
        return parse_record(json.dumps(document), Report)
    except FormatError:
        return None


def rendered(report: Report) -> str:
    text = render_markdown(report) + render_summary(report)
    assert text.replace("\n", "").isprintable()
    return text


def test_the_documents_of_these_tests_are_accepted_as_they_are() -> None:
    assert "decode, empty context" in rendered(parse_record(json.dumps(report_document()), Report))


@pytest.mark.thorough
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_changed_report_is_refused_or_rendered(data: Any) -> None:
    report = read(data.draw(mutated(report_document())))

    if report is not None:
        rendered(report)


@pytest.mark.thorough
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(
    counts=st.lists(st.tuples(*[st.integers(0, 2**40)] * 4, st.integers(1, 2**53)), max_size=5),
    words=st.lists(st.text(max_size=20), min_size=6, max_size=6),
    number=st.floats(0, 1e18),
    share=st.floats(0, 1),
)
def test_every_valid_report_can_be_rendered(counts: Any, words: Any, number: int, share: Any) -> None:
    document = report_document()
    context, artifact = document["details"]["context"], document["artifact"]
    for place, name in enumerate(("right", "truncated", "empty", "unusable")):
        context[name] = [row[place] for row in counts]
    context["lengths_tokens"] = [row[4] for row in counts]
    context["n"] = [max(1, sum(row[:4])) for row in counts]
    context["intervals_95"] = [[share, 1.0] for _ in counts]
    document["metrics"]["context_stability_curve"] = [share for _ in counts]
    model = artifact["model"]
    artifact["name"], model["description"], model["tier"], document["statement"] = words[:4]
    document["conditions"]["score"]["suite"], document["notices"] = words[4], words[5:]
    model["bits_per_weight"] = number
    for name in ("decode_tokens_per_s", "latency_p99_s", "copy_bandwidth_bytes_per_s", "bandwidth_fraction"):
        document["details"]["speed"][name] = number

    text = json.dumps(document).encode("utf-8", "surrogatepass")
    try:
        parse_json(text)
    except FormatError:
        return
    rendered(parse_record(text, Report))


@pytest.mark.thorough
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_changed_results_are_refused_or_make_a_report(data: Any) -> None:
    record, lines = run_documents()
    which = data.draw(st.integers(-1, len(lines) - 1))
    if which < 0:
        record = data.draw(mutated(record))
    else:
        lines[which] = data.draw(mutated(lines[which]))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name, "run-1")
        directory.mkdir()
        (directory / "run.json").write_text(json.dumps(record))
        (directory / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        try:
            report = build_report(Path(name))
        except DfqsError as error:
            assert str(error).replace(name, "").isprintable()
        else:
            rendered(report)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"schema": "dfqs.report/1"',
        b"\xff\xfe",
        b'{"metrics": {"code_score": NaN}}',
        b'{"metrics": 1e999}',
        b'"\\ud800"',
        b'{"artifact": {"parameters": 1' + b"0" * 5000 + b"}}",
        b"null",
    ],
)
def test_what_is_no_report_at_all_is_a_format_error(data: Any) -> None:
    with pytest.raises(FormatError):
        parse_record(data, Report)


@pytest.mark.parametrize(
    "kind",
    ["one line", "short lines", "nested lists", "beyond the limit"],
)
def test_results_of_any_size_cost_bounded_memory(tmp_path: Path, kind: str) -> None:
    record, _ = run_documents()
    directory = tmp_path / "run-1"
    directory.mkdir()
    (directory / "run.json").write_text(json.dumps(record))
    size = RESULTS_LIMIT_BYTES - (1 << 20)
    with open(directory / "results.jsonl", "wb") as file:
        if kind == "one line":
            file.write(b'{"stage": "x", "key": "1", "data": {"x": [' + b"0," * (size // 2) + b"0]}}\n")
        elif kind == "short lines":
            for number in range(LINES_LIMIT - 1):
                file.write(b'{"stage":"x","key":"%d","data":{"a":[[],[],{}],"b":[0]}}\n' % number)
        elif kind == "nested lists":
            for number in range(size // (1 << 20)):
                file.write(b'{"stage":"x","key":"%d","data":{"a":[' % number + b"[]," * 340_000 + b"[]]}}\n")
        else:
            file.truncate(8 << 30)
    end = peak_under_limit(
        "from pathlib import Path\nfrom dfqs.errors import DfqsError\nfrom dfqs.report.record import build_report\n"
        f"try:\n    build_report(Path({str(tmp_path)!r}))\nexcept DfqsError as error:\n    print(error)\n"
    )

    assert (end.returncode, end.peak_bytes < LIMIT_BYTES) == (0, True), end
    (directory / "results.jsonl").unlink()


def test_names_that_only_look_like_runs_are_none(tmp_path: Path) -> None:
    for name in ("run-1", "run-²", "run-01", "run-", "run-x", "run-99999999999999999999", "run-10"):
        (tmp_path / name).mkdir()
    (tmp_path / "run-2").write_text("a file")

    assert [path.name for path in runs_of(tmp_path)] == ["run-1", "run-10"]


@pytest.mark.thorough
def test_words_of_a_hostile_report_are_words_whichever_verb_says_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "<script>alert(1)</script> \x1b]0;owned\x07 \x9b2J `|[b] \u202e"
    report = report_document()
    report["artifact"]["name"] = evil
    report["reasons"], report["notices"] = {"code_score": evil}, [evil]
    place = tmp_path / "report.json"
    place.write_text(json.dumps(report))
    model = write_small(tmp_path / "small.gguf")
    calls = [
        ["report", str(place), "--html", str(tmp_path / "r.html")],
        ["compare", str(place), str(place), "--html", str(tmp_path / "c.html")],
        ["conform", str(model), "--report", str(place)],
    ]
    for call in calls:
        for arguments in (call, [*call, "--json"]):
            assert run([*arguments, *(["--overwrite"] if "--html" in call else [])]) in (0, 1, 4), arguments
            captured = capsys.readouterr()
            assert not set("\x1b\x07\x9b\u202e") & set(captured.out + captured.err), arguments
            assert "internal error" not in captured.err
    for page in ("r.html", "c.html"):
        text = (tmp_path / page).read_text(encoding="utf-8")
        assert "<script>alert" not in text and not set("\x1b\x07\x9b\u202e") & set(text)


@pytest.mark.thorough
def test_a_report_of_100_mb_or_of_numbers_that_are_none_is_refused_by_every_verb_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large, none = tmp_path / "large.json", tmp_path / "none.json"
    large.write_text(json.dumps({**report_document(), "measured_at": "x" * 100_000_000}))
    none.write_text(json.dumps(report_document()).replace('"cpu_tokens_per_sec": ', '"cpu_tokens_per_sec": NaN, "x": '))
    assert "NaN" in none.read_text()
    model = write_small(tmp_path / "small.gguf")
    for place in (large, none):
        for call in (["report", place], ["compare", place, place], ["conform", model, "--report", place]):
            assert run([str(word) for word in call]) == 3
            message = capsys.readouterr().err
            assert place.name in message and "internal error" not in message and len(message) < 1000
