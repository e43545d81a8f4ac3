"""What `dfqs route trace` computes, beside the same prefill without it."""

import functools
from pathlib import Path

from dfqs.routing import load
from dfqs.routing.prompts import packaged_prompt
from dfqs.runtime import Worker
from speed import tracing
from speed.frame import Arm, Goal, Place, Row, Sample
from speed.native import model

ALL, LAST = "prefill, all logits", "prefill, last logits"


def row(place: Place) -> Row:
    """512 tokens in one batch; the look at the first 16 is counted."""
    # Ends with this process.
    worker = Worker(threads=1, env={"PYTHONPATH": str(Path(__file__).parents[2])}).__enter__()
    path = str(model())
    found = worker.call(load.tokenize, path, [packaged_prompt("first")])[0]
    tokens = found[: max(32, round(512 * place.scale))]

    def run(way: str) -> Sample:
        return Sample(*worker.call(tracing.prefill, path, tokens, way))

    run("last logits")
    ways = {ALL: "all logits", LAST: "last logits", "routing, ids": "ids", "routing, ids and scores": "ids and scores"}
    arms = tuple(
        Arm(name, "ours" if name.startswith("routing") else "limit", functools.partial(run, way))
        for name, way in ways.items()
    )
    goals = tuple(Goal(arm.name, ALL, "cpu", 1.05) for arm in arms[2:])
    conditions = ("Demonstration model, 1 thread, the wheel's library; seconds of the worker's process",)
    return Row("trace", "Tracing routing", arms, ALL, goals, conditions=conditions)
