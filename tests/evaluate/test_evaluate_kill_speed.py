"""kill -9 in the speed stage, then the same command: the repeats that were there stay, the others are measured."""

import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

KILLED_EVAL = Path(__file__).parents[1] / "killed_eval.py"


@pytest.fixture(params=["tiny_deepseek4", pytest.param("embedded_model", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(
    ("stage", "key", "repeats"),
    [
        pytest.param("speed", "repeat-1", 1, id="among the repeats"),
        pytest.param("speed", "repeat-3", 3, id="before the bandwidth", marks=pytest.mark.slow),
        pytest.param("notes", "bandwidth", 3, id="before the report", marks=pytest.mark.slow),
    ],
)
def test_killed_and_run_again_keeps_the_repeats(model: Any, tmp_path: Path, stage: str, key: str, repeats: int) -> None:
    def evaluate(*fatal: str) -> subprocess.Popen[bytes]:
        arguments = [model, "-o", tmp_path, "--suite", "small", "--only", "speed", "--threads", "1"]
        process = subprocess.Popen([sys.executable, KILLED_EVAL, *fatal, *arguments], stdout=subprocess.DEVNULL)
        process.wait()
        return process

    killed = evaluate(stage, key)
    assert killed.returncode == -signal.SIGKILL
    results = tmp_path / "run-1" / "results.jsonl"
    before = results.read_bytes()
    assert len(rates(results)) == repeats
    assert not (tmp_path / "report.json").exists()
    # The worker was decoding the next repeat: beside it nothing could be measured, and its model fills the memory.
    until(lambda: not workers_of(killed.pid))

    assert evaluate("none", "none").returncode == 0

    assert results.read_bytes().startswith(before)
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert len(rates(results)) == report["details"]["speed"]["repeats"] == 3
    assert report["metrics"]["cpu_tokens_per_sec"] == statistics.median(rates(results))
    assert report["details"]["speed"]["copy_bandwidth_bytes_per_s"] > 0
    assert [path.name for path in tmp_path.glob("run-*")] == ["run-1"]


def rates(results: Path) -> list[float]:
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    seconds = [line["data"]["decode_s"] for line in lines if line["stage"] == "speed"]
    return [len(run) / sum(run) for run in seconds]


def workers_of(pid: int) -> list[bytes]:
    """Command lines of the workers that a process started, also when it is gone; they carry its number."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"dfqs.runtime.worker_process" in arguments and str(pid).encode() in arguments:
            found.append(b" ".join(arguments))
    return found


def until(condition: Any) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not come true in 30 s")
