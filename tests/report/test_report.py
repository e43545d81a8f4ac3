"""The report: exact names and types of the five metrics, one shipped schema, nothing made up."""

import json
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_args, get_type_hints

import jsonschema
import pytest
from pydantic import ValidationError

from dfqs.evaluate.answerer import Answerer, AnswererInfo
from dfqs.evaluate.conditions import Numerics, ScoreConditions
from dfqs.evaluate.run import Request, score_conditions
from dfqs.evaluate.scores import Completion, ScoredItem, Verdict
from dfqs.evaluate.speed import DecodeRun, summarise
from dfqs.evaluate.stored import StoredPlan, plan_keys
from dfqs.evaluate.suites import QUICK
from dfqs.gguf.types import GGMLType
from dfqs.hardware import Machine, measure_copy_bandwidth, read_machine
from dfqs.model.spec import ModelSpec, Role, RoleSize, bytes_per_token
from dfqs.processors import default_threads
from dfqs.report import Report
from dfqs.report.context import context_detail
from dfqs.report.markdown import render_markdown, render_summary
from dfqs.report.record import build_report
from dfqs.report.schema import SCHEMA_FILE, Artifact, Conditions, Details, Metrics, json_schema
from report_documents import MODEL

SPECIFIED = {
    "reasoning_score": float,
    "code_score": float,
    "context_stability_curve": list,
    "cpu_tokens_per_sec": float,
    "failure_boundary_tokens": int,
}


@pytest.fixture
def report() -> Report:
    numerics = Numerics()
    score = ScoreConditions(
        suite="quick",
        prompt_sets={"reasoning": "a" * 64},
        items={"reasoning": 16},
        context_lengths=(1024,),
        max_tokens={"reasoning": 512},
        thinking="off",
        template_sha256=None,
        numerics=numerics,
        runtime="llama.cpp",
        code_python=None,
    )
    return Report(
        dfqs_version="0",
        measured_at="2026-01-01T00:00:00+00:00",
        artifact=Artifact(
            kind="file",
            name="evil | <b>name</b>\x1b[31m",
            file_bytes=1,
            file_sha256="0" * 64,
            content_sha256=None,
            model=MODEL,
        ),
        statement="Measured.",
        machine=read_machine(),
        conditions=Conditions(score=score, score_fingerprint=score.fingerprint, speed=None, speed_fingerprint=None),
        metrics=Metrics(
            reasoning_score=None,
            code_score=0.0,
            context_stability_curve=[1.0, 0.5],
            cpu_tokens_per_sec=None,
            failure_boundary_tokens=0,
        ),
        reasons={"reasoning_score": "bubblewrap is missing", "cpu_tokens_per_sec": "not measured"},
        details=Details(reasoning=None, code=None, context=None, speed=None, boundary=None),
        notices=[],
    )


def test_the_five_keys_have_the_names_and_types_of_the_specification() -> None:
    hints = get_type_hints(Metrics)

    assert list(hints) == list(SPECIFIED)
    for name, type_ in SPECIFIED.items():
        kinds = {getattr(kind, "__origin__", kind) for kind in get_args(hints[name])}
        assert kinds == {type_, NoneType}, name


@pytest.mark.thorough
def test_the_shipped_schema_is_current_and_accepts_a_report(report: Any) -> None:
    shipped = json.loads(SCHEMA_FILE.read_bytes())

    assert shipped == json.loads(json.dumps(json_schema()))
    jsonschema.Draft202012Validator.check_schema(shipped)
    jsonschema.Draft202012Validator(shipped).validate(report.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("metric", "value"),
    [("reasoning_score", 1.5), ("cpu_tokens_per_sec", 0), ("failure_boundary_tokens", 1.5), ("code_score", "1")],
)
def test_the_schema_refuses_numbers_that_no_measurement_gives(
    report: Any, metric: str, value: float | int | str
) -> None:
    document = report.model_dump(mode="json")
    document["metrics"][metric] = value

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_bytes())).validate(document)


def test_a_stored_report_reads_back_equal_and_one_of_another_version_is_refused(report: Any) -> None:
    document = report.model_dump(mode="json")

    assert document["schema"] == "dfqs.report/1"
    assert Report.model_validate_json(json.dumps(document)) == report
    with pytest.raises(ValidationError):
        Report.model_validate({**document, "schema": "dfqs.report/2"})


def test_what_was_not_measured_is_null_with_its_reason_and_a_zero_stays_a_zero(report: Any) -> None:
    text = render_markdown(report)

    assert "| reasoning_score | null: bubblewrap is missing |" in text
    assert "| code_score | 0.000 |" in text
    assert "| failure_boundary_tokens | 0 |" in text
    assert "reasoning_score           null" in render_summary(report)


def test_thinking_that_no_prompt_shows_is_said_to_be_unknown_and_never_off(report: Any) -> None:
    score = report.conditions.score.model_copy(update={"thinking": None})
    conditions = report.conditions.model_copy(update={"score": score})

    assert "| thinking | the prompt shows nothing of it |" in render_markdown(
        report.model_copy(update={"conditions": conditions})
    )


def test_a_name_from_outside_cannot_draw_on_the_page_or_the_terminal(report: Any) -> None:
    # The statement about an endpoint has the name that its server gives.
    report = report.model_copy(update={"statement": "Measured on \x1b[2J."})
    text = render_markdown(report)

    assert "\x1b" not in text + render_summary(report)
    assert "<b>" not in text.replace("\\<b\\>", "")
    assert "evil \\| " in text


def test_a_directory_without_an_evaluation_is_refused_with_the_way_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="dfqs eval"):
        build_report(tmp_path)


