"""Frozen sets: their bytes, where the answers come from, and that one changed byte is refused."""

# A value that is None here fails the test by itself.
# mypy: disable-error-code="union-attr, operator, index, misc"

import ast
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from datetime import date, timedelta
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfqs.errors import IntegrityError
from dfqs.evaluate import prompts
from dfqs.evaluate.context import (
    CODE_OPTIONS,
    COUNT,
    KEYS,
    KINDS,
    MOST_COUNTED,
    SINGLE,
    GrowingDocument,
    Question,
    fitting_lines,
    is_right,
    plan_questions,
)
from dfqs.evaluate.prompts import freeze, generate
from evaluate_server import looked_up

READERS: dict[str, Callable[..., Any]] = {
    "reasoning": prompts.read_reasoning_set,
    "code": prompts.read_code_set,
    "context": prompts.read_context_set,
    "gym": prompts.read_gym_set,
    "tools": prompts.read_tool_set,
    "profile": prompts.read_profile_set,
}
PUBLISHED = {
    "reasoning": "4909efc0d1254d946946dcc278bdfbaa0114f8f78d0648ea5136ffef42f3c6cb",
    "code": "79191d23e2416d4023b9cfeb95539d226d5081f858da5bbcfd16a4a3a3fefcb9",
    "context": "077c2026bfa792e6159c67a208163710534febc90259b67256878e2a182036ce",
    "gym": "4ed515dee4c763865275956d4a2f58ff950a0e8d81bf13209e0929863e3c5565",
    "tools": "0864bf427634430a928a9ab672152139e5689f1fb44af4faa7eefddaff485f4c",
    "profile": "0a6480a77b6882fdeeeaec02bd117c172589c9717172afd51d61173c0ff014f6",
}


@pytest.fixture
def copied_sets(tmp_path: Path) -> Path:
    for path in prompts.DIRECTORY.iterdir():
        if path.suffix in (".json", ".jsonl"):
            shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", READERS)
