"""What a server says once is no boundary: only listed refusals are, everything else is asked again."""

# A value that is None here fails the test by itself.
# mypy: disable-error-code="union-attr, operator, index, misc"

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_evaluate_endpoint import run

from dfqs.errors import EndpointError, EndpointFault
from dfqs.evaluate import endpoint as endpoint_module
from dfqs.evaluate.answerer import Asking, LengthFailure, LengthFault
from dfqs.evaluate.boundary import LengthResult, find_boundary
from dfqs.evaluate.endpoint import EndpointAnswerer
from dfqs.evaluate.run import Request, evaluate
from dfqs.evaluate.stages import BOUNDARY, CONTEXT, REASONING
from dfqs.evaluate.statistics import Count
from dfqs.evaluate.store import Subject
from dfqs.evaluate.suites import QUICK
from dfqs.progress import no_progress
from dfqs.report.record import build_report
from dfqs.serving.refusals import is_context_refusal, read_refusal
from evaluate_server import Reply, oracle, serve


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "RETRY_WAITS_S", (0.01, 0.01))


def refused(body: object, status: int) -> Any:
    return Reply(raw=json.dumps(body).encode(), status=status, content_type="application/json")


def failing(answer: Any, places: Any) -> Any:
    """`answer`, but for the requests of those numbers."""
    asked = []

    def flaky(prompt: str) -> Any:
        asked.append(prompt)
        return places[len(asked)] if len(asked) in places else answer(prompt)

    return flaky, asked


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"error": {"message": "context canceled"}}, 500),
        ({"error": "context_deadline_exceeded"}, 504),
        ({"error": {"message": "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"}}, 400),
        ({"error": {"message": "the request context is gone", "type": "server_error"}}, 503),
        ({"error": {"message": "rate limit", "code": "rate_limit_exceeded"}}, 429),
        ({"error": {"message": "This model's maximum context length is 10 tokens. However, no."}}, 500),
    ],
)
def test_one_transient_error_changes_nothing(tmp_path: Path, body: Any, status: int) -> None:
    flaky, _ = failing(oracle(), {60: refused(body, status)})

    report = run(flaky, tmp_path, stages=(CONTEXT, BOUNDARY))

    assert report.metrics.context_stability_curve == [1.0] * 4
    assert (report.metrics.failure_boundary_tokens, report.details.boundary.cause) == (3072, "none")


@pytest.mark.thorough
def test_an_outage_in_the_middle_is_null_with_the_reason_and_the_next_run_asks_again(tmp_path: Path) -> None:
    right, down = oracle(), [False]

    def answer(prompt: str) -> Any:
        down[0] = down[0] or len(prompt) // 4 > 1700
        return refused({"error": {"message": "context canceled"}}, 500) if down[0] else right(prompt)

    report = run(answer, tmp_path, stages=(CONTEXT, BOUNDARY))
    assert report.metrics.failure_boundary_tokens is None
    assert "context canceled" in report.reasons["failure_boundary_tokens"]
    # All lengths of the first document come first: the second was never answered.
    assert report.details.context.unusable[:2] == [20, 20]
    assert report.details.context.right[:2] == [20, 20]

    report = run(right, tmp_path, stages=(CONTEXT, BOUNDARY))
    assert report.metrics.context_stability_curve == [1.0] * 4
    assert (report.metrics.failure_boundary_tokens, report.details.boundary.censored) == (3072, True)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(
            raw=b'data: {"choices": [{"delta": {"content": "x"}}]}\r\n\r\n',
            content_type="text/event-stream; charset=idna",
        ),
        Reply(raw=b"data: \xff\xfe\n\n", content_type="text/event-stream; charset=nonsense"),
        Reply(raw=b'data: {"error": {"message": "try again"}}\n\n'),
    ],
)
def test_an_answer_that_cannot_be_decoded_never_ends_the_evaluation(tmp_path: Path, reply: Any) -> None:
    report = run(lambda _prompt: reply, tmp_path, stages=(REASONING,), limit=2)

    assert report.metrics.reasoning_score is None
    assert "no usable answer" in report.reasons["reasoning_score"]


