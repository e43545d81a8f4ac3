"""Whole evaluations over HTTP: an oracle scores 1, guessing scores chance, no kind of broken answer counts as right."""

# A value that is None here fails the test by itself.
# mypy: disable-error-code="union-attr, operator, index, misc"

import json
import random
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import jsonschema
import pytest

from dfqs.errors import NetworkError, UsageError
from dfqs.evaluate import endpoint as endpoint_module
from dfqs.evaluate.endpoint import EndpointAnswerer
from dfqs.evaluate.prompts import read_code_set, read_reasoning_set
from dfqs.evaluate.run import Request, evaluate
from dfqs.evaluate.stages import BOUNDARY, CODE, CONTEXT, PROFILE, REASONING, TOOLS
from dfqs.evaluate.store import Subject
from dfqs.evaluate.suites import QUICK, STANDARD, Suite
from dfqs.progress import no_progress
from dfqs.report.markdown import render_markdown
from dfqs.report.record import build_report
from dfqs.report.schema import SCHEMA_FILE, Report
from dfqs.serving.client import Client
from evaluate_server import Answer, Reply, oracle, serve

ALL = (REASONING, CODE, CONTEXT, BOUNDARY)
OWN = replace(QUICK, gym_items=0, tool_items=0, profile_items=0)
"""Our first sets alone."""
SCHEMA = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_bytes()))


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "RETRY_WAITS_S", (0.01, 0.01, 0.01))


def run(
    answer: Answer,
    out: Path,
    stages: Any = ALL,
    suite: Suite = OWN,
    limit: int | None = None,
    max_context: int | None = None,
) -> Report:
    with serve(answer) as endpoint:
        run_at(endpoint.url, out, stages, suite, limit, max_context)
    report = build_report(out)
    document = report.model_dump(mode="json")
    SCHEMA.validate(document)
    assert {name for name, value in document["metrics"].items() if value is None} == set(document["reasons"])
    return report


def run_at(
    url: str,
    out: Path,
    stages: Any = ALL,
    suite: Suite = OWN,
    limit: int | None = None,
    max_context: int | None = None,
) -> None:
    request = Request(suite, stages, limit, max_context)
    longest = max(suite.context_lengths[-1], request.lengths[-1])
    with EndpointAnswerer(url, max_context=longest) as target:
        subject = Subject(kind="endpoint", name="fake", location="http://fake fake")
        evaluate(target, subject, None, request, out, lambda stage: nullcontext(no_progress))


def test_an_oracle_scores_one_on_every_set(tmp_path: Path) -> None:
    report = run(oracle(), tmp_path, (*ALL, TOOLS, PROFILE), replace(STANDARD, humaneval_items=0))

    assert report.metrics.reasoning_score == 1.0
    assert report.metrics.code_score == 1.0
    assert report.metrics.context_stability_curve == [1.0] * 8
    assert report.metrics.failure_boundary_tokens == 65_536
    assert report.details.boundary.censored
    assert (report.details.reasoning.n, report.details.code.n, report.details.context.n) == (160, 32, [40] * 8)
    assert [kind.right for kind in report.details.context.kinds] == [[10] * 8] * 4
    assert {(cell.n, cell.right) for cell in report.details.context.grid} == {(8, 8)}
    assert len(report.details.context.grid) == 8 * 5
    assert report.details.tools.score.right == report.details.tools.score.n == 24
    assert [row.score for row in report.details.profile] == [1.0] * 6


def test_an_endpoint_has_no_speed_and_the_report_says_why(tmp_path: Path) -> None:
    report = run(oracle(), tmp_path, stages=(REASONING,), limit=2)

    assert report.metrics.cpu_tokens_per_sec is None
    assert "endpoint" in report.reasons["cpu_tokens_per_sec"]
    assert report.conditions.speed is None
    assert report.reasons["code_score"] == "not measured"


def test_a_report_of_an_endpoint_does_not_show_the_asking_machine_as_its_own(tmp_path: Path) -> None:
    text = render_markdown(run(oracle(), tmp_path, stages=(REASONING,), limit=2))

    assert "| machine | the endpoint's own, not known |" in text
    assert "processor" not in text


@pytest.mark.thorough
def test_random_answers_score_chance(tmp_path: Path) -> None:
    items = read_reasoning_set().items
    prompts = {read_reasoning_set().prompt(item.question): item for item in items}
    draw = random.Random(7)

    def guess(prompt: str) -> Reply:
        item = prompts.get(prompt)
        choices = item.choices if item and item.choices else [str(draw.randrange(10_000))]
        return Reply(f"Answer: {draw.choice(list(choices))}")

    suite = replace(STANDARD, context_lengths=(1024, 2048), gym_items=0)
    report = run(guess, tmp_path, suite=suite, stages=(REASONING, CONTEXT))

    low, high = report.details.reasoning.interval_95
    assert low <= mean(item.chance for item in items) <= high
    assert report.metrics.context_stability_curve == [0.0] * 2


