"""The report's page: one file that obeys nothing it shows, whatever stands in the report and in the answers."""

import base64
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from dfqs.cli.main import run
from dfqs.evaluate.items import item_sets
from dfqs.evaluate.store import Line
from dfqs.evaluate.suites import STANDARD
from dfqs.records import parse_record
from dfqs.report import Report
from dfqs.report.evidence import COMPANIONS, Evidence, gather_evidence
from dfqs.report.markdown import render_markdown, render_summary
from dfqs.report.page import render_page
from dfqs.report.reading import Reported, read_reported
from report_documents import report_document, run_documents
from report_pages import EVIL, GOLDEN, Elements, answer, assert_harmless, golden_companions, page_of


def evil_everywhere(value: Any) -> Any:
    """The document with every free text made hostile."""
    if isinstance(value, dict):
        return {key: evil_everywhere(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [evil_everywhere(entry) for entry in value]
    kept = ("dfqs.report/1", "file", "score", "runtime", "none", "undecided", "generated", "likelihood")
    return EVIL if isinstance(value, str) and value not in kept and not re.fullmatch("[0-9a-f]{64}", value) else value


@pytest.mark.thorough
def test_a_hostile_report_and_hostile_answers_are_words_on_page_markdown_and_terminal() -> None:
    document = evil_everywhere(report_document())
    document["reasons"] = {"reasoning_score": EVIL}
    report = parse_record(json.dumps(document), Report)

    page = render_page(
        report, Evidence((answer(EVIL), answer(EVIL, EVIL, EVIL)), {("reasoning", "arithmetic-1-1"): EVIL})
    )

    assert_harmless(page)
    assert "<script>alert" in Elements(page).text
    assert "\\x1b]0;owned" in page and "\\u202e" in page and "{{7*7}}" in page
    for text in (render_markdown(report), render_summary(report)):
        assert text.replace("\n", "").isprintable()
        assert "<script>" not in text.replace("\\<script\\>", "") or text == render_summary(report)


@pytest.mark.thorough
def test_an_answer_of_100_mb_takes_its_share_of_the_page_and_says_how_long_it_was() -> None:
    large = "<" * 100_000_000
    page = page_of(report_document(), Evidence((answer(large), answer("\U0010ffff" * 2_000_000)), None))

    assert_harmless(page)
    assert "[100,000,000 characters in all]" in page


def test_a_report_with_a_text_of_100_mb_is_rendered_in_every_form() -> None:
    report = parse_record(json.dumps(report_document()), Report)
    report = report.model_copy(update={"statement": "<b>" * 33_000_000, "notices": ["\x1b" * 10_000_000] * 3})

    assert_harmless(render_page(report))
    assert len(render_markdown(report)) < 100_000 and len(render_summary(report)) < 100_000


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e308, -1e308])
def test_numbers_that_no_measurement_gives_are_refused_when_read_and_harmless_when_made(number: float) -> None:
    report = parse_record(json.dumps(report_document()), Report)
    items = (answer("x", stage="context", length_tokens=1024, depth=number),)
    assert_harmless(render_page(report, Evidence(items)))

    document = report_document()
    document["details"]["speed"]["latency_p99_s"] = number
    with pytest.raises(Exception, match=r"finite|NaN|Infinity|number|less|greater"):
        parse_record(json.dumps(document), Report)


@pytest.mark.thorough
def test_a_full_standard_run_with_long_answers_stays_below_5_mb() -> None:
    suite = STANDARD
    long = "word & <tag> 'quoted' " * 400
    lengths = [*suite.context_lengths, 5120, 6144, 7168]
    items = [answer(long, f"r{k}") for k in range(suite.reasoning_items)]
    items += [answer(long, f"c{k}", "code") for k in range(suite.code_items)]
    for length in lengths:
        items += [answer(long, f"{length}/{k}", "context", length_tokens=length, depth=k / 40) for k in range(40)]

    page = page_of(report_document(), Evidence(tuple(items), {("reasoning", f"r{k}"): long for k in range(64)}))

    assert_harmless(page)
    assert page.count("<details data-stage") == len(items)


def test_the_policy_names_the_hashes_of_the_one_style_and_the_one_script() -> None:
    page = page_of(report_document(), Evidence((answer("x"),)))
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None

    assert "default-src 'none'" in policy[1] and "unsafe" not in policy[1]
    for tag in ("style", "script"):
        content = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]


