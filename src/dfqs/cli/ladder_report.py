"""The ladder of `dfqs quantize --ladder` for people: one table, one plot."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from dfqs.cli.output import note, out, print_json
from dfqs.quantize.bootstrap import Estimate
from dfqs.quantize.ladder import Rung, ladder_record
from dfqs.records import write_json
from dfqs.units import format_bytes


def report_ladder(rungs: Sequence[Rung], directory: Path, json_: bool) -> None:
    """Print the table, and write `ladder.json` and `ladder.svg` to `directory`."""
    write_json(directory / "ladder.json", ladder_record(rungs), overwrite=True)
    # matplotlib takes a second to load; nothing else needs it.
    importlib.import_module("dfqs.quantize.plot").write_ladder_plot(rungs, directory / "ladder.svg")
    if json_:
        print_json(ladder_record(rungs))
        return
    out.print_table(ladder_table(rungs))
    first = rungs[0].summary.nll
    note(
        f"{first.tokens:,} tokens; 95 % intervals from {first.blocks} blocks of tokens; bits a weight; step: loss "
        "minus that of the row above, paired by token, apart if its interval leaves out 0; KL from the source, at least"
    )
    note(f"wrote {directory / 'ladder.json'} and {directory / 'ladder.svg'}")


def ladder_table(rungs: Sequence[Rung]) -> Table:
    """One row a model, in the order given."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("Class", "Size", "Bits", "Perplexity", "Loss step", "Apart", "KL", "Same top"):
        table.add_column(name, justify="left" if name == "Class" else "right", no_wrap=True)
    for rung in rungs:
        summary, step = rung.summary, rung.from_previous
        table.add_row(
            rung.name,
            format_bytes(rung.tensor_bytes),
            f"{rung.bits_per_weight:.2f}",
            f"{summary.perplexity:.4g}",
            _signed(step),
            "-" if step is None else "yes" if step.excludes_zero else "no",
            "-" if summary.kl is None else f"{summary.kl.mean:.4f}",
            "-" if summary.same_top is None else f"{summary.same_top.mean:.1%}",
        )
    return table


def _signed(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:+.3f}"
    return f"{estimate.mean:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"
