"""Model cards: nothing is said that was not measured of this very file, and a stranger's words stay words."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from dfqs.cli.main import run
from dfqs.errors import UsageError
from dfqs.evaluate.code import code_place
from dfqs.evaluate.humaneval import PROBLEMS, read_humaneval_set
from dfqs.evaluate.prompts import CodeItem
from dfqs.gguf import string, u32
from dfqs.model.hashes import hash_model
from dfqs.model.origin import ModelOrigin
from dfqs.records import parse_record
from dfqs.report import Report
from dfqs.report.card import SECTIONS
from dfqs.report.card_files import CITATION_NAME, CardOptions, make_card
from dfqs.report.conform_facts import Facts
from dfqs.report.hub_card import HUMANEVAL_DATASET, HUMANEVAL_SET, license_words
from dfqs.targets.catalogue import usage_lines
from gguf_builder import SMALL_KEYS, write_small
from report_documents import report_document
from report_facts import ORIGIN, facts
from report_pages import GOLDEN

EVIL = (
    "\n---\nlicense: gpl\n--- <script>alert(1)</script> [a](javascript:x) ![i](http://e.x/i.png) |x| `c` \x1b[2J "
    "www.evil.com https://evil.com a@evil.com {{7*7}} NaN \u202e &lt;b&gt; **b** # h $x$"
)
OWN_LINKS = {"https://doi.org/10.57967/hf/8853", "https://huggingface.co/me/model-GGUF"}
PROFILE_ROW = {
    "row": "translation",
    "claimed": "limited",
    "measured_by": "rules",
    "n": 2,
    "right": 1,
    "score": 0.5,
    "interval_95": [0.1, 0.9],
    "level": "limited",
    "reason": None,
}
GROUP = str(code_place(CodeItem(id="x", level=0, entry_point="f", prompt="", tests=""))["family"])
"""Of HumanEval's problems in a report."""
MINE = CardOptions(repo="me/model-GGUF")


def with_report(given: Facts, **changes: Any) -> Facts:
    """The facts with values of the report at dotted places changed."""
    document = given.report.model_dump(mode="json")
    for place, value in changes.items():
        *way, last = place.split("__")
        holder: Any = document
        for step in way:
            holder = holder[step]
        holder[last] = value
    return replace(given, report=parse_record(json.dumps(document), Report))


def body_tokens(readme: str) -> list[Any]:
    """What a reader of Markdown sees."""
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    found: list[Any] = []
    for token in reader.parse(ModelCard(readme).text):
        found += [token, *(token.children or [])]
    return found


def check_harmless(readme: str) -> None:
    """No markup of a stranger's: no HTML but our mark, no picture, no link but ours."""
    for token in body_tokens(readme):
        if token.type == "html_block":
            assert token.content.startswith("<!-- Written by dfqs card") and token.content.count("\n") <= 1
        assert token.type not in ("html_inline", "image")
        if token.type == "link_open":
            assert token.attrs["href"] in OWN_LINKS
    assert all(c in "\n\t" or c.isprintable() for c in readme)


def test_the_card_is_one_by_huggingface_hubs_own_classes() -> None:
    made = make_card(facts(), MINE, usage_lines)

    card = ModelCard(made.readme)

    assert card.data.to_dict() == {
        "base_model": "base/model",
        "base_model_relation": "quantized",
        "language": ["en"],
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "dfqs", "moe", "conversational", "q4_k-xl", "llama"],
    }
    assert str(card) == made.readme
    check_harmless(made.readme)


def test_every_section_is_there_in_the_specifications_order() -> None:
    readme = make_card(facts(), MINE, usage_lines).readme

    titles = [line.removeprefix("## ") for line in readme.splitlines() if line.startswith("## ")]
    assert titles == [title for title, _ in SECTIONS]


def test_what_was_not_measured_is_said_and_no_number_stands_in_its_place() -> None:
    names = (
        "reasoning_score",
        "code_score",
        "context_stability_curve",
        "cpu_tokens_per_sec",
        "failure_boundary_tokens",
    )
    bare = with_report(
        facts(),
        metrics=dict.fromkeys(names),
        reasons=dict.fromkeys(names, "not measured"),
        details=dict.fromkeys(("reasoning", "code", "context", "speed", "boundary", "tools", "profile")),
        conditions__speed=None,
        conditions__speed_fingerprint=None,
    )
    bare = replace(bare, plan=None, check=None, diff=None)

    readme = make_card(bare, CardOptions()).readme

    assert [line for line in readme.splitlines() if line.startswith("| cpu_tokens_per_sec")] == [
        "| cpu_tokens_per_sec | null: not measured |  |"
    ]
    for words in (
        "Not measured: no speed (not measured).",
        "Memory by context: not computed",
        "Not measured: the capability",
    ):
        assert words in readme
    assert "tokens/s" not in readme
    assert "No repository was named" in readme and "Whose file this is was not said" in readme


