"""Likelihoods of right answers along a ladder of one model's classes: does each rung fall, by more than its own floor?

    benchmarks/ladder_likelihood.py WORK MODEL... [--items 24] [--seconds 240]

Scores the first `--items` questions of each reasoning set (`dfqs.evaluate.preference`) with every model, under the
numerics of an evaluation and with flash attention, and keeps each answer in WORK/answers.json; the same command goes on
after `--seconds`. At the end: a row a model, with the paired difference from the row above (bootstrap over items), and
how far each is from itself.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from dfqs.evaluate.conditions import Numerics
from dfqs.evaluate.local import LocalAnswerer
from dfqs.evaluate.preference import preference_items
from dfqs.evaluate.statistics import Count, wilson_interval
from dfqs.quantize.bootstrap import Estimate, estimate_difference, estimate_mean
from dfqs.quantize.noise_floor import Resolution, far_end, resolve

NUMERICS = {"own": Numerics(), "flash attention on": Numerics(flash_attention="on")}
Answers = dict[str, dict[str, list[float]]]
"""`model/numerics` -> item -> log-likelihoods, the right answer's first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=240)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    kept = arguments.work / "answers.json"
    answers: Answers = json.loads(kept.read_text()) if kept.exists() else {}
    try:
        done = measure(arguments.models, arguments.items, time.monotonic() + arguments.seconds, answers)
    finally:
        kept.write_text(json.dumps(answers))
    if not done:
        print(f"{sum(map(len, answers.values()))} answers kept in {kept}; the same command goes on")
        return
    for line in table(arguments.models, answers):
        print(line)


def measure(models: list[Path], count: int, until: float, answers: Answers) -> bool:
    """Score what is missing; False: there was no time for all of it."""
    asked = preference_items(count)
    for model in models:
        wanted = {f"{model.name}/{name}": numerics for name, numerics in NUMERICS.items()}
        if all(len(answers.get(key, {})) >= len(asked) for key in wanted):
            continue
        with LocalAnswerer(model, max_context=1024) as answerer:
            for key, numerics in wanted.items():
                found = answers.setdefault(key, {})
                for set_, item, given in asked:
                    if item.id in found:
                        continue
                    if time.monotonic() > until:
                        return False
                    _, likelihood = answerer.prefer(set_.prompt(item), given, numerics)
                    assert likelihood is not None, f"{model} gives no numbers"
                    found[item.id] = list(likelihood.logprobs)
    return True


def table(models: list[Path], answers: Answers) -> list[str]:
    """Markdown."""
    lines = [
        "| model | preferred | right answer, nats | minus the row above | margin, nats | minus the row above | itself |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    previous: tuple[np.ndarray, np.ndarray] | None = None
    floors = [0.0, 0.0]
    names = sorted(set.intersection(*(set(answers[f"{m.name}/{name}"]) for m in models for name in NUMERICS)))
    for model in models:
        own, other = (answers[f"{model.name}/{name}"] for name in NUMERICS)
        gold, margin = _columns(own, names)
        itself = [estimate_difference(b, a, 1) for a, b in zip((gold, margin), _columns(other, names), strict=True)]
        before, floors = floors, [far_end(each) for each in itself]
        steps = ["", ""]
        if previous is not None:
            bounds = [max(pair) for pair in zip(before, floors, strict=True)]
            steps = [
                _step(estimate_difference(now, then, 1), bound)
                for now, then, bound in zip((gold, margin), previous, bounds, strict=True)
            ]
        right = Count(int((margin > 0).sum()), len(margin))
        interval = wilson_interval(right)
        assert interval is not None
        shares = f"{right.right}/{right.total} ({interval[0]:.2f} to {interval[1]:.2f})"
        means = [_shown(estimate_mean(column, 1)) for column in (gold, margin)]
        lines.append(
            f"| {model.stem} | {shares} | {means[0]} | {steps[0]} | {means[1]} | {steps[1]} | "
            f"{_shown(itself[0])}; margin {_shown(itself[1])} |"
        )
        previous = gold, margin
    return lines


def _columns(found: dict[str, list[float]], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    rows = [found[name] for name in names]
    return np.array([row[0] for row in rows]), np.array([row[0] - max(row[1:]) for row in rows])


def _step(estimate: Estimate, bound: float) -> str:
    return _shown(estimate) + (", not resolvable" if resolve(estimate, bound) is Resolution.NOT_RESOLVABLE else "")


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:+.2f} ({estimate.low:+.2f} to {estimate.high:+.2f})"


if __name__ == "__main__":
    main()
