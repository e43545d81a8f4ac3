"""kill -9 in the speed stage, then the same command: the repeats that were there stay, the others are measured."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLED_EVAL = Path(__file__).with_name("killed_eval.py")


def rates(results: Path):
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    seconds = [line["data"]["decode_s"] for line in lines if line["stage"] == "speed"]
    return [len(run) / sum(run) for run in seconds]


def children_of(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def ends(pid: int) -> bool:
    """A process that nobody waits for yet has ended as well."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("stage", "key", "repeats"),
    [
        pytest.param("speed", "repeat-1", 1, id="after one repeat"),
        pytest.param("speed", "repeat-3", 3, id="before the bandwidth", marks=pytest.mark.slow),
        pytest.param("notes", "bandwidth", 3, id="before the report", marks=pytest.mark.slow),
    ],
)
def test_killed_among_the_repeats_and_run_again_keeps_them(tiny_deepseek4, tmp_path, stage, key, repeats):
    arguments = [tiny_deepseek4, "-o", tmp_path, "--suite", "small", "--only", "speed", "--threads", "1"]

    def evaluate(*fatal: str) -> int:
        command = [sys.executable, KILLED_EVAL, *fatal, *arguments]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert evaluate(stage, key) == -signal.SIGKILL
    results = tmp_path / "run-1" / "results.jsonl"
    before = results.read_bytes()
    assert len(rates(results)) == repeats
    assert not (tmp_path / "report.json").exists()

    assert evaluate("none", "none") == 0

    assert results.read_bytes().startswith(before)
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert len(rates(results)) == report["details"]["speed"]["repeats"] == 3
    assert report["metrics"]["cpu_tokens_per_sec"] == statistics.median(rates(results))
    assert report["details"]["speed"]["copy_bandwidth_bytes_per_s"] > 0
    assert [path.name for path in tmp_path.glob("run-*")] == ["run-1"]


@pytest.mark.slow
def test_killed_while_a_real_model_decodes_its_worker_ends_and_no_score_is_lost(embedded_model, tmp_path):
    command = [sys.executable, "-m", "dfqs.cli.main", "eval", str(embedded_model), "--suite", "quick", "--limit", "1"]
    command += ["--only", "reasoning,code,speed", "-o", str(tmp_path)]
    results = tmp_path / "run-1" / "results.jsonl"
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        # The second of three repeats is under way then, and takes seconds.
        while not results.exists() or b'"repeat-1"' not in results.read_bytes():
            assert killed.poll() is None
            time.sleep(0.02)
        workers = children_of(killed.pid)
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    while not all(map(ends, workers)):
        time.sleep(0.02)
    before = results.read_bytes()
    assert (workers != [], len(rates(results))) == (True, 1)

    subprocess.run(command, check=True, capture_output=True)

    assert results.read_bytes().startswith(before)
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert (report["details"]["reasoning"]["n"], report["details"]["code"]["n"]) == (1, 1)
    assert report["metrics"]["cpu_tokens_per_sec"] == statistics.median(rates(results))
    assert len(rates(results)) == 3
