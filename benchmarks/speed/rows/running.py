"""Prefill and decode as `dfqs eval` measures them, beside llama-bench on the same library."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speed.frame import Arm, Goal, Place, Row, Sample, command
from speed.native import CONDITIONS, THREADS, model, same_library, told

SCRIPT = Path(__file__).parent.parent / "decoding.py"
TOKENS = {"prefill": 512, "decode": 64}


def row(place: Place) -> Row:
    """Time of the work alone, the model loaded and warm."""
    peer = place.peer("llama-bench")
    arms: list[Arm] = []
    goals: list[Goal] = []
    for what, full in TOKENS.items():
        tokens = max(16, round(full * place.scale))
        line: list[str | Path] = [sys.executable, SCRIPT, model(), str(tokens), THREADS, what]
        environment = same_library(place, "llama-bench")
        arms.append(Arm(f"dfqs {what}", "ours", told(line, _ours, environment)))
        if peer is not None:
            counts = {"prefill": ("-p", str(tokens), "-n", "0"), "decode": ("-p", "0", "-n", str(tokens))}[what]
            other: list[str | Path] = [peer, "-m", model(), *counts, "-t", THREADS, "-r"]
            arms.append(Arm(f"llama-bench {what}", "peer", _one_of(command([*other, "1"]), command([*other, "4"]))))
            # 0.98 of the rate.
            goals.append(Goal(f"dfqs {what}", f"llama-bench {what}", "cpu", 1 / 0.98))
    return Row("running", "Prefill and decode", tuple(arms), arms[-1].name, tuple(goals), conditions=CONDITIONS)


def _ours(found: Any) -> Sample:
    return Sample(found["wall_s"], found["cpu_s"])


def _one_of(one: Callable[[], Sample], four: Callable[[], Sample]) -> Callable[[], Sample]:
    """One repetition: the tool tells no CPU time, and what it takes besides is the same in both."""

    def run() -> Sample:
        few, more = one(), four()
        return Sample((more.wall_s - few.wall_s) / 3, (more.cpu_s - few.cpu_s) / 3)

    return run
