"""`dfqs ladder`: several classes of one model side by side, in one table and one plot."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.documents.quantize import LadderPlan, QuantizeDocument
from dfqs.cli.drawing import progress_bar
from dfqs.cli.loading import Checking
from dfqs.cli.options import (
    AllowRequantize,
    Check,
    DryRun,
    Force,
    Imatrix,
    Json,
    Memory,
    Model,
    NoiseFloorTokens,
    Overwrite,
    Ram,
    Restart,
    Threads,
)
from dfqs.cli.output import column_table, emit, note, out, print_text
from dfqs.cli.perplexity import text_of
from dfqs.cli.quantize import warn_of_idle_exceptions
from dfqs.cli.tables import Table
from dfqs.model.files import ModelFiles
from dfqs.quantize.bootstrap import Estimate
from dfqs.quantize.checks import check_experts, check_imatrix, check_input_types
from dfqs.quantize.ladder import LadderDocument, Rung, measure_ladder
from dfqs.quantize.noise_floor import FLOOR_TOKENS, Resolution
from dfqs.quantize.plan import QuantizationPlan
from dfqs.quantize.source import class_for, plan_source, read_source
from dfqs.records import write_json
from dfqs.units import format_bytes, parse_size


def command(
    source: Model,
    directory: Annotated[Path, typer.Argument(help="Where the models, the table and the plot go.", show_default=False)],
    classes: Annotated[
        str, typer.Option("--classes", "-c", help="Classes as `dfqs quantize` has them: C1,C2,...", show_default=False)
    ],
    imatrix: Imatrix = None,
    text: Annotated[
        Path | None, typer.Option(help="Text (UTF-8) to measure on; a held-out mix that dfqs ships by default.")
    ] = None,
    noise_floor: NoiseFloorTokens = None,
    memory: Memory = "2G",
    threads: Threads = None,
    ram: Ram = None,
    force: Force = False,
    check: Check = None,
    allow_requantize: AllowRequantize = False,
    overwrite: Overwrite = False,
    restart: Restart = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Make several classes of a model, and measure each on held-out text against the source: what it costs in bytes,
    and what in quality. What was made and measured already is not done again: the same command goes on after a kill.

    Example: dfqs ladder model-f16.gguf ladder/ --classes Q8_0,Q4_K-XL,IQ1_S-XL --imatrix model.imatrix.gguf
    """
    read = read_source(source)
    chosen = [class_for(name.strip(), read, has_imatrix=imatrix is not None) for name in classes.split(",")]
    plans = [plan_source(read, entry) for entry in chosen]
    if dry_run:
        planned = LadderPlan(rungs=tuple(QuantizeDocument.of(plan, None, None) for plan in plans))
        emit(planned, json_, lambda: print_text("\n".join(f"{p.class_.name}: {format_bytes(p.bytes)}" for p in plans)))
        return
    _check(read, plans, imatrix, allow_requantize)
    try:
        with progress_bar("measuring the ladder", "models") as progress:
            rungs = measure_ladder(
                source,
                directory,
                chosen,
                text_of(text),
                imatrix=imatrix,
                floor_tokens=FLOOR_TOKENS if noise_floor is None else noise_floor,
                memory_bytes=parse_size(memory),
                threads=threads,
                allow_requantize=allow_requantize,
                overwrite=overwrite,
                restart=restart,
                ram=ram,
                force=force,
                settle=Checking(check).settled,
                progress=progress,
            )
    except KeyboardInterrupt:
        note("what was made and measured is kept; the same command goes on from there")
        raise
    _report(rungs, directory, json_)


def _check(read: ModelFiles, plans: Sequence[QuantizationPlan], imatrix: Path | None, allow_requantize: bool) -> None:
    """What `quantize` would refuse of any rung, before the first is made."""
    for plan in plans:
        check_experts(read, plan.class_)
        check_imatrix(plan, read, imatrix)
        check_input_types(plan, allow_requantize)
        warn_of_idle_exceptions(plan)


def _report(rungs: Sequence[Rung], directory: Path, json_: bool) -> None:
    """Print the table, and write `ladder.json` and `ladder.svg`."""
    found = LadderDocument.of(rungs)
    write_json(directory / "ladder.json", found, overwrite=True)
    # matplotlib takes a second to load; nothing else needs it.
    importlib.import_module("dfqs.quantize.plot").write_ladder_plot(rungs, directory / "ladder.svg")

    def show() -> None:
        out.print_table(ladder_table(rungs))
        first = rungs[0].summary.nll
        note(
            f"{first.tokens:,} tokens; 95 % intervals from {first.blocks} blocks of tokens; bits a weight; step: loss "
            "minus that of the row above, paired by token, apart if its interval leaves out 0; KL from the source, at "
            "least"
        )
        floor = rungs[0].summary.floor
        if floor is not None:
            note(
                f"own KL: how far a model is at most from itself under other numerics, on {floor.tokens:,} tokens (far "
                "ends of intervals); what is no more than that is not resolvable"
            )
        note(f"wrote {directory / 'ladder.json'} and {directory / 'ladder.svg'}")

    emit(found, json_, show)


def ladder_table(rungs: Sequence[Rung]) -> Table:
    """One row a model, in the order given."""
    columns = ("Class", "Size", "Bits", "Perplexity", "Loss step", "Apart", "KL", "Own KL", "Same top")
    table = column_table(*columns, words=columns[:1])
    for rung in rungs:
        summary, floor = rung.summary, rung.summary.floor
        table.add_row(
            rung.name,
            format_bytes(rung.tensor_bytes),
            f"{rung.bits_per_weight:.2f}",
            f"{summary.perplexity:.4g}",
            _signed(rung.from_previous),
            _apart(rung),
            "-" if summary.kl is None else f"{summary.kl.mean:.4f}{_mark(rung)}",
            "-" if floor is None or floor.kl_nats is None else f"{floor.kl_nats:.4f}",
            "-" if summary.same_top is None else f"{summary.same_top.mean:.1%}",
        )
    return table


def _apart(rung: Rung) -> str:
    if rung.from_previous is None:
        return "-"
    if rung.step_against_floor is Resolution.NOT_RESOLVABLE:
        return Resolution.NOT_RESOLVABLE.value
    return "yes" if rung.from_previous.excludes_zero else "no"


def _mark(rung: Rung) -> str:
    said = rung.summary.against_floor
    return f", {said.kl.value}" if said is not None and said.kl is Resolution.NOT_RESOLVABLE else ""


def _signed(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:+.3f}"
    return f"{estimate.mean:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"
