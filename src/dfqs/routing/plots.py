"""Pictures of routing, as PNG or SVG by the file's name."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfqs.errors import UsageError
from dfqs.figure import Figure
from dfqs.routing.coherence import RouteDiff
from dfqs.routing.identity import ModelIdentity
from dfqs.routing.margins import QUANTILES
from dfqs.storage.atomic import atomic_writer

if TYPE_CHECKING:
    from dfqs.routing.forecast import MarginReport
    from dfqs.routing.pressure import PressureReport
    from dfqs.routing.stats import RouteStats

FORMATS = (".png", ".svg")
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#7f7f7f"
_DPI = 150


def plot_load(stats: "RouteStats", path: Path, *, overwrite: bool = False) -> None:
    """Layer x expert heatmap of load: 1 is an equal share."""
    counts = np.array([layer.counts for layer in stats.layers], np.float64)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1) * counts.shape[1]
    figure, axes = _figure(f"Expert load, {_title(stats.model)}, {stats.tokens:,} tokens", width=9)
    # White is an equal share, whatever the extremes are.
    limit = max(2.0, float(np.quantile(share, 0.995)))
    image = axes.imshow(
        share, aspect="auto", cmap="PuOr_r", vmin=2 - limit, vmax=limit, interpolation="nearest", origin="lower"
    )
    bar = figure.colorbar(image, ax=axes, extend="max")
    bar.set_label("load, as a multiple of an equal share")
    bar.ax.set_ylim(0, limit)
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    _label_rows(axes, [layer.layer for layer in stats.layers])
    if counts.shape[1] <= 32:
        axes.set_xticks(range(counts.shape[1]))
    _save(figure, path, overwrite)


def plot_agreement_by_layer(diff: RouteDiff, path: Path, *, overwrite: bool = False) -> None:
    """Jaccard, same first expert and their chance, by layer."""
    layers = [row.layer for row in diff.by_layer]
    figure, axes = _figure(_pair_title(diff, "Routing agreement by layer"))
    axes.plot(layers, [row.jaccard for row in diff.by_layer], "o-", color=_BLUE, label="experts (Jaccard)", ms=4)
    axes.plot(layers, [row.top1 for row in diff.by_layer], "s-", color=_ORANGE, label="first expert", ms=4)
    _plot_known(axes, layers, [row.chance_jaccard for row in diff.by_layer], _BLUE, "chance, experts")
    _plot_known(axes, layers, [row.chance_top1 for row in diff.by_layer], _ORANGE, "chance, first expert")
    for layer in diff.hash_layers:
        axes.axvspan(layer - 0.5, layer + 0.5, color=_GREY, alpha=0.2, lw=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("layer" + (" (grey: hash-routed)" if diff.hash_layers else ""))
    _agreement_axis(axes)
    _save(figure, path, overwrite)


def plot_agreement_by_context(diff: RouteDiff, path: Path, *, overwrite: bool = False) -> None:
    """The same by position in the prompt, over the layers that are not hash-routed."""
    positions = [row.start for row in diff.by_context]
    names = [f"{row.start:,}-{row.stop - 1:,}" for row in diff.by_context]
    figure, axes = _figure(_pair_title(diff, "Routing agreement by context"))
    places = list(range(len(positions)))
    axes.plot(places, [row.jaccard for row in diff.by_context], "o-", color=_BLUE, label="experts (Jaccard)")
    axes.plot(places, [row.top1 for row in diff.by_context], "s-", color=_ORANGE, label="first expert")
    _plot_known(axes, places, [row.chance_jaccard for row in diff.by_context], _BLUE, "chance, experts")
    _plot_known(axes, places, [row.chance_top1 for row in diff.by_context], _ORANGE, "chance, first expert")
    axes.set_xticks(places, names, rotation=30, ha="right")
    axes.set_xlabel("position in the prompt, tokens")
    _agreement_axis(axes)
    _save(figure, path, overwrite)


def plot_margins(report: "MarginReport", path: Path, *, overwrite: bool = False) -> None:
    """Histogram of router margins over all layers and tokens, and each layer's spread below."""
    figure, axes = _figure(f"Router margins, {_title(report.model)}, {report.tokens:,} tokens", rows=2)
    top, bottom = axes
    top.stairs(report.histogram, report.histogram_edges, fill=True, color=_BLUE)
    top.set_xscale("log")
    top.set_xlabel("margin: score of the last expert chosen less that of the first left out")
    top.set_ylabel("layers x tokens")
    layers = [row.layer for row in report.margins]
    table = np.array([row.quantiles for row in report.margins])
    low, middle, high = (table[:, QUANTILES.index(q)] for q in (0.1, 0.5, 0.9))
    bottom.fill_between(layers, low, high, color=_BLUE, alpha=0.25, lw=0, label="10 to 90 % of tokens")
    bottom.plot(layers, middle, "o-", color=_BLUE, ms=4, label="median")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    bottom.set_xlabel("layer")
    bottom.set_ylabel("margin")
    bottom.set_ylim(bottom=0)
    bottom.legend(frameon=False)
    _save(figure, path, overwrite)


