"""The pictures of a page. Each says in its caption what it shows; the numbers stand in a table beside it too."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dfqs.figure import Figure
from dfqs.planning.document import ContextPlan, PlanDocument
from dfqs.quantize.ladder import LadderDocument
from dfqs.quantize.noise_floor import NoiseFloor
from dfqs.report.comparison import Against
from dfqs.report.depths import DepthGrid
from dfqs.report.schema import ContextDetail, Report
from dfqs.report.svg import GRID, INK, ON_DARK, ON_LIGHT, QUIET, SERIES, Plot, inline_svg
from dfqs.routing.determinism import RouteCheck
from dfqs.routing.stats import RouteStats

WIDTH = 5.4
"""Inches at 72 points: as wide as a phone's screen is, so that words can be read there."""
GB = 1e9
PARTS = {"weights": SERIES[0], "kv": SERIES[1], "state": SERIES[1], "compute": SERIES[2]}


def plot_groups(report: Report) -> Plot | None:
    """Share right in each group of both sets."""
    groups = [
        (f"{stage}: {group}", right, total)
        for stage, detail in (("reasoning", report.details.reasoning), ("code", report.details.code))
        if detail is not None
        for group, (right, total) in detail.groups.items()
        if total > 0
    ][:40]
    if not groups:
        return None
    figure, axes = _figure(0.6 + 0.26 * len(groups))
    places = range(len(groups))
    axes.barh(places, [min(1.0, right / total) for _, right, total in groups], color=SERIES[0], height=0.6)
    axes.set_yticks(places, [name[:40] for name, _, _ in groups])
    axes.invert_yaxis()
    for place, (_, right, total) in enumerate(groups):
        axes.text(min(1.0, right / total) + 0.01, place, f"{right}/{total}", va="center", color=INK, fontsize=8)
    axes.set_xlim(0, 1.12)
    axes.set_xlabel("share right")
    return inline_svg(figure, "groups", "Share right by group of questions", "Share right in each group of questions.")


def plot_curve(report: Report, context: ContextDetail) -> Plot | None:
    """Score at each length, with its interval, and where the boundary lies."""
    boundary, tokens = report.details.boundary, report.metrics.failure_boundary_tokens
    looks = [entry for entry in boundary.lengths if entry.n] if boundary is not None else []
    lengths = context.lengths_tokens
    if not lengths:
        return None
    figure, axes = _figure(3.1)
    scores = [min(1.0, right / n) for right, n in zip(context.right, context.n, strict=True)]
    bands = [band or (score, score) for band, score in zip(context.intervals_95, scores, strict=True)]
    axes.fill_between(lengths, *zip(*bands, strict=True), color=SERIES[0], alpha=0.22, lw=0, label="95 % interval")
    others = [entry for entry in looks if entry.length_tokens not in lengths]
    if others:
        shares = [min(1.0, entry.right / entry.n) for entry in others]
        axes.plot([entry.length_tokens for entry in others], shares, "D", mfc="none", color=SERIES[2], label="search")
    axes.plot(lengths, scores, "o-", color=SERIES[0], ms=5, label="score")
    likelihood = context.likelihood
    if likelihood is not None and len(likelihood.n) == len(lengths) and context.scored_by != "likelihood":
        likeliest = [min(1.0, right / n) for right, n in zip(likelihood.right, likelihood.n, strict=False)]
        axes.plot(lengths[: len(likeliest)], likeliest, "s--", color=SERIES[2], ms=4, label="likeliest of those given")
    axes.axhline(scores[0] / 2, color=QUIET, ls=":", lw=1.2, label="half of the first")
    if tokens:
        censored = boundary is not None and boundary.censored
        word = "longest tested" if censored else "failure boundary"
        axes.axvline(tokens, color=SERIES[1], ls="--" if censored else "-", lw=1.6, label=word)
    _token_axis(axes, sorted({*lengths, *([tokens] if tokens else [])}))
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("share right")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper right")
    caption = "Share of questions right at each context length. Band: 95 % interval (Wilson)."
    return inline_svg(figure, "curve", "Score against context length", caption)


