"""Many clients at once, and the model's process killed or stopped among them: `benchmarks/serving.py`, made small."""

import importlib.util
import json
import os
import signal
import threading
import urllib.request
from pathlib import Path
from typing import Any

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "serving.py"


def load_benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("serving_benchmark", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up.
    importlib.import_module("sys").modules["serving_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def test_none_is_lost_or_mixed_up_and_a_death_or_a_hang_ends_only_what_was_being_answered(
    tiny_deepseek4: Path,
) -> None:
    serving = load_benchmark()
    options = ("--ctx", "256", "--parallel", "2", "--threads", "1", "--stall-limit", "3")
    with serving.served(tiny_deepseek4, *options) as (url, pid):
        (first,) = serving.workers_of(pid)
        before = serving.summary(serving.load(url, 4, 2))
        assert before["right"] == 8, before

        killed = threading.Event()
        killer = serving.kill_when(killed, pid)
        outcomes = serving.load(url, 4, 4, killed)
        killer.join()
        found = serving.summary(outcomes)
        (second,) = serving.workers_of(pid)
        told = metrics(url)

        # It neither dies nor answers.
        os.kill(second, signal.SIGSTOP)
        stopped = serving.summary(serving.load(url, 3, 1))
        later = serving.summary(serving.load(url, 1, 1))
        restarts = metrics(url)["dfqs_serve_restarts_total"]

    assert (found["wrong"], found["lost"]) == (0, 0), found
    # Those that it was answering, and not those that came later.
    assert 1 <= found["error"] <= 4, found
    assert found["right"] == 16 - found["error"]
    assert all("SIGKILL" in json.dumps(detail) for detail, _ in found["others"]), found
    assert first != second
    assert told["dfqs_serve_restarts_total"] == 1
    assert told["dfqs_serve_up"] == 1
    assert told["dfqs_serve_slots"] == 2
    assert told["dfqs_serve_queue_length"] == told["dfqs_serve_slots_busy"] == 0
    assert told["dfqs_serve_answered_total"] == 8 + found["right"]
    assert told["dfqs_serve_requests_total"] == 24
    assert told["llamacpp:requests_processing"] == 0

    assert (stopped["error"], later["right"], restarts) == (3, 1, 2), stopped
    assert all("was ended while serving" in detail for detail, _ in stopped["others"]), stopped