def test_empty_answers_score_zero_and_are_counted_as_empty(tmp_path: Path) -> None:
    report = run(lambda prompt: Reply(""), tmp_path)

    assert (report.metrics.reasoning_score, report.metrics.code_score) == (0.0, 0.0)
    assert (report.details.reasoning.empty, report.details.code.empty) == (16, 12)
    assert report.metrics.context_stability_curve == [0.0] * 4
    assert report.metrics.failure_boundary_tokens == 0
    assert "cannot do the task" in report.details.boundary.reason


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(raw=b"<html>Answer: 8</html>", content_type="text/html"), "without a finish reason"),
        (Reply(raw=b"<html>502</html>", content_type="text/html", status=502), "HTTP 502"),
        (Reply(raw=b"data: <html>\n\n"), "not JSON"),
        (Reply(raw=b'{"error": {"message": "out of memory"}}', status=500), "out of memory"),
        (Reply(raw=b'data: {"choices": [{"delta": {"content": "Answer: 8"}}]}\n\n'), "without a finish reason"),
        (Reply("Answer: 8", finish_reason="content_filter"), "content_filter"),
    ],
)
def test_an_endpoint_that_never_answers_properly_has_null_scores_with_the_reason(
    tmp_path: Path, reply: Any, reason: str
) -> None:
    report = run(lambda prompt: reply, tmp_path, stages=(REASONING, CODE), limit=2)

    assert (report.metrics.reasoning_score, report.metrics.code_score) == (None, None)
    assert reason in report.reasons["reasoning_score"]


@pytest.mark.thorough
def test_an_endpoint_that_answers_no_question_has_no_boundary_and_not_one_of_0_tokens(tmp_path: Path) -> None:
    refused = Reply(raw=b'{"error": {"message": "no such model"}}', status=500)

    report = run(lambda prompt: refused, tmp_path, stages=(CONTEXT, BOUNDARY))

    assert (report.metrics.context_stability_curve, report.metrics.failure_boundary_tokens) == (None, None)
    assert "no such model" in report.reasons["failure_boundary_tokens"]


@pytest.mark.thorough
def test_a_server_that_breaks_at_a_length_has_its_boundary_there_by_the_runtime(tmp_path: Path) -> None:
    right = oracle()

    def breaks(prompt: str) -> Reply:
        return right(prompt) if len(prompt) // 4 < 1800 else Reply(raw=b'{"error": "out of memory"}', status=500)

    report = run(breaks, tmp_path, stages=(BOUNDARY,))

    assert report.details.boundary.cause == "runtime"
    assert 1536 < report.metrics.failure_boundary_tokens <= 2048
    assert "out of memory" in report.details.boundary.reason


def test_html_in_between_counts_as_wrong_and_is_asked_again_next_time(tmp_path: Path) -> None:
    right, asked = oracle(), []

    def flaky(prompt: str) -> Reply:
        asked.append(prompt)
        return Reply(raw=b"<html>", content_type="text/html") if len(asked) == 3 else right(prompt)

    report = run(flaky, tmp_path, stages=(REASONING,), limit=8)
    assert (report.details.reasoning.right, report.details.reasoning.unusable) == (7, 1)

    again = run(flaky, tmp_path, stages=(REASONING,), limit=8)
    assert (again.details.reasoning.right, len(asked)) == (8, 9)


def test_half_a_character_in_an_answer_does_not_make_the_results_unreadable(tmp_path: Path) -> None:
    # JSON may say "\\ud83d", and then no file can hold the text; the same from what generated code raises.
    code = "```python\ndef add_all(*a):\n    raise ValueError('\\ud83d')\n```\ud83d"

    for _ in range(2):
        report = run(lambda prompt: Reply(code), tmp_path, stages=(REASONING, CODE), limit=1)
        assert (report.details.reasoning.wrong, report.details.code.wrong) == (1, 1)


def test_an_endless_answer_is_cut_off_and_wrong(tmp_path: Path) -> None:
    report = run(lambda prompt: Reply(endless=True), tmp_path, stages=(REASONING,), limit=2)

    assert report.metrics.reasoning_score == 0.0
    assert report.details.reasoning.truncated == 2


def test_an_answer_cut_at_the_cap_is_wrong_even_when_it_is_right(tmp_path: Path) -> None:
    right = oracle()

    report = run(lambda prompt: Reply(right(prompt).text, finish_reason="length"), tmp_path)

    assert (report.metrics.reasoning_score, report.metrics.code_score) == (0.0, 0.0)
    assert (report.details.reasoning.truncated, report.details.code.truncated) == (16, 12)
    assert report.metrics.context_stability_curve == [0.0] * 4
    assert report.details.context.truncated == [40] * 4
    assert "| 1,024 | 0.000 | 0.000 to 0.088 | 40 | 0 | 40 | 0 | 0 |" in render_markdown(report)


