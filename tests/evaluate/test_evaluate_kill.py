"""kill -9 in the middle of each stage, then the same command: every score as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluate_server import Reply, oracle, serve

KILLED_AT = {"reasoning": 5, "code": 21, "context": 28 + 95, "bisection of the boundary": 28 + 160 + 17}
"""Number of the request: 16 reasoning and 12 code items, then 40 questions at each of 4 lengths, then the bisection."""
FORGETS_FROM = 1900
"""Tokens: between the second and the third length, so that the boundary takes a bisection."""


class Partly:
    """Right on some, wrong on others, by the prompt alone; ends the process that asks at request `fatal`."""

    def __init__(self, fatal: int | None = None) -> None:
        self.right = oracle()
        self.fatal = fatal
        self.asked: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, prompt: str) -> Reply:
        self.asked.append(prompt)
        if len(self.asked) == self.fatal:
            assert self.process is not None
            os.kill(self.process.pid, signal.SIGKILL)
        reply = self.right(prompt)
        if len(prompt) // 4 > FORGETS_FROM or sum(prompt.encode()) % 5 == 0:
            return replace(reply, text="I do not know.")
        return reply


def evaluate(answer: Partly, url: str, out: Path) -> int:
    command = [sys.executable, "-m", "dfqs.cli.main", "eval", "--endpoint", url, "-o", str(out), "--suite", "quick"]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    answer.process = process
    process.communicate()
    return process.returncode


def scores(out: Path) -> Any:
    report = json.loads((out / "report.json").read_bytes())
    return {name: report[name] for name in ("metrics", "details", "reasons", "conditions", "artifact")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("whole")
    answer = Partly()
    with serve(answer) as endpoint:
        assert evaluate(answer, endpoint.url, out) == 0
    return scores(out), len(answer.asked), endpoint.url


@pytest.mark.parametrize("stage", KILLED_AT)
def test_killed_in_a_stage_and_run_again_gives_the_same_scores(tmp_path: Path, uninterrupted: Any, stage: Any) -> None:
    expected, requests, _ = uninterrupted
    answer = Partly(fatal=KILLED_AT[stage])
    with serve(answer) as endpoint:
        assert evaluate(answer, endpoint.url, tmp_path) == -signal.SIGKILL
        assert not (tmp_path / "report.json").exists()
        assert evaluate(answer, endpoint.url, tmp_path) == 0

    assert scores(tmp_path) == expected
    assert 0 < expected["metrics"]["reasoning_score"] < 1
    assert expected["details"]["boundary"]["cause"] == "score"
    # Again: the one that was under way, and the count of tokens that sizes the document.
    assert len(answer.asked) - requests in (1, 2)
    assert [path.name for path in tmp_path.glob("run-*")] == ["run-1"]
