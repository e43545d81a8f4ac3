"""What jobs cost as they grow: CPU seconds and memory against the size, each with its exponent."""

import functools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from speed import growing
from speed.frame import DFQS, Curve, Place, Row, Sample, command

JOBS = str(Path(__file__).parent.parent / "growing.py")
Point = Callable[[Path, int], Callable[[], Sample]]
"""Writes an input of a size into a folder, and gives the job on it."""


def row(place: Place) -> Row:
    """Each point is one run of a process of its own."""
    condition = "One run a point; the exponent is that of what costs beyond the smallest size, between the two largest"
    return Row("scale", "Growing", (), "", (), None, (condition,), functools.partial(_curves, place))


def _curves(place: Place) -> tuple[Curve, ...]:
    wanted: tuple[tuple[str, str, tuple[int, ...], Point], ...] = (
        ("merge, 3,000 tensors", "shards", (3, 30, 300, 1000, 3000), _merge_shards),
        ("merge, 2 shards", "tensors", (100, 1_000, 10_000, 30_000, 100_000), _merge_tensors),
        ("verify --hash", "tensors", (100, 1_000, 10_000, 30_000, 100_000), _verify_tensors),
        ("verify --against, 3,000 tensors", "shards", (3, 30, 300, 1000, 3000), _verify_shards),
        ("inspect", "tokens", (10_000, 130_000, 500_000, 2_000_000), _inspect_tokens),
        ("find", "files", (100, 1_000, 3_000, 10_000), _find),
        ("reading an evaluation", "items", (1_000, 10_000, 30_000, 99_000), _results),
        ("route diff", "decisions", (1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000), _traces),
    )
    return tuple(_curve(place, *each) for each in wanted)


def _curve(place: Place, name: str, unit: str, sizes: tuple[int, ...], point: Point) -> Curve:
    points = []
    for size in sizes:
        size = max(3, round(size * place.scale))
        folder = place.scratch / "point"
        folder.mkdir()
        points.append((float(size), point(folder, size)()))
        print(f"{name}: {size:,} {unit}: {points[-1][1].cpu_s:.2f} s CPU", file=sys.stderr, flush=True)
        shutil.rmtree(folder)
    return Curve(name, unit, tuple(points))


def _merge_shards(folder: Path, size: int) -> Callable[[], Sample]:
    shards = growing.write_many_shards(folder / "shards", 3000, size)
    return command([*DFQS, "merge", shards[0], "-o", folder / "out.gguf"])


def _merge_tensors(folder: Path, size: int) -> Callable[[], Sample]:
    shards = growing.write_many_shards(folder / "shards", size, 2)
    return command([*DFQS, "merge", shards[0], "-o", folder / "out.gguf"])


def _verify_tensors(folder: Path, size: int) -> Callable[[], Sample]:
    return command([*DFQS, "verify", growing.write_many_tensors(folder / "model.gguf", size), "--hash"])


def _verify_shards(folder: Path, size: int) -> Callable[[], Sample]:
    shards = growing.write_many_shards(folder / "shards", 3000, size)
    command([*DFQS, "merge", shards[0], "-o", folder / "out.gguf"])()
    return command([*DFQS, "verify", folder / "out.gguf", "--against", shards[0]])


def _inspect_tokens(folder: Path, size: int) -> Callable[[], Sample]:
    return command([*DFQS, "inspect", growing.write_many_tensors(folder / "model.gguf", 10, size)])


def _find(folder: Path, size: int) -> Callable[[], Sample]:
    return command([*DFQS, "find", growing.write_many_files(folder / "files", size)])


def _results(folder: Path, size: int) -> Callable[[], Sample]:
    return command([sys.executable, JOBS, "results", growing.write_results(folder / "results", size)])


def _traces(folder: Path, size: int) -> Callable[[], Sample]:
    return command([sys.executable, JOBS, "traces", growing.write_traces(folder / "traces", size)])
