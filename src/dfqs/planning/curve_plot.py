"""A picture of tokens a second against memory."""

from pathlib import Path

from dfqs.errors import UsageError
from dfqs.figure import Figure
from dfqs.model.files import ModelFiles
from dfqs.planning.forecast import ForecastDocument, find_experts
from dfqs.storage.atomic import atomic_writer

FORMATS = (".png", ".svg")
_BLUE, _ORANGE = "#0072b2", "#d55e00"
_DPI = 150
_NO_EXPERTS = "no experts of at least a page each"


def check_picture(model: ModelFiles, path: Path) -> None:
    """Before anything is measured for it.

    Raises:
        UsageError: there will be no curve, or the name does not end as a picture's does.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: a picture's name ends in {' or '.join(FORMATS)}")
    if not find_experts(model):
        raise UsageError(f"{model.shards[0].source}: it has {_NO_EXPERTS}, so there is no curve to draw")


def plot_curve(document: ForecastDocument, path: Path, *, overwrite: bool = False) -> None:
    """Streamed and paged, with their intervals.

    Raises:
        UsageError: the document has no curve.
    """
    curve = document.curve
    if curve is None:
        why = "the runtime does not load it" if document.unknown is not None else f"it has {_NO_EXPERTS}"
        raise UsageError(f"{document.path}: {why}, so there is no curve to draw")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    title = f"{document.model}: tokens a second against memory (computed)\nchoices: {curve.choices}"
    # Between two dollars matplotlib would read mathematics.
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    for name, color in (("streamed", _BLUE), ("paged", _ORANGE)):
        known = [(p.memory_bytes / 1e9, rate) for p in curve.points if (rate := getattr(p, name)) is not None]
        if not known:
            continue
        places = [place for place, _ in known]
        axes.plot(places, [rate.tokens_per_s for _, rate in known], "o-", color=color, ms=4, label=name)
        axes.fill_between(places, [r.low for _, r in known], [r.high for _, r in known], color=color, alpha=0.2, lw=0)
    whole = document.contexts[-1].decode
    axes.axhline(whole.tokens_per_s, color="#7f7f7f", ls=":", label="all in memory")
    axes.set_xlabel("memory of the process, GB")
    axes.set_ylabel("tokens a second")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with atomic_writer(path, overwrite=overwrite) as file:
        figure.savefig(file, format=path.suffix.lower()[1:], dpi=_DPI)