def plot_depths(grid: DepthGrid) -> Plot:
    """Share right by length and depth."""
    cells = [[min(1.0, cell.right / cell.total) if cell.total else np.nan for cell in row] for row in grid.cells]
    figure, axes = _figure(1.0 + 0.34 * len(grid.lengths))
    _heatmap(
        axes, np.array(cells, float), [[f"{c.right}/{c.total}" if c.total else "" for c in row] for row in grid.cells]
    )
    axes.set_yticks(np.arange(len(grid.lengths)) + 0.5, [f"{length:,}" for length in grid.lengths])
    axes.set_xticks(np.arange(len(grid.depths)) + 0.5, grid.depths, fontsize=7)
    axes.set_xlabel("depth of the fact in the document")
    axes.set_ylabel("tokens")
    caption = "Right answers of those asked, by context length and by where in the document the fact stands."
    return inline_svg(figure, "depths", "Right answers by context length and depth", caption)


def plot_speed(report: Report) -> Plot | None:
    """Rates beside what the memory's bandwidth allows."""
    speed = report.details.speed
    if speed is None:
        return None
    bars = [("decode, empty context", speed.decode_tokens_per_s, SERIES[0])]
    if speed.depth_tokens_per_s is not None and speed.depth_tokens is not None:
        bars.append((f"behind {speed.depth_tokens:,} tokens", speed.depth_tokens_per_s, SERIES[0]))
    if speed.copy_bandwidth_bytes_per_s is not None and speed.bytes_per_token:
        bars.append(("bandwidth of copying", speed.copy_bandwidth_bytes_per_s / speed.bytes_per_token, QUIET))
    figure, axes = _figure(0.7 + 0.4 * len(bars))
    _bars(axes, bars, "tokens/s")
    low, high = speed.decode_spread
    axes.plot([low, high], [0, 0], color=SERIES[1], lw=2.5, solid_capstyle="butt")
    axes.set_xlabel("tokens a second")
    caption = (
        "Decode rate, with the range of its repeats, and the rate at which copying memory would move a token's weights."
    )
    return inline_svg(figure, "speed", "Speed against the memory's bandwidth", caption)


def plot_latency(report: Report) -> Plot | None:
    """Percentiles of one token's time."""
    speed = report.details.speed
    if speed is None:
        return None
    figure, axes = _figure(1.9)
    values = (("half of tokens (p50)", speed.latency_p50_s), ("p95", speed.latency_p95_s), ("p99", speed.latency_p99_s))
    _bars(axes, [(name, seconds * 1000, SERIES[0]) for name, seconds in values], "ms")
    axes.set_xlabel("milliseconds a token, at most")
    return inline_svg(figure, "latency", "Time of one token", "Time that a token takes: half of them, 95 % and 99 %.")


