"""Thinking: seen in the rendered prompt, kept apart from the answer, with a budget of its own, and never scored."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from dfqs.evaluate import jobs
from dfqs.evaluate.endpoint import EndpointAnswerer
from dfqs.evaluate.prompts import read_reasoning_set
from dfqs.evaluate.reasoning import score_reasoning
from dfqs.evaluate.run import Request, evaluate
from dfqs.evaluate.scores import Completion, Verdict
from dfqs.evaluate.stages import REASONING
from dfqs.evaluate.store import Subject
from dfqs.evaluate.suites import QUICK
from dfqs.evaluate.thoughts import Cap, split_output
from dfqs.report.evaluation import undrawn
from dfqs.report.record import build_report
from dfqs.runtime.template import render_chat
from evaluate_server import Reply, serve

SWITCH = "{{ messages[0].content }}<a>{% if enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n{% endif %}"
ALWAYS = "{{ messages[0].content }}<a><think>\n"
PLAIN = "{{ messages[0].content }}<a>"


class Templated:
    """As much of a model as its template."""

    def __init__(self, template: str) -> None:
        self.template = template

    def chat_template(self) -> str:
        return self.template

    def apply_chat_template(self, messages: Any, **variables: Any) -> str:
        return render_chat(self.template, messages, **variables)


@pytest.mark.parametrize(
    ("template", "asked", "seen"),
    [
        (SWITCH, False, "off"),
        (SWITCH, True, "on"),
        (ALWAYS, False, "always"),
        (ALWAYS, True, "always"),
        (PLAIN, False, None),
        (PLAIN, True, None),
    ],
)
def test_thinking_is_what_the_rendered_prompt_shows(template: str, asked: bool, seen: str | None) -> None:
    assert jobs._observe(cast(Any, Templated(template)), asked) == seen


def run_cap(cap: Cap, pieces: list[str]) -> int:
    text = ""
    for count, piece in enumerate(pieces, 1):
        text += piece
        if cap.reached(text):
            return count
    return 0


def test_thoughts_and_answers_have_caps_of_their_own() -> None:
    assert run_cap(Cap(3, None, begun=True), ["x"] * 9) == 3
    assert run_cap(Cap(3, 5, begun=True), ["x"] * 9) == 5
    assert run_cap(Cap(3, 5, begun=True), ["x", "x", "</think>", *"abcdef"]) == 6
    assert run_cap(Cap(3, 5, begun=False), ["<think>", "x", "</think>", *"abcdef"]) == 6
    assert run_cap(Cap(3, 5, begun=False), [*"abcdef"]) == 3


def test_a_thought_that_the_prompt_began_reaches_to_its_end_mark() -> None:
    assert split_output("20 - 12. Answer: 8", begun=True) == ("20 - 12. Answer: 8", "")
    assert split_output("20 - 12.</think>Answer: 8", begun=True) == ("20 - 12.", "Answer: 8")
    assert split_output("Answer: 8", begun=False) == ("", "Answer: 8")


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_answer_that_stands_in_a_thought_only_is_no_answer(reason: str) -> None:
    item = read_reasoning_set().items[0]
    scored = score_reasoning(item, Completion(text="\n", finish_reason=reason, reasoning="Answer: 8"))

    assert scored.verdict is Verdict.NO_ANSWER
    assert scored.completion.reasoning == "Answer: 8"


def event(delta: dict[str, str], finish: str | None = None) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_a_stage_that_only_thought_is_null_and_not_nought(key: str, tmp_path: Path) -> None:
    raw = event({key: "The answer is 8."}) + event({}, "stop") + b"data: [DONE]\n\n"
    request = Request(QUICK, (REASONING,), limit=2)
    with serve(lambda _: Reply(raw=raw)) as endpoint, EndpointAnswerer(endpoint.url, max_context=4096) as answerer:
        subject = Subject(kind="endpoint", name="fake", location=endpoint.url)
        directory = evaluate(answerer, subject, None, request, tmp_path, undrawn)
    report = build_report(directory)

    assert report.metrics.reasoning_score is None
    assert "thoughts only" in report.reasons["reasoning_score"]
    assert "The answer is 8." in (directory / "results.jsonl").read_text()