def plot_pressure(report: "PressureReport", path: Path, *, overwrite: bool = False) -> None:
    """Agreement of the probe's routing, and the router's entropy, against the length of the document before it."""
    lengths = [point.context_tokens for point in report.points]
    figure, axes = _figure(f"Routing behind a growing document, {_title(report.model)}", rows=2)
    top, bottom = axes
    change = ", ".join(f"{key} {value}" for key, value in report.perturbed.items())
    top.plot(lengths, [p.same_set_share for p in report.points], "o-", color=_BLUE, label=f"with {change}")
    drift = [p.drift_same_set_share for p in report.points]
    top.plot(lengths, drift, "s-", color=_ORANGE, label="against the shortest document")
    top.set_ylim(0, 1.03)
    top.set_ylabel("same set of experts")
    bottom.plot(lengths, [p.load_bits for p in report.points], "o-", color=_BLUE, label="load of the probe")
    bottom.plot(lengths, [p.router_bits for p in report.points], "s-", color=_ORANGE, label="router, one token")
    bottom.set_ylabel("entropy, bits")
    # From nothing to a balanced load, or differences of a hundredth of a bit would look large.
    bottom.set_ylim(0, 1.05 * float(np.log2(report.model.experts)))
    bottom.set_xlabel("document before the probe, tokens")
    for one in axes:
        one.set_xscale("log", base=2)
        one.set_xticks(lengths, [f"{length:,}" for length in lengths])
        one.minorticks_off()
        one.grid(axis="y", alpha=0.3)
        one.legend(frameon=False, loc="lower left")
    _save(figure, path, overwrite)


def _figure(title: str, *, width: float = 8, rows: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, 4.5 * rows**0.6), layout="constrained")
    axes = figure.subplots(rows)
    figure.suptitle(title, fontsize=10)
    for one in np.atleast_1d(axes):
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _agreement_axis(axes: Any) -> None:
    axes.set_ylim(0, 1.03)
    axes.set_ylabel("agreement (1 = the same)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _plot_known(axes: Any, places: Sequence[int], values: Sequence[float | None], color: str, label: str) -> None:
    known = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), ":", color=color, label=label)


def _label_rows(axes: Any, layers: Sequence[int]) -> None:
    step = max(1, len(layers) // 12)
    axes.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])


def _title(model: ModelIdentity) -> str:
    return f"{model.name or model.architecture} ({', '.join(model.expert_types)})"


def _pair_title(diff: RouteDiff, what: str) -> str:
    return f"{what}\n{_title(diff.other.model)} against {_title(diff.reference.model)}, {diff.tokens:,} tokens"


def _save(figure: Figure, path: Path, overwrite: bool) -> None:
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: a picture's name ends in {' or '.join(FORMATS)}")
    with atomic_writer(path, overwrite=overwrite) as file:
        figure.savefig(file, format=path.suffix.lower()[1:], dpi=_DPI)
