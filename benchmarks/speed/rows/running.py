"""Prefill and decode as `dfqs eval` measures them, beside llama-bench on the same library."""

import sys
from pathlib import Path
from typing import Any

from speed.frame import Arm, Goal, Place, Row, Sample
from speed.native import CONDITIONS, THREADS, model, same_library, told

SCRIPT = Path(__file__).parent.parent / "decoding.py"
TOKENS = {"prefill": 512, "decode": 64}


def row(place: Place) -> Row:
    """Wall time of the work alone, the model loaded and warm."""
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
            other: list[str | Path] = [peer, "-m", model(), *counts, "-t", THREADS, "-r", "3", "-o", "json"]
            arms.append(Arm(f"llama-bench {what}", "peer", told(other, _theirs)))
            # 0.98 of the rate.
            goals.append(Goal(f"dfqs {what}", f"llama-bench {what}", "wall", 1 / 0.98))
    return Row("running", "Prefill and decode", tuple(arms), arms[-1].name, tuple(goals), conditions=CONDITIONS)


def _ours(found: Any) -> Sample:
    return Sample(found["wall_s"], found["cpu_s"])


def _theirs(found: Any) -> Sample:
    seconds = found[0]["avg_ns"] / 1e9
    return Sample(seconds, seconds)