def test_a_page_has_every_number_of_the_report_and_what_was_not_measured_says_why() -> None:
    document = report_document()
    text = Elements(page_of(document)).text
    for said in (
        "0.500",
        "1 of 2",
        "reasoning_score",
        "tokens/s",
        "a notice",
        document["conditions"]["score_fingerprint"],
    ):
        assert said in text

    document["metrics"] = dict.fromkeys(document["metrics"])
    document["details"] = dict.fromkeys(document["details"])
    document["reasons"] = {"code_score": "bubblewrap is missing"}
    text = Elements(page_of(document)).text
    assert "Nothing was measured." in text and "bubblewrap is missing" in text and "None" not in text


@pytest.mark.thorough
def test_identifiers_on_a_page_stand_for_one_element_each() -> None:
    items = tuple(answer("x", f"1024/{k}", "context", length_tokens=1024, depth=k / 5) for k in range(5))
    page = page_of(report_document(), Evidence(items, None, golden_companions()))
    names = [attributes["id"] for _, attributes in Elements(page).tags if "id" in attributes]

    assert len(names) == len(set(names))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)) <= {(n, "") for n in names} | {
        ("", n) for n in names
    }


@pytest.mark.thorough
def test_what_other_verbs_found_out_is_shown_where_it_lies_beside_the_report(tmp_path: Path) -> None:
    for schema in COMPANIONS:
        name = f"{schema.removeprefix('dfqs.').replace('/', '-')}.json"
        (tmp_path / name).write_bytes((GOLDEN / name).read_bytes())
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    report = parse_record(json.dumps(report_document()), Report)

    evidence = gather_evidence(Reported(report, tmp_path, None), (tmp_path,))
    page = render_page(report, evidence)

    assert {type(document) for document in evidence.companions} == set(COMPANIONS.values())
    for title in ("Memory plan", "Determinism of routing", "Routing by expert", "Quality against size"):
        assert f">{title}</h2>" in page
    assert_harmless(page)


def test_without_matplotlib_the_page_has_its_tables_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib") or name in HIDDEN]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delattr("dfqs.report.figures", raising=False)

    page = page_of(report_document(), Evidence((), None, golden_companions()))

    assert "<svg" not in page and "dfqs[plots]" in page and "decode, empty context" in page


HIDDEN = ("dfqs.figure", "dfqs.report.figures", "dfqs.report.svg")


def test_a_stored_report_brings_its_answers_only_where_the_run_beside_it_gives_it(tmp_path: Path) -> None:
    record, lines = run_documents()
    directory = tmp_path / "run-1"
    directory.mkdir()
    (directory / "run.json").write_text(json.dumps(record))
    (directory / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(["report", str(tmp_path), "-o", str(tmp_path)]) == 0

    assert read_reported(tmp_path / "report.json").items == read_reported(tmp_path).items
    document = json.loads((tmp_path / "report.json").read_text())
    document["metrics"]["reasoning_score"] = 1.0
    (tmp_path / "report.json").write_text(json.dumps(document))
    assert read_reported(tmp_path / "report.json").lines is None


def test_html_is_written_where_it_is_asked_for_and_only_over_a_page_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report_document()))
    call = ["report", str(tmp_path), "--html", str(tmp_path / "page.html")]

    assert run([*call, "--dry-run"]) == 0
    assert not (tmp_path / "page.html").exists()
    assert run(call) == 0 and run(call) == 0
    assert_harmless((tmp_path / "page.html").read_text())
    (tmp_path / "page.html").write_text("a thesis")
    assert run(call) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(["report", str(tmp_path), "--html", str(tmp_path / "report.json"), "--overwrite"]) == 2
    assert json.loads((tmp_path / "report.json").read_text())["schema"] == "dfqs.report/1"


def test_a_named_document_that_no_page_shows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report_document()))
    (tmp_path / "other.json").write_text(json.dumps(Line(stage="a", key="b", data={}).model_dump()))

    call = ["report", str(tmp_path), "--html", str(tmp_path / "p.html"), "--with", str(tmp_path / "other.json")]
    assert run(call) == 2
    assert "none of the documents" in capsys.readouterr().err


def test_every_frozen_set_has_its_prompts_beside_the_answers_and_not_the_first_two_alone(tmp_path: Path) -> None:
    sets = item_sets(STANDARD)
    told = {"prompt_sets": {each.set_.name: each.set_.sha256 for each in sets}}
    document = report_document()
    document["conditions"]["score"] |= told
    reported = Reported(parse_record(json.dumps(document), Report), tmp_path, None)

    prompts = gather_evidence(reported).prompts or {}

    for each in sets:
        for item in each.items:
            assert prompts[each.stage, item.id] == each.prompt(item)
    assert {stage for stage, _ in prompts} == {"reasoning", "code", "tools", "profile", "likelihood"}