def test_every_byte_of_a_set_is_covered_by_its_hash(copied_sets: Any, name: str) -> None:
    read = READERS[name]
    entry = read(copied_sets).entry
    path = copied_sets / entry.file
    original = path.read_bytes()
    for place in (0, len(original) // 2, len(original) - 1):
        changed = bytearray(original)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(IntegrityError, match=f"'{name}'.*{entry.file}"):
            read(copied_sets)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("field", ["instruction", "max_tokens", "version"])
def test_the_words_around_the_items_and_the_token_cap_are_covered_too(copied_sets: Any, name: str, field: str) -> None:
    path = copied_sets / "manifest.json"
    manifest = json.loads(path.read_bytes())
    entry = next(entry for entry in manifest["sets"] if entry["name"] == name)
    entry[field] = entry[field] + (" " if field == "instruction" else 1)
    path.write_text(json.dumps(manifest))

    with pytest.raises(IntegrityError, match=f"'{name}'"):
        READERS[name](copied_sets)


@pytest.mark.parametrize("file", ["reasoning.jsonl", "manifest.json"])
def test_a_missing_file_is_refused(copied_sets: Any, file: str) -> None:
    (copied_sets / file).unlink()

    with pytest.raises(Exception, match=re.escape(file)):
        prompts.read_reasoning_set(copied_sets)


def test_the_frozen_hashes_are_the_published_ones() -> None:
    assert {name: read().sha256 for name, read in READERS.items()} == PUBLISHED


def test_the_generator_reproduces_the_reasoning_set_byte_for_byte() -> None:
    frozen = (prompts.DIRECTORY / "reasoning.jsonl").read_bytes()

    assert generate.jsonl(generate.reasoning_items()) == frozen


def test_the_manifest_is_what_the_files_give() -> None:
    assert freeze.build_manifest(prompts.DIRECTORY).model_dump(mode="json") == json.loads(
        (prompts.DIRECTORY / "manifest.json").read_bytes()
    )


def test_sets_have_the_promised_sizes_and_every_prefix_of_16_is_balanced() -> None:
    reasoning = prompts.read_reasoning_set().items

    assert len(reasoning) == 64
    for start in range(0, 64, 16):
        cells = {(item.family, item.level) for item in reasoning[start : start + 16]}
        assert len(cells) == 16
    assert len({item.question for item in reasoning}) == 64
    assert len(prompts.read_code_set().items) == 32
    assert [item.level for item in prompts.read_code_set().items[:6]] == [1, 2, 3, 1, 2, 3]


def test_answers_are_right_by_another_way_of_computing_them() -> None:
    checked = 0
    for item in prompts.read_reasoning_set().items:
        answer = _solve(item)
        if answer is not None:
            assert answer == item.answer, item
            checked += 1
    assert checked == 64


def test_an_ordering_question_has_exactly_one_answer() -> None:
    for item in prompts.read_reasoning_set().items:
        if item.family == "ordering":
            assert len(_orders(item)) == 1


def test_code_tests_are_python_that_only_asserts() -> None:
    for item in prompts.read_code_set().items:
        (function,) = ast.parse(item.tests).body
        assert isinstance(function, ast.FunctionDef)
        assert function.name == "check"
        assert all(isinstance(statement, ast.Assert) for statement in function.body)
        assert f"def {item.entry_point}(" in item.prompt


VOCABULARY = prompts.read_context_set().items[0]
DOCUMENTS = [GrowingDocument(VOCABULARY, number) for number in range(2)]


@pytest.mark.thorough
def test_no_two_questions_of_a_document_ask_for_the_same_thing() -> None:
    asked = [DOCUMENTS[0].question(kind, block, 3000).text for kind in KINDS for block in range(3000)]

    assert len(set(asked)) == len(asked)


def test_the_documents_made_of_the_frozen_words_are_frozen_too() -> None:
    digests = [hashlib.sha256(document.text(700).encode()).hexdigest()[:16] for document in DOCUMENTS]

    assert digests == ["825aae5d2dceb1a1", "d59c7c37c2ae6de9"]


def test_a_shorter_document_is_the_beginning_of_a_longer_one_and_documents_differ() -> None:
    assert DOCUMENTS[0].text(200).startswith(GrowingDocument(VOCABULARY, 0).text(50))
    assert DOCUMENTS[0].text(50) != DOCUMENTS[1].text(50)


@pytest.mark.parametrize("lines", [7, 40, 700])
def test_every_answer_can_be_read_in_the_document_and_no_near_miss_is_right(lines: int) -> None:
    texts = [document.text(lines) for document in DOCUMENTS]
    for question in plan_questions(DOCUMENTS, [lines, lines], 40):
        said = looked_up(f"{texts[question.document]}\n\n{question.text}")
        assert is_right(said, question), (question, said)
        assert question.answer not in question.near_misses
        assert len(set(question.near_misses)) == (MOST_COUNTED if question.kind == COUNT else CODE_OPTIONS) - 1
        assert not any(is_right(wrong, question) for wrong in question.near_misses)


def test_a_key_has_two_near_misses_that_differ_in_one_word() -> None:
    question = DOCUMENTS[0].question(KEYS, 9, 20)
    name = re.search(r"key of the (.*) from (.*)\?", question.text)
    assert name is not None
    text = DOCUMENTS[0].text(140)
    (quality, animal), place = name[1].split(), name[2]
    others = re.findall(rf"key of the {quality} {animal} from (\w+) is (\d+)", text)
    others += re.findall(rf"key of the (\w+) {animal} from {place} is (\d+)", text)

    assert sum(word not in (quality, place) for word, _ in others) == 2
    assert {code for word, code in others if word not in (quality, place)} == set(question.near_misses[:2])


@given(st.integers(0, 5000))
def test_a_document_fits_its_budget_and_one_more_line_would_not(budget: Any) -> None:
    lines = fitting_lines(DOCUMENTS[0], lambda _index, text: len(text.split()), budget)

    used = sum(len(DOCUMENTS[0].line(index).split()) for index in range(lines + 1))
    assert used - len(DOCUMENTS[0].line(lines).split()) <= budget < used


def test_forty_questions_are_five_depths_of_four_kinds_about_two_documents() -> None:
    questions = plan_questions(DOCUMENTS, [40, 41], 40)

    assert {(q.document, q.kind, q.depth) for q in questions} == {
        (document, kind, depth) for document in (0, 1) for kind in KINDS for depth in (0.0, 0.25, 0.5, 0.75, 1.0)
    }
    assert len(questions) == len({(q.document, q.kind, q.place) for q in questions}) == 40
    assert len(plan_questions(DOCUMENTS, [700, 700], 80)) == 80
    assert len({q.kind for q in plan_questions(DOCUMENTS, [700, 700], 8)}) == 4


def test_a_document_with_fewer_facts_than_questions_gets_fewer_questions() -> None:
    assert len(plan_questions(DOCUMENTS, [1, 0], 40)) == 1
    assert plan_questions(DOCUMENTS, [0, 0], 40) == ()


def test_an_answer_that_lists_several_values_is_wrong() -> None:
    code, count = (Question(0, kind, 0, 0.0, "", answer, ()) for kind, answer in ((SINGLE, "4821"), (COUNT, "3")))

    assert is_right("The code is 4821.", code)
    assert is_right("4821, yes 4821", code)
    assert not is_right("4821 or 4822", code)
    assert not is_right("14821", code)
    assert not is_right("", code)
    assert is_right("It sang three times: 3.", count)
    assert not is_right("3 or 4", count)
    assert not is_right("3.5", count)
    assert not is_right("13", count)


def _orders(item: Any) -> Any:
    clues = re.findall(r"(\w+) is (\w+) than (\w+)\.", item.question)
    up = {"taller", "older", "faster"}
    pairs = [(a, b) if word in up else (b, a) for a, word, b in clues]
    return [order for order in permutations(item.choices) if all(order.index(a) < order.index(b) for a, b in pairs)]


def _solve(item: Any) -> Any:
    numbers = [int(n) for n in re.findall(r"\d+", item.question)]
    if item.family == "ordering":
        (order,) = _orders(item)
        place = re.search(r"number (\d+)", item.question)
        return order[int(place[1]) - 1 if place else 0]
    if item.family == "arithmetic":
        text = item.question
        if "finds" in text:
            return str(numbers[0] + numbers[1])
        if "left?" in text and "gives" in text:
            return str(numbers[0] - numbers[1])
        if "loses" in text:
            return str(numbers[0] * numbers[1] - numbers[2])
        if "loose" in text:
            share = (numbers[0] * numbers[1] + numbers[2]) / numbers[3]
            return str(int(share) - 1) if share == int(share) else "not whole"
        crates, rows, each, spoilt, price, cost = numbers
        return str((crates * rows * each - spoilt) * price - cost)
    if item.family == "calendar":
        return _solve_calendar(item.question, numbers)
    letters = re.search(r"letter '(\w)' occur in the word '(\w+)'", item.question)
    if letters:
        return str(letters[2].count(letters[1]))
    if "last letter" in item.question:
        return re.search(r"'(\w+)'", item.question)[1][-1]
    if "swap" in item.question:
        row = re.search(r"right: ([^.]*)\.", item.question)[1].split(", ")
        for a, b in re.findall(r"(\w+) and (\w+) swap", item.question):
            i, j = row.index(a), row.index(b)
            row[i], row[j] = row[j], row[i]
        return row[int(re.search(r"place (\d)", item.question)[1]) - 1]
    return str(_next(numbers))


def _next(numbers: Any) -> Any:
    steps = [b - a for a, b in pairwise(numbers)]
    if len(set(steps)) == 1:
        return numbers[-1] + steps[0]
    if all(numbers[i + 1] * numbers[0] == numbers[i] * numbers[1] for i in range(len(numbers) - 1)):
        return numbers[-1] * numbers[1] // numbers[0]
    if all(numbers[i] + numbers[i + 1] == numbers[i + 2] for i in range(len(numbers) - 2)):
        return numbers[-1] + numbers[-2]
    return numbers[-1] + steps[-1] + (steps[-1] - steps[-2])


def _solve_calendar(text: str, numbers: Any) -> Any:
    week = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    if "train" in text:
        total = numbers[0] * 60 + numbers[1] + numbers[2] + (numbers[3] if "stands" in text else 0)
        return f"{total // 60 % 24:02d}:{total % 60:02d}"
    if "Today" in text:
        today = week.index(re.search(r"Today is (\w+)", text)[1])
        return week[(today + (-numbers[0] if "ago" in text else numbers[0])) % 7]
    days = [
        date(int(y), 1 + generate.MONTHS.index(m), int(d))
        for m, d, y in re.findall(r"([A-Z][a-z]+) (\d+), (\d{4})", text)
    ]
    if "How many days" in text:
        return str((days[1] - days[0]) // timedelta(days=1))
    assert days[0].strftime("%A") in text
    return days[1].strftime("%A")