@pytest.mark.parametrize("finish", ["\x1b]0;OWNED\x07\x1b[31mred", "a\u202eb", "eos", ""])
def test_a_finish_reason_cannot_draw_on_the_terminal(finish: str) -> None:
    with serve(lambda _prompt: Reply("x", finish_reason=finish)) as endpoint:
        completion = EndpointAnswerer(endpoint.url, max_context=1024).complete("q", 8)

    assert completion.finish_reason == "error"
    assert completion.text.isprintable()


@pytest.mark.parametrize(("finish", "kept"), [("eos_token", "stop"), ("stop_sequence", "stop"), ("length", "length")])
def test_finish_reasons_are_stored_in_the_words_of_the_field(finish: str, kept: str) -> None:
    with serve(lambda _prompt: Reply("x", finish_reason=finish)) as endpoint:
        assert EndpointAnswerer(endpoint.url, max_context=1024).complete("q", 8).finish_reason == kept


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"code": 400, "message": "...", "type": "exceed_context_size_error", "n_ctx": 512}}),
        (200, {"error": {"code": 400, "message": "...", "type": "exceed_context_size_error"}}),
        (400, {"error": {"message": "...", "type": "invalid_request_error", "code": "context_length_exceeded"}}),
        (413, {"error": {"message": "...", "code": "context_length_exceeded"}}),
        (400, {"error": "the request exceeds the available context size, try increasing it"}),
        (
            400,
            {"error": {"message": "request (900 tokens) exceeds the available context size (512 tokens), increase it"}},
        ),
        (
            400,
            {
                "object": "error",
                "message": "This model's maximum context length is 512 tokens. However, you requested 900 tokens (868 "
                "in the messages, 32 in the completion). Please reduce the length of the messages or completion.",
                "type": "BadRequestError",
                "code": 400,
            },
        ),
        (400, {"error": {"message": "prompt is too long: 9000 tokens > 8192 maximum"}}),
    ],
)
def test_the_listed_refusals_mean_that_the_context_is_too_long(status: int, body: Any) -> None:
    assert is_context_refusal(read_refusal(status, json.dumps(body).encode()))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, {"error": {"type": "exceed_context_size_error"}}),
        (503, {"error": {"code": "context_length_exceeded"}}),
        (400, {"error": {"message": "context canceled"}}),
        (400, {"error": {"message": "rate limited; the request exceeds the available context size"}}),
        (200, {"error": "the request exceeds the available context size"}),
        (400, {"error": {"message": {"type": "exceed_context_size_error"}, "type": ["exceed_context_size_error"]}}),
        (400, ["context_length_exceeded"]),
        (400, None),
    ],
)
def test_nothing_else_means_it(status: int, body: Any) -> None:
    assert not is_context_refusal(read_refusal(status, json.dumps(body).encode()))


def test_a_listed_refusal_carries_its_kind_to_the_caller() -> None:
    said = refused({"error": {"type": "exceed_context_size_error", "message": "too long"}}, 400)
    with serve(lambda _prompt: said) as endpoint, pytest.raises(Exception, match="too long") as failed:
        EndpointAnswerer(endpoint.url, max_context=1024)._attempt("q", 8, lambda *_: None)

    assert isinstance(failed.value, EndpointError)
    assert failed.value.fault is EndpointFault.CONTEXT_EXCEEDED


@pytest.mark.thorough
def test_one_strange_count_of_tokens_is_no_cut_prompt(tmp_path: Path) -> None:
    right, asked = oracle(), []

    def once(prompt: str) -> Any:
        asked.append(prompt)
        return Reply(right(prompt).text, prompt_tokens=3 if len(asked) == 60 else None)

    report = run(once, tmp_path, stages=(CONTEXT, BOUNDARY))

    assert report.metrics.context_stability_curve == [1.0] * 4
    assert report.details.boundary.cause == "none"


