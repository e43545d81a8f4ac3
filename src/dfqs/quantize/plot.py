"""The ladder as a picture: quality against size."""

from collections.abc import Sequence
from pathlib import Path

from dfqs.figure import Figure
from dfqs.quantize.ladder import Rung
from dfqs.storage.atomic import atomic_writer


def write_ladder_plot(rungs: Sequence[Rung], path: Path) -> None:
    """Loss against bytes, with 95 % intervals; the format follows the suffix of `path` (.svg, .png, .pdf)."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes = [rung.tensor_bytes / 1e9 for rung in rungs]
    means = [rung.summary.nll.mean for rung in rungs]
    below = [rung.summary.nll.mean - _or(rung.summary.nll.low, rung.summary.nll.mean) for rung in rungs]
    above = [_or(rung.summary.nll.high, rung.summary.nll.mean) - rung.summary.nll.mean for rung in rungs]
    axes.errorbar(sizes, means, yerr=[below, above], fmt="o-", capsize=4, color="#1f4e79", ecolor="#7f9fbf")
    # Two rungs in one place (a Q8_0 source and class Q8_0 are the same bytes) share a label.
    names: dict[tuple[float, float], list[str]] = {}
    for rung, size, mean in zip(rungs, sizes, means, strict=True):
        names.setdefault((round(size, 4), round(mean, 3)), []).append(rung.name)
    for place, here in names.items():
        axes.annotate(", ".join(here), place, textcoords="offset points", xytext=(6, 6), fontsize=9)
    floor = rungs[0].summary.floor
    if floor is not None and floor.nll_nats is not None:
        low, high = means[0] - floor.nll_nats, means[0] + floor.nll_nats
        axes.axhspan(low, high, color="#999999", alpha=0.4, lw=0, label="noise floor of the source: not resolvable")
        axes.legend(frameon=False, fontsize=8)
    tokens = rungs[0].summary.nll.tokens
    axes.set_xlabel("tensor bytes (GB)")
    axes.set_ylabel("loss (nats per token, lower is better)")
    axes.set_title(f"Quality against size: {tokens:,} tokens, bars are 95 % intervals", fontsize=11)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    with atomic_writer(path, overwrite=True) as file:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(file, format=path.suffix.removeprefix("."), metadata=metadata)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