def test_energy_is_told_only_where_the_machine_could_tell_it() -> None:
    assert "Not measured: the machine's energy counters" in make_card(facts(), MINE).readme

    told = make_card(with_report(facts(), details__speed__energy_joules_per_token=7.2), MINE).readme

    assert "7.20 J for each token that was decoded, 2.00 Wh for a thousand" in told


@pytest.mark.parametrize(
    "changes",
    [
        {"artifact__content_sha256": "e" * 64},
        {"artifact__kind": "endpoint"},
        {"artifact__content_sha256": None, "artifact__file_sha256": None},
        {"artifact__content_sha256": None, "artifact__file_sha256": "e" * 64},
    ],
)
def test_numbers_of_another_file_make_no_card(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"evaluate th(e|is) file"):
        make_card(with_report(facts(), **changes), MINE)


def test_a_report_from_before_content_hashes_is_known_by_the_hash_of_the_file() -> None:
    assert make_card(with_report(facts(), artifact__content_sha256=None), MINE).readme


def test_a_strangers_words_are_neither_markup_nor_front_matter() -> None:
    given = facts()
    assert given.description is not None
    described = given.description.model_copy(
        update={"name": EVIL, "description": EVIL, "license": EVIL, "architecture": EVIL, "declared_class": EVIL}
    )
    origin = ModelOrigin(
        EVIL, EVIL, "javascript:x", EVIL, (EVIL, "https://huggingface.co/a/b\nlicense: x"), EVIL, EVIL, (EVIL,)
    )
    evil = replace(given, description=described, origin=origin, paths=(Path("m'`\n$(id).gguf"),))
    evil = with_report(
        evil,
        artifact__name=EVIL,
        statement=EVIL,
        notices=[EVIL],
        reasons={"code_score": EVIL, EVIL: EVIL},
        measured_at=EVIL,
    )
    evil = with_report(evil, details__profile=[{**PROFILE_ROW, "row": EVIL, "claimed": EVIL, "measured_by": EVIL}])
    options = CardOptions(repo="me/model-GGUF", author=EVIL, model_index=True)

    made = make_card(evil, options, usage_lines)

    check_harmless(made.readme)
    assert ModelCard(made.readme).data.to_dict()["license"] == "other"
    assert set(made.metadata) == {"license", "license_name", "pipeline_tag", "tags", "model-index"}
    assert made.metadata["tags"] == ["gguf", "dfqs", "moe", "conversational", "q4_k-xl"]
    cited = yaml.safe_load(made.beside[CITATION_NAME])
    assert set(cited) >= {"cff-version", "title", "authors"} and "\n" not in cited["title"]
    assert made.readme.count("@misc{") == 2


@pytest.mark.thorough
@settings(max_examples=25)
@given(words=st.text(max_size=60), more=st.text(alphabet="-|`#<>&[]()*_~$@:/.\n\\w", max_size=60))
def test_no_words_become_markup(words: str, more: str) -> None:
    given = with_report(facts(), artifact__name=words, statement=more)
    origin = replace(
        ORIGIN, license=words, license_name=more, source=words, base_models=(words, more), languages=(words, more)
    )

    check_harmless(make_card(replace(given, origin=origin), CardOptions(author=more)).readme)


@pytest.mark.parametrize(
    ("source", "said", "found"),
    [
        ("https://huggingface.co/base/model", None, ("base/model", "quantized")),
        (None, "my/base", ("my/base", "quantized")),
        # A model's own parent is not what was quantized.
        (None, None, ("its/parent", None)),
        ("https://github.com/its/code", None, ("its/parent", None)),
    ],
)
def test_a_base_model_is_called_quantized_only_where_that_is_known(
    source: str | None, said: str | None, found: tuple[str, str | None]
) -> None:
    given = replace(facts(), origin=replace(ORIGIN, source=source))

    data = make_card(given, replace(MINE, base_model=said)).metadata

    assert (data["base_model"], data.get("base_model_relation")) == found


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ("Apache-2.0", ("apache-2.0", None)),
        ("MIT", ("mit", None)),
        ("DeepSeek License v1", ("other", "deepseek-license-v1")),
        ("\n", None),
        ("---", ("other", "unnamed")),
    ],
)
def test_a_licence_that_the_hub_does_not_know_keeps_its_name(stated: str, found: tuple[str, str | None] | None) -> None:
    words = license_words(replace(ORIGIN, license=stated))

    assert (None if words is None else (words.id, words.name)) == found


def humaneval(right: int = 41, total: int = PROBLEMS, asked: int = PROBLEMS, digest: str = HUMANEVAL_SET) -> Facts:
    given = facts()
    code = given.report.details.code
    assert code is not None
    sets = {**given.report.conditions.score.prompt_sets, "humaneval": digest}
    items = {**given.report.conditions.score.items, "humaneval": asked}
    return with_report(
        given,
        conditions__score__prompt_sets=sets,
        conditions__score__items=items,
        details__code__groups={GROUP: [right, total]},
    )