@pytest.mark.thorough
def test_a_server_with_a_shorter_context_gives_a_runtime_boundary_and_a_shorter_curve(tmp_path: Path) -> None:
    right = oracle()

    def short(prompt: str) -> Reply:
        if len(prompt) // 4 > 1800:
            return Reply(raw=b'{"error": "the request exceeds the available context size"}', status=400)
        return right(prompt)

    report = run(short, tmp_path, stages=(CONTEXT, BOUNDARY))

    assert report.metrics.context_stability_curve == [1.0, 1.0]
    assert "context size" in report.details.context.not_measured["2048"]
    assert report.details.boundary.cause == "runtime"
    assert 1536 < report.metrics.failure_boundary_tokens <= 2048


def test_a_server_that_silently_cuts_the_prompt_is_found_out(tmp_path: Path) -> None:
    right = oracle()

    report = run(
        lambda prompt: Reply(right(prompt).text, prompt_tokens=min(len(prompt) // 4, 300)),
        tmp_path,
        stages=(CONTEXT, BOUNDARY),
    )

    assert report.metrics.failure_boundary_tokens == 0 or report.details.boundary.cause == "runtime"
    assert "cut the prompt" in report.details.boundary.reason


@pytest.mark.thorough
def test_a_model_that_forgets_has_its_boundary_found_by_score(tmp_path: Path) -> None:
    right = oracle()

    def forgets(prompt: str) -> Reply:
        return right(prompt) if len(prompt) // 4 < 2600 else Reply("I do not remember.")

    lengths = (1024, 2048, 4096, 8192)
    report = run(forgets, tmp_path, suite=replace(STANDARD, context_lengths=lengths), stages=(CONTEXT, BOUNDARY))

    assert report.metrics.context_stability_curve == [1.0, 1.0, 0.0, 0.0]
    assert (report.details.boundary.cause, report.details.boundary.censored) == ("score", False)
    # It forgets at 2,600 and says so from the first step of the bisection on that is not shorter.
    assert 2600 <= report.metrics.failure_boundary_tokens <= 2600 + (4096 - 2048) // 8
    assert len(report.details.boundary.lengths) == 7


def test_with_few_questions_the_boundary_is_null_with_the_reason(tmp_path: Path) -> None:
    report = run(oracle(), tmp_path, stages=(BOUNDARY,), limit=5)

    assert report.metrics.failure_boundary_tokens is None
    assert "at least 40" in report.reasons["failure_boundary_tokens"]


@pytest.mark.thorough
def test_max_context_takes_the_search_beyond_the_curve(tmp_path: Path) -> None:
    report = run(oracle(), tmp_path, stages=(BOUNDARY,), max_context=13_000)

    assert [entry.length_tokens for entry in report.details.boundary.lengths] == [1024, 1536, 2048, 3072, 6144, 12288]
    assert report.metrics.failure_boundary_tokens == 12_288


def test_a_server_that_goes_away_stops_the_work_and_the_same_call_goes_on(tmp_path: Path) -> None:
    with serve(oracle()) as endpoint:
        run_at(endpoint.url, tmp_path, stages=(REASONING,), limit=4)
    with pytest.raises(NetworkError, match="nothing answers"):
        run_at(endpoint.url, tmp_path, stages=(REASONING,), limit=4)

    report = run(oracle(), tmp_path, stages=(REASONING,), limit=4)
    assert report.metrics.reasoning_score == 1.0


def test_a_changed_condition_begins_a_new_run_and_says_which(tmp_path: Path) -> None:
    run(oracle(), tmp_path, stages=(REASONING,), limit=2)
    report = run(oracle(), tmp_path, stages=(REASONING,), limit=3)

    assert [path.name for path in sorted(tmp_path.glob("run-*"))] == ["run-1", "run-2"]
    assert any("items.reasoning: 2 -> 3" in notice for notice in report.notices)


def test_a_model_that_the_endpoint_does_not_serve_is_refused(tmp_path: Path) -> None:
    with serve(oracle()) as endpoint, pytest.raises(UsageError, match="serves fake, not 'other'"):
        EndpointAnswerer(endpoint.url, model="other", max_context=1024).__enter__()


def test_a_server_s_names_cannot_draw_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "models", lambda self: ("evil\x1b[2J\ud800",))
    with EndpointAnswerer("http://127.0.0.1:9", max_context=1024) as target:
        assert target.info.name == "evil\\x1b[2J\\ud800"
    with pytest.raises(UsageError) as refused:
        EndpointAnswerer("http://127.0.0.1:9", model="other", max_context=1024).__enter__()
    assert str(refused.value).isprintable()


def test_hidden_tests_and_solutions_are_never_sent(tmp_path: Path) -> None:
    with serve(oracle()) as endpoint:
        run_at(endpoint.url, tmp_path, stages=(CODE,))
    sent = "\n".join(endpoint.prompts)

    assert len(endpoint.prompts) == 12
    assert "assert" not in sent
    assert all(item.tests not in sent for item in read_code_set().items)
