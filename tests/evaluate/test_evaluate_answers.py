"""Hand-labelled answers: what a person reads in an output is what the scorers read, measured on the part held out."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfqs.evaluate.code import extract_code, score_code
from dfqs.evaluate.extract import extract_answer
from dfqs.evaluate.prompts import DIRECTORY, read_code_set, read_reasoning_set
from dfqs.evaluate.sandbox import Limits, Sandbox, open_sandbox
from dfqs.evaluate.scores import Completion, Verdict
from dfqs.evaluate.thoughts import split_thinking

DATA = Path(__file__).parents[1] / "data"
PENCILS = "Imani has 20 pencils and gives 12 to Keiko. How many pencils does Imani have left?"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return open_sandbox(Limits(wall_s=30))


def items() -> dict[str, Any]:
    gym = map(json.loads, (DIRECTORY / "gym.jsonl").read_text().splitlines())
    own = (item.model_dump() for item in read_reasoning_set().items)
    return {item["id"]: item for item in [*own, *gym]}


def disagreements(part: str) -> Iterator[str]:
    known = items()
    for row in rows("answer_labels.jsonl"):
        item = known[row["item"]]
        if row["part"] == part and row["label"] != extract_answer(
            row["output"], item["kind"], item["question"], item["choices"]
        ):
            yield row["output"][-60:]


def test_answers_that_were_held_out_are_read_as_a_person_reads_them() -> None:
    # Of 161 and 179; what stays wrong is not tuned away: docs/evaluation.md reports the share.
    assert len(list(disagreements("held out"))) <= 6
    assert len(list(disagreements("seen"))) <= 3


def test_code_is_judged_as_a_person_judges_it(sandbox: Sandbox) -> None:
    problems = {item.id: item for item in read_code_set().items}
    wrong = []
    for row in rows("code_labels.jsonl"):
        scored = score_code(problems[row["item"]], Completion(text=row["output"], finish_reason="stop"), sandbox)
        if scored.right != (row["label"] == "right"):
            wrong.append((row["output"][:80], scored.detail))

    assert wrong == []


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("Answer: 8\n\nThe answer takes 12 of 20 away.", "8"),
        ("Answer: 8 (or 12)", None),
        ("Answer: 8:00", None),
        ("Answer: half of 16", None),
        ("Answer: 8²", None),
        ("Answer: 20 pencils minus 12 pencils leaves 8 pencils", "8"),
        ("Answer: 8 pencils are left of 20", "8"),
        ("Answer: 8. I'm sorry if that is confusing; 12 went to Keiko.", "8"),
        ("Answer: 9 - wait, 8", "8"),
        ("Answer: 3 + 5 (= 8)", "8"),
        ("Antwort: 8", "8"),
        ("Answer: 8\n\nQuestion: Tom has 5.\nAnswer: 12", "8"),
        ("Answer: 1,2,3", None),
    ],
)
def test_an_answer_says_one_number_or_none(output: str, answer: str | None) -> None:
    assert extract_answer(output, "number", PENCILS) == answer


@pytest.mark.parametrize(
    ("output", "thought", "said"),
    [
        ("<think>a</think>b", "a", "b"),
        ("a</think>b", "a", "b"),
        ("<think>a", "a", ""),
        ("b", "", "b"),
        ("<seed:think>a</seed:think>b", "a", "b"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "a", "b"),
        ("<think>a</think>b<think>c</think>d", "a\nc", "bd"),
    ],
)
def test_thoughts_are_kept_apart_from_what_is_said(output: str, thought: str, said: str) -> None:
    assert split_thinking(output) == (thought, said)


@pytest.mark.thorough
def test_a_hostile_answer_is_read_in_bounded_time() -> None:
    for text in (
        "answer: " * 20_000,
        "\\boxed{" * 20_000,
        "<think></think>" * 10_000,
        "1 " * 60_000,
        "```" * 40_000,
        "=1" * 60_000,
    ):
        extract_answer(text, "number", PENCILS)
        extract_code(text, "f")


def test_code_that_only_a_newer_python_reads_is_not_wrong(sandbox: Sandbox) -> None:
    problem = next(item for item in read_code_set().items if item.entry_point == "add_all")
    generic = "```python\ntype All = list[int]\n\ndef add_all[T: int](numbers: All) -> T:\n    return sum(numbers)\n```"
    assert score_code(problem, Completion(text=generic, finish_reason="stop"), sandbox).right
    tests = re.sub(r"assert", "match match:\n      case ) assert", problem.tests, count=1)
    unread = problem.model_copy(update={"tests": tests})
    answer = Completion(text="```python\ndef add_all(numbers):\n    return sum(numbers)\n```", finish_reason="stop")

    assert score_code(unread, answer, sandbox).verdict is Verdict.UNJUDGED
