"""What `dfqs tune` finds, against llama.cpp's defaults and against the best of a full grid, measured side by side.

Run: python benchmarks/tune.py find MODEL OUT.json [--budget 120] [--busy]
     python benchmarks/tune.py grid MODEL OUT.json                      (a quick look at every combination)
     python benchmarks/tune.py compare MODEL OUT.json [--pairs 8] [--busy]

The three steps leave what they found in OUT.json, so that each fits into a short quiet time; pairs of a further
`compare` come to those before. `--busy`: beside a process that keeps one core busy. `compare` measures the defaults,
what tune found, and (without `--busy`) the grid's best four, in rounds with another order each time, the defaults
twice: the second is the control.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dfqs.hardware import read_machine
from dfqs.model.files import open_model
from dfqs.planning.halving import Ratio, Timing, compare, mean_ratio
from dfqs.planning.search import timing_of
from dfqs.planning.settings import RunSettings, default_settings
from dfqs.planning.trials import Workload, run_trials
from dfqs.planning.tune import REQUEST, TuneJob, tune
from dfqs.planning.tuning import describe_settings

QUICK = Workload(128, 16)
FINALISTS = 4


def grid() -> list[RunSettings]:
    """Every combination of what tune looks at, but for caches, whose quality is another matter."""
    defaults = default_settings()
    policies = ("default", "bounded", "active", "passive")
    memory = [("auto", False), ("auto", True), ("none", False), ("none", True)]
    threads = sorted({defaults.threads, max(1, defaults.threads // 2)})
    return [
        defaults.but(
            omp_wait_policy=policy,
            load_mode=mode,
            huge_pages=huge,
            repack=repack,
            threads=count,
            threads_batch=count,
            flash_attention=flash,
            n_ubatch=ubatch,
        )
        for policy, (mode, huge), repack, count, flash, ubatch in itertools.product(
            policies, memory, (True, False), threads, ("auto", "off"), (64, 512)
        )
    ]


@contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """A process that does nothing, as fast as it can."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def find(path: Path, notes: dict[str, Any], budget_s: float, busy: bool) -> None:
    with busy_core(busy):
        tuning = tune(TuneJob(open_model(path), read_machine(), budget_s=budget_s))
    notes["busy" if busy else "idle"] = tuning.model_dump(mode="json")
    notes.pop("rounds " + ("busy" if busy else "idle"), None)
    print(describe_settings(tuning.settings, tuning.defaults), tuning.gain, f"{tuning.spent_s:.0f} s")
    for one in tuning.tried:
        print(f"  {one.stage}: {', '.join(one.changes)}: {one.gain.mean:.3f} x, {one.gain.pairs} pairs {one.chosen}")
    print("\n".join(tuning.notes))


def look_at_grid(path: Path, notes: dict[str, Any]) -> None:
    trials = run_trials(path, grid(), QUICK)
    trials.sort(key=lambda trial: timing_of(trial).total_s)
    notes["grid"] = [[trial.settings.model_dump(), timing_of(trial).total_s] for trial in trials]
    for trial in trials[:8]:
        print(f"{timing_of(trial).total_s:.3f} s  {describe_settings(trial.settings, default_settings())}")


def compare_all(path: Path, notes: dict[str, Any], out: Path, pairs: int, busy: bool) -> None:
    defaults = default_settings()
    tuned = RunSettings.model_validate(notes["busy" if busy else "idle"]["settings"])
    found_with = notes["busy" if busy else "idle"]
    # Beside a busy core the defaults may take minutes over a long request.
    request = Workload(found_with["prompt_tokens"], found_with["answer_tokens"]) if busy else REQUEST
    runners = [] if busy else [RunSettings.model_validate(one) for one, _ in notes["grid"][:FINALISTS]]
    names = {"defaults": defaults, "defaults (control)": defaults, "tuned": tuned}
    names |= {f"grid {number + 1}": one for number, one in enumerate(runners)}
    # Rounds add up over calls, for what is found is kept and settings are the same.
    kept = notes.setdefault("rounds " + ("busy" if busy else "idle"), {})
    times = {name: [Timing(**one) for one in kept.get(name, [])] for name in names}
    with busy_core(busy):
        for number in range(len(times["defaults"]), len(times["defaults"]) + pairs):
            order = list(names)
            turned = order[number % len(order) :] + order[: number % len(order)]
            for name in turned:
                trials = run_trials(path, [names[name]], request)
                times[name].append(timing_of(trials[0]))
            kept |= {name: [asdict(one) for one in found] for name, found in times.items()}
            # Beside a busy core a round takes a minute: none is lost.
            out.write_text(json.dumps(notes, indent=1))
    report(names, times, defaults)
    found = {name: asdict(ratio(times[name], times["defaults"])) for name in names}
    notes["compared " + ("busy" if busy else "idle")] = found
    if runners:
        best = min((f"grid {number + 1}" for number in range(len(runners))), key=lambda name: found[name]["mean"])
        print(f"tuned against the grid's best ({best}): {ratio(times[best], times['tuned']).mean:.3f} of its speed")


def ratio(times: list[Timing], base: list[Timing]) -> Ratio:
    return mean_ratio([mine.total_s / theirs.total_s for mine, theirs in zip(times, base, strict=True)])


def report(names: dict[str, RunSettings], times: dict[str, list[Timing]], defaults: RunSettings) -> None:
    print("| | request | prompt | answer | 95 % of the request | settings |\n|---|---|---|---|---|---|")
    for name, settings in names.items():
        result = compare(settings, list(zip(times[name], times["defaults"], strict=True)))
        total = result.total.inverse
        low, high = total.low or 0, total.high or 0
        print(
            f"| {name} | {total.mean:.3f} x | {result.prompt.inverse.mean:.3f} x | {result.answer.inverse.mean:.3f} x "
            f"| {low:.3f} to {high:.3f} | {describe_settings(settings, defaults)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("find", "grid", "compare"))
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=float, default=120)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--busy", action="store_true")
    asked = parser.parse_args()
    notes: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    if asked.step == "find":
        find(asked.model, notes, asked.budget, asked.busy)
    elif asked.step == "grid":
        look_at_grid(asked.model, notes)
    else:
        compare_all(asked.model, notes, asked.out, asked.pairs, asked.busy)
    asked.out.write_text(json.dumps(notes, indent=1))


if __name__ == "__main__":
    main()
