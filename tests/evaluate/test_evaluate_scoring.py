"""Scorers: a right answer counts in every form that models give it, a wrong one never."""

import json
from pathlib import Path
from typing import Any

import pytest

from dfqs.evaluate.code import extract_code
from dfqs.evaluate.extract import extract_answer
from dfqs.evaluate.prompts import read_code_set, read_reasoning_set
from dfqs.evaluate.reasoning import score_reasoning
from dfqs.evaluate.scores import Completion, Verdict

DATA = Path(__file__).parents[1] / "data"
NAMES = ("Ada", "Chen", "Liam")


def done(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(text=text, finish_reason=finish_reason)


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("Answer: 42", "42"),
        ("5 + 5 = 10\n\n**Answer:** 42", "42"),
        ("**Answer: 42**", "42"),
        ("Answer: $\\boxed{42}$", "42"),
        ("We get \\[ \\boxed{1{,}234} \\]", "1234"),
        ("So \\boxed{42}.", "42"),
        ("The answer is 1,234.", "1234"),
        ("Answer: 42.0", "42"),
        ("Answer: -7", "-7"),
        ("Answer: 2.5", "2.5"),
        ("The final answer is: 6 * 7 = 42 apples.", "42"),
        ("The answer is 41. Wait, no. The answer is 42.", "42"),
        ("She has 12.\nSo there are 42 left", "42"),
        ("#### 42", "42"),
        ("<think>The answer is 7</think>\nAnswer: 42", "42"),
        ("<think>The answer is 7", None),
        ("no number here", None),
        ("", None),
        ("Answer:", None),
        ("Answer:\n42", "42"),
    ],
)
def test_numbers_are_found_in_the_forms_that_models_use(output: str, answer: Any) -> None:
    assert extract_answer(output, "number", "How many apples does she have?") == answer


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("Answer: Chen", "Chen"),
        ("**Answer:** chen.", "Chen"),
        ("Ada > Chen > Liam, so the answer is Ada", "Ada"),
        ("The answer is Ada or Chen", None),
        ("Ada is taller than Chen.", None),
        ("Therefore it must be Liam.", "Liam"),
        ("Answer: Zoe", None),
        ("Answer: 3", None),
    ],
)
def test_a_name_counts_only_when_it_is_the_only_one_named(output: str, answer: Any) -> None:
    assert extract_answer(output, "word", "Ada is taller than Chen. Who is tallest?", NAMES) == answer


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("Answer: 16:05", "16:05"),
        ("Answer: 4:05 PM", "16:05"),
        ("It arrives at 9:30.", "09:30"),
        ("Answer: 12:15 a.m.", "00:15"),
        ("Answer: 16 h", None),
        ("Answer: 25:10", None),
    ],
)
def test_clock_times_are_brought_to_24_hours(output: str, answer: Any) -> None:
    assert extract_answer(output, "time", "A train leaves at 14:00.") == answer


def test_a_repeated_question_is_no_answer() -> None:
    question = "Today is Wednesday. Which day of the week is it 2 days from now?"

    assert extract_answer("Today is Wednesday.", "word", question, ("Wednesday", "Friday")) is None
    assert extract_answer("It is Friday.", "word", question, ("Wednesday", "Friday")) == "Friday"


def test_the_extractor_agrees_with_a_person_on_real_outputs() -> None:
    # The labels were committed first and are not changed; what stays wrong is listed in docs/evaluation.md.
    items = {item.id: item for item in read_reasoning_set().items}
    rows = [json.loads(line) for line in (DATA / "extraction_labels.jsonl").read_text().splitlines()]
    whole = [row for row in rows if not row["truncated"]]
    wrong = [
        row["output"][-80:]
        for row in whole
        if extract_answer(
            row["output"], items[row["item"]].kind, items[row["item"]].question, items[row["item"]].choices
        )
        != row["label"]
    ]

    assert (len(rows), len(whole), len({row["model"] for row in rows})) == (179, 137, 2)
    assert len(wrong) == 6, wrong


@pytest.mark.parametrize("reason", ["length", "context", "error"])
def test_an_answer_that_was_cut_off_is_wrong_even_when_it_says_the_right_thing(reason: str) -> None:
    item = read_reasoning_set().items[0]

    scored = score_reasoning(item, done(f"Answer: {item.answer}", reason))

    assert not scored.right
    assert scored.verdict is (Verdict.UNUSABLE if reason == "error" else Verdict.TRUNCATED)


def test_an_empty_answer_is_counted_as_empty_and_wrong() -> None:
    scored = score_reasoning(read_reasoning_set().items[0], done(" \n"))

    assert (scored.verdict, scored.right) == (Verdict.EMPTY, False)


def test_an_oracle_scores_one_and_a_wrong_answer_zero_on_every_reasoning_item() -> None:
    items = read_reasoning_set().items
    for item in items:
        for form in ("Answer: {}", "The answer is {}.", "Let us see.\n\n**Answer:** {}"):
            assert score_reasoning(item, done(form.format(item.answer))).right, (item.id, form)
        others = [choice for choice in item.choices if choice != item.answer]
        wrong = others[0] if others else "23:59" if item.kind == "time" else str(int(item.answer) + 1)
        assert not score_reasoning(item, done(f"Answer: {wrong}")).right, item.id


def test_answering_every_choice_in_turn_scores_exactly_chance() -> None:
    for item in read_reasoning_set().items:
        if item.choices:
            hits = [score_reasoning(item, done(f"Answer: {choice}")).right for choice in item.choices]
            assert sum(hits) / len(hits) == pytest.approx(item.chance)


@pytest.mark.parametrize(
    "output",
    [
        "```python\ndef f(a):\n    return a\n```",
        "Here it is:\n\n```py\nimport math\n\ndef f(a):\n    return a\n```\nIt returns a.",
        "First try:\n```python\ndef f(a):\n    return 0\n```\nBetter:\n```python\ndef f(a):\n    return a\n```",
        "Imports:\n```python\nimport math\n```\nand\n```python\ndef f(a):\n    return a\n```",
        "def f(a):\n    return a",
        "Sure! This does it.\n\ndef f(a):\n    return a\n\nThat is all, it's simple.",
        "```python\ndef f(a):\n    return a",
        "<think>```python\ndef f(a): return 1\n```</think>```\ndef f(a):\n    return a\n```",
        "1. Like so:\n   ```python\ndef f(a):\n    return a\n   ```",
    ],
)
def test_the_function_is_found_however_it_is_wrapped(output: str) -> None:
    source = extract_code(output, "f")

    assert source is not None
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # written above, not generated
    assert namespace["f"](7) == 7


@pytest.mark.parametrize(
    "output", ["", "I cannot.", "```python\nx = 1\n```", "def g(a):\n    return a", "def f(a:\n  ("]
)
def test_an_answer_without_the_function_has_no_code(output: str) -> None:
    assert extract_code(output, "f") is None


def test_code_problems_do_not_give_away_their_tests() -> None:
    for item in read_code_set().items:
        assert "assert" not in item.prompt
        assert item.tests.count("assert candidate(") >= 3, item.id
