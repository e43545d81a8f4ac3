"""What docs/speed.md shows of the results: its tables and its picture."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from dfqs.figure import Figure
from dfqs.units import format_bytes
from speed.frame import Curve, Goal, exponent, median, value
from speed.results import Result

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "speed.md"
PICTURE = ROOT / "docs" / "images" / "speed.svg"
START, END = "<!-- results: written by python -m benchmarks -->\n", "<!-- end of results -->\n"


def write_page(results: Sequence[Result]) -> None:
    """Put the tables into the page, and draw the picture."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + START + render(results) + END + after, encoding="utf-8")
    draw(results)


def render(results: Sequence[Result]) -> str:
    """All tables: the goals first, then each row."""
    return "\n".join([_goals(results), *map(_row, results)])


def _goals(results: Sequence[Result]) -> str:
    lines = [
        "| job | held against | of | found | least to most, round by round | control | goal | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for goal in result.goals:
            if goal.arm in result.arms and goal.of in result.arms:
                lines.append(_goal(result, goal))
    return "\n".join(lines) + "\n"


def _goal(result: Result, goal: Goal) -> str:
    control = control_ratios(result, goal)
    verdict = "met" if is_met(result, goal) else "not met"
    job = f"| {result.title}: {goal.arm} | {goal.of} | {_MEASURES[goal.measure]}"
    if not goal.at_most:
        samples = result.samples(goal.arm)
        seconds = [value(sample, goal.measure) for sample in samples]
        found, spread = f"{median(samples, goal.measure):.2f} s", f"{min(seconds):.2f} to {max(seconds):.2f} s"
    else:
        rounds = pairs(result, goal)
        found, spread = f"{ratio(result, goal):.2f}", f"{min(rounds):.2f} to {max(rounds):.2f}"
    return f"{job} | **{found}** | {spread} | {min(control):.2f} to {max(control):.2f} | {_wanted(goal)} | {verdict} |"


def _wanted(goal: Goal) -> str:
    plus = f"{goal.plus_s:.2f} s" if goal.plus_s else ""
    return " + ".join(part for part in (f"{goal.at_most:.2f}" if goal.at_most else "", plus) if part)


_MEASURES = {"wall": "time", "cpu": "CPU time"}


def ratio(result: Result, goal: Goal) -> float:
    """Median against median."""
    return median(result.samples(goal.arm), goal.measure) / median(result.samples(goal.of), goal.measure)


def is_met(result: Result, goal: Goal) -> bool:
    theirs = median(result.samples(goal.of), goal.measure)
    return median(result.samples(goal.arm), goal.measure) <= goal.at_most * theirs + goal.plus_s


def pairs(result: Result, goal: Goal) -> list[float]:
    """The ratio in each round."""
    both = zip(result.samples(goal.arm), result.samples(goal.of), strict=True)
    return [value(one, goal.measure) / value(other, goal.measure) for one, other in both]


def control_ratios(result: Result, goal: Goal) -> list[float]:
    """The same command against itself, round by round."""
    both = zip(result.samples(f"{result.base} (control)"), result.samples(result.base), strict=True)
    return [value(one, goal.measure) / value(other, goal.measure) for one, other in both]


def _row(result: Result) -> str:
    head = f"### {result.title}\n\n"
    if result.arms:
        head += _arms(result) + "\n"
    for curve in result.curves:
        head += _curve(curve) + "\n"
    where = f"{result.machine}; load {result.load_before:.1f} before, {result.load_after:.1f} after"
    rounds = f"{result.rounds} rounds, " if result.arms else ""
    return head + f"{'. '.join((*result.conditions, ''))}{rounds}{result.date}, {where}.\n"


def _arms(result: Result) -> str:
    rate = " MB/s |" if result.work_bytes else ""
    lines = [
        f"| | seconds, median (least to most) | CPU seconds | of {result.base}: time, CPU | memory |{rate}",
        "|---|---|---|---|---|" + ("---|" if rate else ""),
    ]
    base = result.samples(result.base)
    for name, (_, samples) in result.arms.items():
        wall, cpu = median(samples, "wall"), median(samples, "cpu")
        walls, cpus = [s.wall_s for s in samples], [s.cpu_s for s in samples]
        peaks = [s.peak_bytes for s in samples if s.peak_bytes]
        line = (
            f"| {name} | {wall:.2f} ({min(walls):.2f} to {max(walls):.2f}) "
            f"| {cpu:.2f} ({min(cpus):.2f} to {max(cpus):.2f}) "
            f"| {wall / median(base, 'wall'):.2f}, {cpu / median(base, 'cpu'):.2f} "
            f"| {format_bytes(round(statistics.median(peaks))) if peaks else ''} |"
        )
        lines.append(line + (f" {result.work_bytes / wall / 1e6:,.0f} |" if result.work_bytes else ""))
    return "\n".join(lines) + "\n"


def _curve(curve: Curve) -> str:
    points = [(size, sample.cpu_s) for size, sample in curve.points]
    found = exponent(points)
    cells = " | ".join(f"{size:,.0f}" for size, _ in curve.points)
    seconds = " | ".join(f"{sample.cpu_s:.2f}" for _, sample in curve.points)
    memory = " | ".join(format_bytes(sample.peak_bytes) if sample.peak_bytes else "" for _, sample in curve.points)
    return (
        f"| {curve.name}, exponent {'-' if found is None else f'{found:.2f}'}: {curve.unit} | {cells} |\n"
        f"|---|{'---|' * len(curve.points)}\n| CPU seconds | {seconds} |\n"
        + (f"| memory | {memory} |\n" if any(sample.peak_bytes for _, sample in curve.points) else "")
    )


def draw(results: Sequence[Result], path: Path = PICTURE) -> None:
    """A bar for each goal: what was found, with its spread, and where the peer or the limit stands."""
    bars = [(r, g) for r in results for g in r.goals if g.at_most and g.arm in r.arms and g.of in r.arms][::-1]
    figure = Figure(figsize=(8, 0.42 * max(len(bars), 1) + 1), layout="constrained")
    axes = figure.subplots()
    for place, (result, goal) in enumerate(bars):
        found, spread = ratio(result, goal), pairs(result, goal)
        error = [[max(found - min(spread), 0)], [max(max(spread) - found, 0)]]
        axes.barh(place, found, color="#1f4e79" if goal.measure == "wall" else "#7f9fbf", xerr=error, ecolor="#444444")
        axes.plot([goal.at_most] * 2, [place - 0.4, place + 0.4], color="#c0392b", lw=2)
    axes.axvline(1, color="#444444", lw=1, ls=":")
    axes.set_yticks(range(len(bars)), [f"{g.arm}\n{_MEASURES[g.measure]}, of {g.of}" for _, g in bars], fontsize=7)
    axes.set_xlabel("share of what the other takes (less is better); red: the goal; lines: least to most")
    axes.set_xlim(left=0)
    figure.savefig(path, format="svg", metadata={"Date": None})