def test_a_benchmark_that_was_run_in_full_has_an_entry_by_huggingface_hubs_own_class() -> None:
    made = make_card(humaneval(), MINE)

    text = made.beside[".eval_results/humaneval.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.value) == (HUMANEVAL_DATASET, 25.0)
    assert entry.source_url == "https://huggingface.co/me/model-GGUF"


def test_the_benchmark_that_an_entry_is_of_is_the_one_that_evaluations_ask() -> None:
    problems = read_humaneval_set()

    assert problems.sha256 == HUMANEVAL_SET
    assert {code_place(item).get("family") for item in problems.items} == {GROUP}


@pytest.mark.parametrize(
    "part", [{"total": 163}, {"asked": 12, "total": 12}, {"digest": "0" * 64}, {"asked": 12, "total": PROBLEMS}]
)
def test_a_benchmark_of_which_anything_is_missing_has_none(part: dict[str, Any]) -> None:
    assert list(make_card(humaneval(**part), MINE).beside) == [CITATION_NAME]


def test_scores_stand_in_the_front_matter_only_when_asked_for() -> None:
    assert "model-index" not in make_card(facts(), MINE).readme

    data = ModelCard(make_card(facts(), replace(MINE, model_index=True)).readme).data
    assert isinstance(data, ModelCardData) and data.eval_results is not None
    assert [(result.metric_name, result.metric_value) for result in data.eval_results][:2] == [
        ("reasoning_score", 0.5),
        ("code_score", 0.0),
    ]


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A directory with a small model, and a report of it."""
    write_small(tmp_path / "m.gguf", keys=[*SMALL_KEYS, string("general.license", "mit"), u32("x", 1)])
    return describe_measured(tmp_path)


def describe_measured(directory: Path) -> Path:
    """Adds the report of `m.gguf`, and a plan, so that no runtime is asked."""
    hashes = hash_model(directory / "m.gguf")
    document = report_document()
    document["artifact"].update(content_sha256=hashes.content_sha256, file_sha256=hashes.file_sha256)
    (directory / "report.json").write_text(json.dumps(document))
    plan = json.loads((GOLDEN / "plan-1.json").read_text())
    plan["file_bytes"] = hashes.file_bytes
    (directory / "plan.json").write_text(json.dumps(plan))
    return directory


def card(directory: Path, *words: str) -> int:
    return run(["card", str(directory / "m.gguf"), "--report", str(directory / "report.json"), *words])


def test_the_verb_prints_a_card_and_writes_nothing(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(measured.iterdir())

    assert card(measured) == 0

    assert capsys.readouterr().out.startswith("---\nlicense: mit\n")
    assert sorted(measured.iterdir()) == before


def test_the_files_of_a_card_lie_side_by_side_and_are_written_again(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = measured / "repo"
    out.mkdir()
    words = ("--out", str(out / "README.md"), "--repo", "me/model-GGUF", "--bom", str(out / "bom.json"), "--json")

    assert card(measured, *words) == 0
    document = json.loads(capsys.readouterr().out)
    assert {path.name for path in out.iterdir()} == {"README.md", "CITATION.cff", "bom.json"}
    assert document["files"]["README.md"] == (out / "README.md").read_text()
    assert document["schema"] == "dfqs.card/1" and document["metadata"]["license"] == "mit"
    assert "16. Adoption" in document["not_measured"]

    assert card(measured, *words) == 0


@pytest.mark.parametrize("name", ["README.md", "CITATION.cff", "bom.json"])
def test_somebody_elses_file_stays_and_nothing_is_written_beside_it(name: str, measured: Path) -> None:
    out = measured / "repo"
    out.mkdir()
    (out / name).write_text("years of work")

    assert card(measured, "--out", str(out / "README.md"), "--repo", "me/m", "--bom", str(out / "bom.json")) == 2

    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, "years of work")]


@pytest.mark.parametrize("repo", ["me", "me/a/b", "me/--", "me/m@v1", "me/m:Q4", "../m", "me/m\nlicense: x"])
def test_a_name_that_is_no_repositorys_is_refused(
    repo: str, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert card(measured, "--repo", repo) == 2
    assert "repositor" in capsys.readouterr().err


def test_a_report_that_is_no_report_is_refused_in_words(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((measured / "report.json").read_text())
    document["metrics"]["cpu_tokens_per_sec"] = float("nan")
    (measured / "report.json").write_text(json.dumps(document))

    assert card(measured) == 3

    said = capsys.readouterr().err
    assert "report.json" in said and "internal error" not in said


def test_a_bill_of_materials_without_its_library_says_what_to_install(
    measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cyclonedx.model", None)
    monkeypatch.delitem(sys.modules, "dfqs.report.bom", raising=False)

    assert card(measured, "--bom", str(measured / "bom.json")) == 2

    assert "dfqs[bom]" in capsys.readouterr().err and not (measured / "bom.json").exists()
