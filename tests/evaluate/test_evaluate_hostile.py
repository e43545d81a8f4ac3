"""Answers made to stop an evaluation: none of them ends it, takes it minutes, or passes."""

import time
from typing import Any

import pytest

from dfqs.errors import SandboxUnavailable
from dfqs.evaluate.code import extract_code
from dfqs.evaluate.code_blocks import SOURCE_CHARACTERS
from dfqs.evaluate.context import COUNT, SINGLE, Question, is_right
from dfqs.evaluate.extract import extract_answer, normalise_number
from dfqs.evaluate.prompts import read_reasoning_set
from dfqs.evaluate.reasoning import score_reasoning
from dfqs.evaluate.scores import ANSWER_LIMIT_CHARACTERS, Completion, ScoredItem, Verdict, judged

SIZE = 1 << 17
"""Of an answer; none longer is judged."""
PATIENCE_S = 10.0
"""Of processor time; what grows with the square of that takes half an hour and more."""
REPEATED = [
    *("answer: x ", "answer\n", "#### \n", "\n", " ", "1,111,", "9", ". ", "```\n", "``` ", "\\boxed{", "<think>"),
    *("{", '"""', "12:05 ", "@f\n", "def f(a:\n", "x=1\nf\n", "if f:\n "),
]


QUESTIONS = [Question(0, kind, 0, 0.0, "", "1234", ()) for kind in (SINGLE, COUNT)]


def _repeated(piece: str) -> str:
    return (piece * (SIZE // len(piece) + 1))[:SIZE]


@pytest.mark.thorough
@pytest.mark.parametrize("piece", REPEATED)
@pytest.mark.parametrize("kind", ["number", "word"])
def test_finding_the_answer_takes_time_that_grows_with_the_text_and_not_with_its_square(piece: str, kind: str) -> None:
    started = time.process_time()

    extract_answer(_repeated(piece), kind, "How many apples?", ("Ada", "Chen") if kind == "word" else ())
    for asked in QUESTIONS:
        is_right(_repeated(piece), asked)

    assert time.process_time() - started < PATIENCE_S


@pytest.mark.thorough
@pytest.mark.parametrize("before", ["", "import x\n"])
@pytest.mark.parametrize("piece", REPEATED)
def test_finding_the_code_takes_time_that_grows_with_the_text_and_not_with_its_square(piece: str, before: str) -> None:
    started = time.process_time()

    extract_code(before + _repeated(piece), "f")

    assert time.process_time() - started < PATIENCE_S


@pytest.mark.parametrize("piece", ["{", "[a,", "{1:", "lambda f:", "f(", "f'{", "with ((a,", "-", "not ", "x if "])
def test_brackets_in_brackets_do_not_keep_the_parser(piece: str) -> None:
    started = time.process_time()

    for depth in (90, 5000):
        block = f"def f(): pass\n{piece * depth}\n"
        # A block beyond all measure is not looked at.
        found = None if len(block) > SOURCE_CHARACTERS else "def f(): pass\n"
        assert extract_code(f"```\n{block}```", "f") == found

    assert time.process_time() - started < PATIENCE_S


def test_prose_behind_bare_code_is_cut_off_however_long_it_is() -> None:
    prose = "\n".join(f"That's sentence {n} (of many" for n in range(2000))

    assert extract_code(f"Sure:\n\ndef f(a):\n    return a\n\n{prose}", "f") == "def f(a):\n    return a\n"


@pytest.mark.parametrize(
    ("text", "number"),
    [("9" * 4301, "9" * 4301), ("-0", "0"), ("0.0", "0"), ("1,200.0", "1200"), ("2.50", "2.5"), ("-7", "-7")],
)
def test_a_number_of_any_length_is_a_number(text: Any, number: Any) -> None:
    assert normalise_number(text) == number


@pytest.mark.parametrize("text", ["Answer: " + "9" * 4301, "Answer: " + "9" * 60_000, "Answer: 1" + ",000" * 2000])
def test_an_answer_of_very_many_digits_is_wrong_and_not_the_end_of_the_evaluation(text: Any) -> None:
    item = read_reasoning_set().items[0]
    scored = score_reasoning(item, Completion(text=text, finish_reason="stop"))

    assert scored.verdict is Verdict.WRONG


@pytest.mark.parametrize(
    "error", [ValueError("\x1b[2J"), RecursionError(), MemoryError(), KeyError("x"), ZeroDivisionError()]
)
def test_an_answer_on_which_a_scorer_fails_is_wrong_with_the_cause(error: Any) -> None:
    def fails(completion: Completion) -> ScoredItem:
        raise error

    scored = judged(fails, "reasoning", "one", Completion(text="x", finish_reason="stop"), {"level": 1})

    assert scored.verdict is Verdict.WRONG
    assert type(error).__name__ in scored.detail
    assert scored.detail.isprintable()


def test_a_sandbox_that_is_gone_is_no_verdict_on_an_answer() -> None:
    def fails(completion: Completion) -> ScoredItem:
        raise SandboxUnavailable("bubblewrap did not start")

    with pytest.raises(SandboxUnavailable):
        judged(fails, "code", "one", Completion(text="x", finish_reason="stop"), {})


def test_an_answer_that_keeps_to_no_cap_is_cut_before_it_is_judged_or_stored() -> None:
    item = read_reasoning_set().items[0]
    completion = Completion(text=f"Answer: {item.answer}\n" + "x" * ANSWER_LIMIT_CHARACTERS, finish_reason="stop")

    scored = judged(lambda cut: score_reasoning(item, cut), "reasoning", item.id, completion, {})

    assert scored.verdict is Verdict.TRUNCATED
    assert len(scored.completion.text) == ANSWER_LIMIT_CHARACTERS
