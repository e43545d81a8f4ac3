"""Arms that take turns, and what each took.

An arm is one way to do a job: ours, a peer's, or the limit that the machine sets. In each round every arm has one
turn, and the order rotates, so that a slow minute hits all alike. The arm that others are held against runs twice a
round: what its two series differ by is what this machine cannot tell apart (the control). CPU seconds are those of the
process and all its children, which other programs disturb less than the wall clock.
"""

import atexit
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Role = Literal["ours", "peer", "limit", "control"]
Measure = Literal["wall", "cpu"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn of one arm."""

    wall_s: float
    """Until the process ended; where the row says so, until its output was on the disk."""
    cpu_s: float
    """User and system time of the process and its children."""
    peak_bytes: int | None = None
    """Largest resident set of any of its processes."""
    sync_s: float | None = None
    """Of `wall_s` or beside it: the fsync of the output afterwards."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """What else the arm counted: tokens, bytes, rates of its own."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to do a row's job."""

    name: str
    role: Role
    run: Callable[[], Sample]


@dataclass(frozen=True, slots=True)
class Goal:
    """What an arm is to take at most, as a share of what another takes."""

    arm: str
    of: str
    measure: Measure
    at_most: float
    plus_s: float = 0.0
    """Seconds on top: a process has to start. With a share of 0 these are all."""


@dataclass(frozen=True, slots=True)
class Curve:
    """What a job costs as it grows."""

    name: str
    unit: str
    """Of the size."""
    points: tuple[tuple[float, Sample], ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A job that is measured.

    Args:
        base: the arm whose second series is the control.
        work_bytes: of the job, for rates; None where a rate means nothing.
        conditions: what else the numbers depend on, for the page.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    base: str
    goals: tuple[Goal, ...]
    work_bytes: int | None = None
    conditions: tuple[str, ...] = ()
    curves: Callable[[], tuple[Curve, ...]] | None = None
    """For a row of costs against sizes, in place of arms."""


Setting = Callable[["Place"], Row]
"""Makes a row: writes its inputs, finds its peers."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where rows work, and with what."""

    scratch: Path
    peers: Mapping[str, Path]
    scale: float = 1.0
    """Size of the inputs; 1 is what docs/speed.md shows."""

    def peer(self, name: str) -> Path | None:
        """The binary of a peer; None where none is known of that name."""
        return self.peers.get(name)


DFQS = (sys.executable, "-m", "dfqs")


def command(
    words: Sequence[str | Path],
    *,
    before: Callable[[], object] | None = None,
    after: Callable[[], object] | None = None,
    sync: Path | None = None,
    until_on_disk: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Callable[[], Sample]:
    """An arm that is a process.

    Args:
        before: done before each turn, not timed.
        after: likewise; looks at the result, and takes it away.
        sync: the output, which is synced afterwards.
        until_on_disk: count the sync to the wall time.
    """
    line = [str(word) for word in words]

    def run() -> Sample:
        if before is not None:
            before()
        wall_s, cpu_s, peak_bytes = launch(line, environment or {})
        sync_s = synced_s(sync) if sync is not None else None
        if after is not None:
            after()
        return Sample(wall_s + (sync_s or 0.0 if until_on_disk else 0.0), cpu_s, peak_bytes, sync_s)

    return run


def launch(words: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and the largest resident set of a command that ends well."""
    launcher = _launcher()
    assert launcher.stdin is not None and launcher.stdout is not None
    with tempfile.NamedTemporaryFile() as errors:
        print(json.dumps([words, {**os.environ, **environment}, errors.name]), file=launcher.stdin, flush=True)
        wall_s, cpu_s, peak_bytes, code = json.loads(launcher.stdout.readline())
        if code != 0:
            raise RuntimeError(f"{words} exited with {code}: {errors.read()[-2000:].decode()}")
    return wall_s, cpu_s, peak_bytes


@functools.cache
def _launcher() -> subprocess.Popen[str]:
    script = str(Path(__file__).parent / "launch.py")
    launcher = subprocess.Popen(
        [sys.executable, "-I", "-S", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(launcher.kill)
    return launcher


def synced_s(path: Path) -> float:
    """Seconds until a file, or all files of a folder, are on the disk."""
    started = time.perf_counter()
    for each in [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]:
        handle = os.open(each, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return time.perf_counter() - started


def measure(row: Row, rounds: int, say: Callable[[str], None]) -> dict[str, list[Sample]]:
    """Every arm, once a round, in an order that rotates; the base once more, as the control."""
    arms = list(row.arms)
    base = next(arm for arm in arms if arm.name == row.base)
    arms.append(Arm(f"{base.name} (control)", "control", base.run))
    samples: dict[str, list[Sample]] = {arm.name: [] for arm in arms}
    for number in range(rounds):
        turn = number % len(arms)
        for arm in arms[turn:] + arms[:turn]:
            found = arm.run()
            samples[arm.name].append(found)
            say(f"{row.name} {number + 1}/{rounds} {arm.name}: {found.wall_s:.2f} s, {found.cpu_s:.2f} s CPU")
    return samples


def value(sample: Sample, measure_: Measure) -> float:
    return sample.wall_s if measure_ == "wall" else sample.cpu_s


def median(samples: Sequence[Sample], measure_: Measure) -> float:
    return statistics.median(value(sample, measure_) for sample in samples)


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """b of cost = a + c * size^b: the slope between the two largest sizes on logarithmic axes, of what they cost beyond
    the smallest. None where costs do not rise."""
    ordered = sorted(points)
    if len(ordered) < 3:
        return None
    least = ordered[0][1]
    (size, cost), (largest, most) = ordered[-2:]
    if not least < cost < most:
        return None
    return math.log((most - least) / (cost - least)) / math.log(largest / size)
