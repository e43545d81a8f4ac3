"""Conformance: for each clause an input that makes it fail, and nothing compared never passes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfqs.cli.main import run
from dfqs.evaluate.items import frozen_hashes
from dfqs.integrity.findings import Finding
from dfqs.records import parse_record
from dfqs.report import Report
from dfqs.report.claims import CARD_SHA256
from dfqs.report.conform import CLAUSES, judge
from dfqs.report.conform_facts import Facts
from dfqs.report.conformance import ConformanceDocument, Judgement, Standing
from gguf_builder import write_small
from report_documents import report_document
from report_facts import facts, hashes
from report_pages import GOLDEN

Change = Callable[[Facts], Facts]
BROKEN = Finding("truncated", "the file ends 1 byte early", "Fetch it again.")


def in_report(**changes: Any) -> Change:
    """The report with values at dotted places changed."""

    def change(given: Facts) -> Facts:
        document = given.report.model_dump(mode="json")
        for place, value in changes.items():
            *way, last = place.split("__")
            holder: Any = document
            for step in way:
                holder = holder[int(step)] if step.isdigit() else holder[step]
            holder[last] = value
        return replace(given, report=parse_record(json.dumps(document), Report))

    return change


def described(**changes: Any) -> Change:
    def change(given: Facts) -> Facts:
        assert given.description is not None
        return replace(given, description=given.description.model_copy(update=changes))

    return change


def in_check(**changes: Any) -> Change:
    def change(given: Facts) -> Facts:
        assert given.check is not None
        return replace(given, check=given.check.model_copy(update=changes))

    return change


def in_load(**changes: Any) -> Change:
    def change(given: Facts) -> Facts:
        assert given.check is not None
        load = given.check.load
        rows = tuple(row.model_copy(update=changes) for row in load.requests)
        return replace(given, check=given.check.model_copy(update={"load": load.model_copy(update={"requests": rows})}))

    return change


def in_matrix(**changes: Any) -> Change:
    def change(given: Facts) -> Facts:
        assert given.check is not None
        rows = tuple(row.model_copy(update=changes) for row in given.check.matrix)
        return replace(given, check=given.check.model_copy(update={"matrix": rows}))

    return change


def in_plan(**changes: Any) -> Change:
    def change(given: Facts) -> Facts:
        assert given.plan is not None
        return replace(given, plan=given.plan.model_copy(update=changes))

    return change


def refused_by_runtime(given: Facts) -> Facts:
    assert given.plan is not None
    rows = tuple(row.model_copy(update={"verdict": "FAILED", "evidence": "no"}) for row in given.plan.loaders)
    return in_plan(loaders=rows)(given)


def too_large(component: str, level: str) -> Change:
    def change(given: Facts) -> Facts:
        assert given.plan is not None
        rows = tuple(
            row.model_copy(update={"holds": False, "needed_bytes": 10**12})
            if (row.component, row.level) == (component, level)
            else row
            for row in given.plan.envelope
        )
        return in_plan(envelope=rows)(given)

    return change


def split_that_fits_nowhere(given: Facts) -> Facts:
    assert given.plan is not None and given.plan.split is not None
    return in_plan(split=given.plan.split.model_copy(update={"fits": False}))(given)


def other_coherence(**changes: Any) -> Change:
    def change(given: Facts) -> Facts:
        assert given.diff is not None
        overall = given.diff.overall.model_copy(update=changes)
        return replace(given, diff=given.diff.model_copy(update={"overall": overall}))

    return change


NAN = in_report(details__boundary__lengths__0__failure="logits are not finite", details__boundary__cause="runtime")


def unanswered(given: Facts) -> Facts:
    return replace(given, questions=4, refusal="the model's logits at position 77 are NaN")


FAILS: dict[str, list[Change]] = {
    "3.1": [lambda given: replace(given, files=3), lambda given: replace(given, findings=(BROKEN,))],
    "3.2": [NAN, unanswered],
    "3.3": [
        in_load(routing_identical=False),
        in_load(same_set_share=None),
        in_load(compared_tokens=0),
        in_load(same_answer=False),
        in_load(same_set_share=0.5),
        NAN,
    ],
    "3.4": [refused_by_runtime, NAN, unanswered, in_report(conditions__score__runtime="another")],
    "3.5": [in_report(details__boundary=None), in_report(metrics__context_stability_curve=None)],
    "3.6": [split_that_fits_nowhere],
    "3.7": [described(context_tokens=8192), in_report(details__boundary__lengths__1__failure="no memory")],
    "9.1": [described(file_bytes=71 * 10**9)],
    "9.2": [described(experts=0), NAN],
    "10.1": [in_matrix(same_set_share=0.9), in_matrix(same_set_share=None), in_check(matrix_tokens=0)],
    "10.2": [in_matrix(logits_identical=False), in_matrix(logits_identical=None), in_check(matrix_tokens=0)],
    "10.3": [in_report(metrics__context_stability_curve=[1.0, 0.4])],
    "10.4": [in_report(metrics__cpu_tokens_per_sec=0.5), NAN, unanswered],
    "10.5": [other_coherence(jaccard=0.4), other_coherence(decisions=0), other_coherence(jaccard=0.1)],
    "11.1": [in_report(metrics__reasoning_score=None)],
    "11.2": [in_report(metrics__code_score=None)],
    "11.3": [in_report(metrics__context_stability_curve=None)],
    "11.4": [in_report(metrics__cpu_tokens_per_sec=None)],
    "11.5": [in_report(metrics__failure_boundary_tokens=None)],
    "11.6": [in_report(artifact__kind="endpoint")],
    "11.7": [in_report(conditions__score__runtime="another")],
    "11.8": [
        in_report(conditions__score__prompt_sets=frozen_hashes() | {"tools": "f" * 64}),
        in_report(conditions__score__prompt_sets=frozen_hashes() | {"own": "f" * 64}),
        in_report(conditions__score__prompt_sets={"reasoning": frozen_hashes()["reasoning"]}),
    ],
    "11.9": [
        in_report(conditions__score_fingerprint="f" * 64),
        in_report(conditions__speed__score_fingerprint="f" * 64),
        in_report(conditions__speed_fingerprint="f" * 64),
    ],
    "I.1": [lambda given: replace(given, findings=(BROKEN,))],
    "I.2": [lambda given: replace(given, hashes=hashes("e" * 64))],
    "I.3": [lambda given: replace(given, manifest_findings=(BROKEN,))],
    "14.1": [too_large("RAM", "minimum")],
    "14.2": [too_large("RAM", "recommended")],
    "14.3": [too_large("GPU VRAM", "minimum")],
    "14.4": [too_large("GPU VRAM", "recommended")],
    "14.5": [too_large("storage", "minimum")],
    "14.6": [too_large("storage", "recommended")],
    "15.1": [lambda given: replace(given, findings=(BROKEN,)), refused_by_runtime],
    "15.2": [lambda given: replace(given, files=2)],
    "15.3": [refused_by_runtime, unanswered],
    "15.4": [NAN],
}
"""Clause -> inputs on which it fails."""


def verdicts(given: Facts) -> dict[str, Judgement]:
    return {clause.id: clause.verdict for clause in judge(given).clauses}


def test_every_clause_has_inputs_that_make_it_fail() -> None:
    assert set(FAILS) == {clause.id for clause in CLAUSES}
    assert len({clause.id for clause in CLAUSES}) == len(CLAUSES)


def test_a_model_that_is_as_it_should_be_passes_everything_that_can_be_tested_here() -> None:
    found = verdicts(facts())

    # No GPU is used here, and what was computed is not run.
    assert {id_ for id_, verdict in found.items() if verdict is not Judgement.PASS} == {"3.6"}
    assert judge(facts()).conforms


@pytest.mark.thorough
@pytest.mark.parametrize("id_", FAILS)
def test_a_clause_fails_on_its_inputs_and_says_why(id_: str) -> None:
    for change in FAILS[id_]:
        document = judge(change(facts()))
        clause = next(clause for clause in document.clauses if clause.id == id_)
        assert clause.verdict is Judgement.FAIL, clause
        assert clause.evidence and clause.command and clause.source
        assert id_ in document.failed


EMPTY: dict[str, Change] = {
    "no answers": in_report(
        **{f"details__context__{name}": [2, 2] for name in ("unusable",)},
        details__context__right=[0, 0],
        details__reasoning=None,
        details__code=None,
    ),
    "nothing right": in_report(metrics__context_stability_curve=[0.0, 0.0]),
    "no load": in_load(same_set_share=None, compared_tokens=0),
}


@pytest.mark.parametrize(
    ("what", "ids"), [("no answers", ("3.2", "3.4", "10.4")), ("nothing right", ("10.3",)), ("no load", ("3.3",))]
)
def test_what_was_measured_on_nothing_never_passes(what: str, ids: tuple[str, ...]) -> None:
    found = verdicts(EMPTY[what](facts()))

    assert all(found[id_] is not Judgement.PASS for id_ in ids)


def test_a_report_of_another_file_says_nothing_about_this_one() -> None:
    found = verdicts(replace(facts(), hashes=hashes("e" * 64)))

    for id_ in ("3.2", "3.4", "3.7", "10.3", "10.4", "11.1", "11.5"):
        assert found[id_] is Judgement.NOT_TESTED, id_
    assert not judge(replace(facts(), hashes=hashes("e" * 64))).conforms


def test_documents_that_are_not_there_leave_their_clauses_untested() -> None:
    found = verdicts(replace(facts(), plan=None, check=None, diff=None, manifest=None, hashes=None))

    for id_ in ("3.3", "10.1", "10.2", "10.5", "14.1", "14.6", "I.2", "I.3"):
        assert found[id_] is Judgement.NOT_TESTED, id_


def test_the_cards_claims_are_confirmed_or_refuted_on_the_reference_geometry_and_nowhere_else() -> None:
    def standing(given: Facts) -> dict[str, tuple[Standing, str]]:
        return {claim.claim: (claim.standing, claim.figure) for claim in judge(given).claims}

    elsewhere = standing(facts())
    assert elsewhere["284B total parameters"][0] is Standing.NOT_TESTABLE
    assert elsewhere["60GB of storage are enough"][0] is Standing.REFUTED

    reference = described(parameters=284_300_000_000, parameters_active=13_200_000_000, file_bytes=62_100_000_000)
    reference_facts = described(class_="IQ1_S-XL", tier="IQ1", experts=256)(reference(facts()))
    found = standing(reference_facts)
    assert found["284B total parameters"] == (Standing.CONFIRMED, "284,300,000,000")
    assert found["61.6GB"] == (Standing.CONFIRMED, "62,100,000,000 bytes")
    assert found["class IQ1_S-XL"][0] is Standing.CONFIRMED
    assert found[f"SHA-256 {CARD_SHA256[:16]}..."] == (Standing.REFUTED, "c" * 64)
    assert standing(replace(reference_facts, hashes=hashes(file=CARD_SHA256)))[f"SHA-256 {CARD_SHA256[:16]}..."][0] is (
        Standing.CONFIRMED
    )
    assert standing(too_large("RAM", "minimum")(reference_facts))["80GB of RAM at least"][0] is Standing.REFUTED
    assert standing(described(parameters_active=20 * 10**9)(reference_facts))["13B active parameters"][0] is (
        Standing.REFUTED
    )


def test_the_verb_judges_a_file_and_leaves_out_documents_of_another_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_small(tmp_path / "m.gguf")
    (tmp_path / "report.json").write_text(json.dumps(report_document()))
    for name in ("plan-1.json", "route-check-1.json", "route-diff-1.json"):
        (tmp_path / name).write_bytes((GOLDEN / name).read_bytes())

    assert run(["conform", str(tmp_path / "m.gguf"), "--report", str(tmp_path), "--json"]) == 1

    told = capsys.readouterr()
    document = parse_record(told.out, ConformanceDocument)
    found = {clause.id: clause.verdict for clause in document.clauses}
    assert found["10.1"] is found["3.3"] is Judgement.NOT_TESTED
    assert told.err.count("is of another model") == 3
    assert run(["conform", str(tmp_path / "m.gguf"), "--report", str(tmp_path), "--no-hash"]) == 1
    assert "clauses pass" in capsys.readouterr().out


def test_a_file_that_is_no_model_fails_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.gguf").write_text("a thesis")
    (tmp_path / "report.json").write_text(json.dumps(report_document()))

    assert run(["conform", str(tmp_path / "m.gguf"), "--report", str(tmp_path / "report.json")]) == 1
    assert "it cannot be read as a model" in capsys.readouterr().out
    assert run(["conform", str(tmp_path / "none.gguf"), "--report", str(tmp_path / "report.json")]) == 2