def test_rates_and_latencies_by_hand() -> None:
    runs = [
        DecodeRun(100, 2.0, (0.1, 0.1), 50, (0.5,), 2, "default", 0.0),
        DecodeRun(100, 1.0, (0.2, 0.2), 50, (0.25,), 2, "default", 0.0),
        DecodeRun(100, 4.0, (0.1, 0.3), 50, (0.2,), 2, "default", 0.0),
    ]

    speed = summarise(runs, 1e9, None)

    assert speed.decode_tokens_per_s == pytest.approx(5.0)  # median of 10, 5, 5
    assert speed.decode_spread == pytest.approx((5.0, 10.0))
    assert speed.prefill_tokens_per_s == pytest.approx(50.0)
    assert speed.depth_tokens_per_s == pytest.approx(4.0)
    assert speed.latency_p50_s == pytest.approx(0.15)
    assert (speed.bytes_per_token, speed.bandwidth_fraction) == (None, None)


@pytest.mark.parametrize(("others", "said"), [(0.02, False), (1.3, True)])
def test_a_rate_that_was_measured_beside_other_work_says_so_next_to_the_number(
    report: Any, others: float, said: bool
) -> None:
    # The load average before would not do: an evaluation's own work of the minute before is in it.
    runs = [DecodeRun(100, 2.0, (0.1, 0.1), 0, (), 2, "default", other_cpus) for other_cpus in (0.0, others)]
    speed = summarise(runs, 1e9, None)
    metrics = report.metrics.model_copy(update={"cpu_tokens_per_sec": speed.decode_tokens_per_s})
    details = report.details.model_copy(update={"speed": speed})

    summary = render_summary(report.model_copy(update={"metrics": metrics, "details": details}))

    assert ("busy with something else" in summary) == said


def test_bytes_per_token_count_the_experts_in_use_and_not_the_embedding_table() -> None:
    def role(role: Any, size: Any) -> Any:
        return RoleSize(role, 1, size, size, {GGMLType.Q8_0: size})

    roles = [role(Role.ROUTED_EXPERT, 800), role(Role.ATTENTION, 100), role(Role.EMBEDDING, 50)]
    spec = ModelSpec(*("m", "llama", 1, 1, 1, 1, 8, 2, 0, 1, 950, 350, 950), tuple(roles), False, None, None)

    assert bytes_per_token(spec) == 200 + 100 + 50  # no output tensor: the table is the output layer
    with_output = ModelSpec(
        *("m", "llama", 1, 1, 1, 1, 8, 2, 0, 1, 1000, 400, 1000), (*roles, role(Role.OUTPUT, 50)), False, None, None
    )
    assert bytes_per_token(with_output) == 200 + 100 + 50


def test_the_machine_is_described_without_guesses() -> None:
    machine = read_machine()

    assert Machine.model_validate_json(machine.model_dump_json()) == machine
    assert 1 <= machine.allowed_cpus <= machine.logical_cpus
    assert machine.memory_limit_bytes is None or machine.memory_limit_bytes < machine.memory_bytes
    assert 1 <= default_threads() <= machine.allowed_cpus
    assert measure_copy_bandwidth(1, 8 << 20) > 1e6


class _Target:
    info = AnswererInfo("m", "t" * 64, "off", Numerics(), "llama.cpp 1", 8192)


def test_every_condition_that_can_change_a_score_changes_its_fingerprint() -> None:
    target = cast(Answerer, _Target())
    base = score_conditions(target, Request(QUICK), None)
    others = [
        score_conditions(target, Request(QUICK, limit=3), None),
        score_conditions(target, Request(QUICK, max_context=9000), None),
        *(
            base.model_copy(update={"numerics": Numerics(**{name: value})})
            for name, value in (("flash_attention", "on"), ("type_k", "q8_0"), ("ubatch", 64), ("parallel", 2))
        ),
        base.model_copy(update={"thinking": "on"}),
        base.model_copy(update={"template_sha256": None}),
    ]

    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1
    assert score_conditions(target, Request(QUICK, threads=7), None).fingerprint == base.fingerprint


def test_what_questions_of_a_kind_begin_with_is_counted_once_a_document_and_length() -> None:
    places = [(kind, document) for kind in ("single", "chain") for document in (0, 1) for _ in range(2)]
    plan = StoredPlan(
        notes=[*range(8)],
        depths=[0.5] * 8,
        kinds=[kind for kind, _ in places],
        documents=[document for _, document in places],
        document_lines=[9, 9],
        document_tokens=[100, 110],
    )
    results: dict[str, Any] = {"256/plan": plan.model_dump(mode="json")}
    for key, (kind, document) in zip(plan_keys(256, plan), places, strict=True):
        completion = Completion(
            text="1", finish_reason="stop", prompt_tokens=130 + document, generated_tokens=3, stem_tokens=7
        )
        place: dict[str, str | int | float] = {"kind": kind, "document": document, "depth": 0.5, "length_tokens": 256}
        item = ScoredItem(stage="context", item=key, verdict=Verdict.WRONG, completion=completion, place=place)
        results[key] = item.model_dump(mode="json")

    detail = context_detail([256], results, {})

    assert detail is not None and detail.tokens is not None
    # Four questions behind 100 tokens and four behind 110; a stem of 7 for two kinds and two documents.
    assert detail.tokens.documents == [100, 110]
    assert detail.tokens.questions == 4 * (30 - 7) + 4 * (21 - 7) + 4 * 7
    assert detail.tokens.unshared == 4 * 133 + 4 * 134
    assert detail.tokens.saved == detail.tokens.unshared - 210 - detail.tokens.questions - 24