def plot_expert_load(stats: RouteStats) -> Plot:
    """Layer x expert, 1 is an equal share."""
    counts = np.array([layer.counts for layer in stats.layers], np.float64)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1) * counts.shape[1]
    figure, axes = _figure(3.4)
    image = axes.imshow(
        share, aspect="auto", cmap="cividis", vmin=0, vmax=max(2.0, float(np.quantile(share, 0.995))),
        interpolation="nearest", origin="lower",
    )  # fmt: skip
    bar = figure.colorbar(image, ax=axes, extend="max")
    bar.set_label("load, times an equal share", color=INK)
    bar.ax.tick_params(colors=INK)
    bar.outline.set_edgecolor(GRID)
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    step = max(1, len(stats.layers) // 12)
    axes.set_yticks(range(0, len(stats.layers), step), [str(layer.layer) for layer in stats.layers[::step]])
    caption = f"How often each expert was chosen in {stats.tokens:,} tokens; 1 is an equal share."
    return inline_svg(figure, "experts", "Expert load by layer", caption)


def plot_determinism(check: RouteCheck) -> Plot | None:
    """Same set of experts, by condition and layer."""
    rows = [row for row in check.matrix if row.same_set_share_by_layer]
    if not rows:
        return None
    table = np.array([[np.nan if s is None else s for s in row.same_set_share_by_layer] for row in rows], float)
    figure, axes = _figure(0.9 + 0.22 * len(rows))
    image = axes.imshow(table, aspect="auto", cmap="cividis", vmin=min(0.9, float(np.nanmin(table))), vmax=1.0)
    bar = figure.colorbar(image, ax=axes)
    bar.ax.tick_params(colors=INK)
    bar.outline.set_edgecolor(GRID)
    axes.set_yticks(range(len(rows)), [row.condition[:30] for row in rows], fontsize=8)
    step = max(1, len(check.layers) // 12)
    axes.set_xticks(range(0, len(check.layers), step), [str(layer) for layer in check.layers[::step]])
    axes.set_xlabel("layer")
    caption = "Share of tokens that choose the same experts as the reference run; 1 is all of them."
    return inline_svg(figure, "determinism", "Routing under other conditions, by layer", caption)


def plot_memory(plan: PlanDocument, contexts: Sequence[ContextPlan]) -> Plot | None:
    """What each context takes, and what there is."""
    known = [context for context in contexts if context.total_bytes is not None][:12]
    if not known:
        return None
    figure, axes = _figure(1.2 + 0.34 * len(known))
    seen: set[str] = set()
    for place, context in enumerate(known):
        left = 0.0
        for part in context.parts:
            label = part.kind if part.kind not in seen else None
            seen.add(part.kind)
            axes.barh(place, part.bytes / GB, left=left, color=PARTS.get(part.kind, QUIET), height=0.6, label=label)
            left += part.bytes / GB
    for bytes_, word, style in _limits(plan):
        axes.axvline(bytes_ / GB, color=SERIES[1], ls=style, lw=1.4, label=word)
    axes.set_yticks(range(len(known)), [f"{context.context_tokens:,} ({context.profile})" for context in known])
    axes.invert_yaxis()
    axes.set_xlabel("GB of memory")
    axes.set_ylabel("context, tokens")
    axes.legend(frameon=False, fontsize=7, labelcolor=INK, ncols=3, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    caption = "Memory by context length with all weights in memory, as the runtime computes it."
    return inline_svg(figure, "memory", "Memory plan against what there is", caption)


def _limits(plan: PlanDocument) -> list[tuple[float, str, str]]:
    """Lines that lie near what is needed; a line far away would make the rest unreadable."""
    most = max((context.total_bytes or 0) for context in plan.contexts) if plan.contexts else 0
    envelope = [
        (row.given_bytes, f"{row.level} of the specification", ":") for row in plan.envelope if row.component == "RAM"
    ]
    lines = [(plan.memory_bytes, f"memory {plan.memory_of}", "--"), *envelope]
    return [line for line in lines if line[0] <= 6 * most]


def plot_floor(floor: NoiseFloor) -> Plot | None:
    """The divergence of a model from itself, with intervals."""
    known = [(other.numerics.partition(",")[0], other.kl) for other in floor.others if other.kl is not None]
    if not known:
        return None
    figure, axes = _figure(0.5 * len(known) + 0.8)
    means = [estimate.mean for _, estimate in known]
    below = [max(0.0, e.mean - (e.mean if e.low is None else e.low)) for _, e in known]
    above = [max(0.0, (e.mean if e.high is None else e.high) - e.mean) for _, e in known]
    places = range(len(known))
    axes.errorbar(means, places, xerr=[below, above], fmt="o", capsize=4, color=SERIES[0], ecolor=SERIES[0])
    axes.set_yticks(places, [name for name, _ in known])
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("divergence from itself, nats a token")
    caption = "How far the file is from itself under other numerics; bars: 95 %. What is no more is not resolvable."
    return inline_svg(figure, "floor", "Noise floor", caption)


def plot_ladder(ladder: LadderDocument, noise_floor_nats: float | None) -> Plot | None:
    """Divergence from the source against size, and the noise floor."""
    rungs = [rung for rung in ladder.rungs if rung.summary.kl is not None][:20]
    if not rungs:
        return None
    figure, axes = _figure(3.1)
    sizes = [rung.tensor_bytes / GB for rung in rungs]
    estimates = [rung.summary.kl for rung in rungs]
    means = [estimate.mean for estimate in estimates if estimate is not None]
    below = [max(0.0, e.mean - (e.mean if e.low is None else e.low)) for e in estimates if e is not None]
    above = [max(0.0, (e.mean if e.high is None else e.high) - e.mean) for e in estimates if e is not None]
    axes.errorbar(sizes, means, yerr=[below, above], fmt="o", capsize=4, color=SERIES[0], ecolor=SERIES[0])
    for rung, size, mean in zip(rungs, sizes, means, strict=True):
        axes.annotate(rung.name[:30], (size, mean), textcoords="offset points", xytext=(6, 5), fontsize=8, color=INK)
    if noise_floor_nats is not None:
        axes.axhspan(0, noise_floor_nats, color=QUIET, alpha=0.3, lw=0, label="noise floor: not resolvable")
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    axes.set_xlabel("GB of tensors")
    axes.set_ylabel("divergence, nats a token")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.2)
    return inline_svg(figure, "ladder", "Quality against size", "Divergence from the source by size; bars: 95 %.")


def _figure(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, max(1.2, height)), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_edgecolor(QUIET)
    axes.tick_params(colors=INK, labelcolor=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def _bars(axes: Any, bars: Sequence[tuple[str, float, str]], unit: str) -> None:
    places = range(len(bars))
    axes.barh(places, [value for _, value, _ in bars], color=[color for *_, color in bars], height=0.55)
    axes.set_yticks(places, [name for name, _, _ in bars])
    axes.invert_yaxis()
    most = max((value for _, value, _ in bars), default=1.0) or 1.0
    for place, (_, value, _) in enumerate(bars):
        axes.text(value + most * 0.01, place, f"{value:,.1f} {unit}", va="center", color=INK, fontsize=8)
    axes.set_xlim(0, most * 1.3)


def _token_axis(axes: Any, lengths: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=45, ha="right", fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("context, tokens")


def _heatmap(axes: Any, values: Any, words: Sequence[Sequence[str]]) -> None:
    axes.pcolormesh(values, cmap="cividis", vmin=0, vmax=1, edgecolors="none")
    for y, row in enumerate(words):
        for x, word in enumerate(row):
            color = ON_LIGHT if values[y, x] > 0.55 else ON_DARK
            axes.text(x + 0.5, y + 0.5, word, ha="center", va="center", fontsize=7, color=color)
    axes.invert_yaxis()


def plot_differences(against: Against, name: str) -> Plot | None:
    """Difference of every score with its interval; 0 is none."""
    known = [
        (measure, *measure.interval)
        for measure in against.measures
        if measure.difference is not None
        and measure.interval is not None
        and measure.n
        and abs(measure.difference) <= 1
    ][:30]
    if not known:
        return None
    figure, axes = _figure(0.9 + 0.32 * len(known))
    for place, (measure, low, high) in enumerate(known):
        axes.plot([low, high], [place, place], color=SERIES[0], lw=2.2, solid_capstyle="butt")
        axes.plot([measure.difference], [place], "o", color=SERIES[0], ms=6)
    axes.axvline(0, color=QUIET, ls="--", lw=1.2)
    axes.set_yticks(range(len(known)), [measure.name[:34] for measure, *_ in known])
    axes.invert_yaxis()
    axes.margins(y=0.2)
    axes.set_xlabel("other less reference (speed: share)")
    caption = "Differences with 95 % intervals (speed: range of repeats). Right of the line the other is better."
    return inline_svg(figure, name, "Differences with intervals", caption)