@pytest.mark.parametrize(("crashes", "failed"), [(1, False), (2, True)])
def test_a_runtime_that_is_killed_once_is_asked_again_before_the_length_has_failed(
    tmp_path: Path, crashes: int, failed: bool
) -> None:
    left = [crashes]

    class Dies(EndpointAnswerer):
        def ask(self, asking: Asking, *rest: Any, **named: Any) -> None:
            if asking.length_tokens == 1536 and left[0]:
                left[0] -= 1
                raise LengthFailure("the worker was killed (SIGKILL)", LengthFault.DIED, may_pass=True)
            super().ask(asking, *rest, **named)

    with serve(oracle()) as endpoint, Dies(endpoint.url, max_context=3072) as target:
        subject = Subject(kind="endpoint", name="fake", location="here")
        request = Request(QUICK, (CONTEXT,), limit=2)
        evaluate(target, subject, None, request, tmp_path, lambda _stage: nullcontext(no_progress))
    curve = build_report(tmp_path).details.context

    assert (1536 not in curve.lengths_tokens) == failed
    assert ("1536" in curve.not_measured) == failed


def boundary_of(results: Any) -> Any:
    return find_boundary(
        lambda length: results.get(length, replace(results[1024], length_tokens=length)), sorted(results)
    )


def test_questions_without_an_answer_are_no_fall() -> None:
    good = LengthResult(1024, Count(38, 40))
    outage = LengthResult(2048, Count(5, 40), unanswered=33)

    boundary = boundary_of({1024: good, 2048: outage, 4096: LengthResult(4096, Count(2, 40))})
    assert (boundary.tokens, boundary.cause) == (None, "undecided")
    assert "33 of 40 questions at 2,048 tokens" in boundary.reason

    # A few of them decide nothing.
    fall = LengthResult(2048, Count(1, 40), unanswered=2)
    assert boundary_of({1024: good, 2048: fall, 4096: LengthResult(4096, Count(2, 40))}).cause == "score"


def test_a_shortest_length_that_was_hardly_answered_is_no_boundary_of_zero() -> None:
    boundary = boundary_of(
        {1024: LengthResult(1024, Count(2, 40), unanswered=38), 2048: LengthResult(2048, Count(0, 40))}
    )

    assert (boundary.tokens, boundary.cause) == (None, "undecided")


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (500, 2), (400, 2), (503, 3)])
def test_an_answer_that_does_not_come_is_told_and_asked_for_as_often_as_that_may_help(status: int, asked: int) -> None:
    told: list[str] = []
    reply = refused({"error": {"message": "out of \x1b[31m memory"}}, status)
    with serve(lambda _prompt: reply) as endpoint:
        target = EndpointAnswerer(endpoint.url, max_context=1024, tell=told.append)
        first = target.complete("q", 8)
        assert len(endpoint.prompts) == asked
        target.complete("q", 8)
        assert len(endpoint.prompts) == asked + 1

    assert first.finish_reason == "error"
    assert len(told) == asked
    assert all(f"refused (HTTP {status}): out of" in line and line.isprintable() for line in told)
    assert all(f"asking again in 10 ms ({number} of {asked - 1})" in line for number, line in enumerate(told[:-1], 1))
    assert "going on, and asking once each until something is answered" in told[-1]


def test_after_an_answer_the_next_outage_is_told_again() -> None:
    told: list[str] = []
    down = refused({"error": {"message": "busy"}}, 503)
    flaky, _ = failing(lambda _prompt: Reply("x"), {1: down, 3: down})
    with serve(flaky) as endpoint:
        target = EndpointAnswerer(endpoint.url, max_context=1024, tell=told.append)
        assert [target.complete("q", 8).finish_reason for _ in range(2)] == ["stop", "stop"]

    assert [line.rpartition("; ")[2] for line in told] == ["asking again in 10 ms (1 of 2)"] * 2
