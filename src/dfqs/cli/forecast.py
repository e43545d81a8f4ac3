"""`dfqs forecast`: how fast a model will be on this machine, before it is run."""

import importlib
from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.drawing import progress_bar
from dfqs.cli.guard import check_output
from dfqs.cli.options import Json, Model, Overwrite, Threads
from dfqs.cli.output import column_table, emit, note, out, print_plain
from dfqs.planning.forecast import CONTEXTS, Curve, ForecastDocument, ForecastRequest, forecast
from dfqs.planning.speed import Rate
from dfqs.runtime.checks import check_model
from dfqs.units import format_bytes, parse_size, parse_tokens


def command(
    model: Model,
    ctx: Annotated[
        str | None, typer.Option("--ctx", help="Contexts in tokens: 512,8k.", show_default="512,4096")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace", help="Routing trace, from `dfqs route trace`; else a skew is made up.", show_default=False
        ),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option("--ram", help="Memory to look at: 8GB,16GB.", show_default="shares of the file"),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Picture of rates against memory: .png or .svg.", show_default=False)
    ] = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Say how fast a model will be here: tokens a second with intervals, by context, and against memory where it
    does not all fit. The machine is calibrated with small random models first (once for each type of weights).

    Example: dfqs forecast model.gguf --trace model.route --plot curve.png
    """
    if plot is not None:
        check_output(plot, (model, trace), overwrite=overwrite)
    checked = check_model(model)
    contexts = tuple(parse_tokens(word) for word in ctx.split(",")) if ctx else CONTEXTS
    memory = tuple(parse_size(word) for word in ram.split(",")) if ram else ()
    request = ForecastRequest(contexts, threads, trace, memory)
    with progress_bar("calibrating this machine", "probes") as progress:
        document = forecast(checked, request, progress)
    if plot is not None:
        # An extra: only who draws needs matplotlib.
        importlib.import_module("dfqs.planning.curve_plot").plot_curve(document, plot, overwrite=overwrite)
    emit(document, json_, lambda: _show(document))


def _show(document: ForecastDocument) -> None:
    columns = ("context", "decode, tokens/s", "prefill, tokens/s", "weights", "graph", "attention")
    table = column_table(*columns, words=(), title="computed, all weights in memory")
    for one in document.contexts:
        parts = (one.weights_s, one.graph_s, one.attention_s)
        total = sum(parts)
        table.add_row(
            f"{one.context_tokens:,}",
            _rate(one.decode),
            _rate(one.prefill),
            *(f"{part / total:.0%}".replace("%", " %") for part in parts),
        )
    out.print_table(table)
    if document.curve is not None:
        print_plain("")
        _show_curve(document.curve)
    for line in document.notes:
        note(f"note: {line}")


def _show_curve(curve: Curve) -> None:
    columns = ("memory", "of file", "streamed, tokens/s", "read a token", "paged, tokens/s", "read a token")
    table = column_table(*columns, words=(), title=f"against memory; choices: {curve.choices}")
    for point in curve.points:
        table.add_row(
            format_bytes(point.memory_bytes),
            f"{point.of_file:.0%}".replace("%", " %"),
            _rate(point.streamed),
            _bytes(point.streamed_bytes_per_token),
            _rate(point.paged),
            _bytes(point.paged_bytes_per_token),
        )
    out.print_table(table)
    ahead = "unknown" if curve.disk.read_ahead_bytes is None else format_bytes(curve.disk.read_ahead_bytes)
    print_plain(
        f"disk: {format_bytes(curve.disk.direct[0])}/s in pieces of {format_bytes(curve.disk.piece_bytes)}, "
        f"{format_bytes(curve.disk.paged[0])}/s paged, reading {curve.disk.paged_read_per_wanted:.1f} bytes for each "
        f"that is wanted (read-ahead {ahead})"
    )


def _rate(rate: Rate | None) -> str:
    return "-" if rate is None else f"{rate.tokens_per_s:.1f} ({rate.low:.1f} to {rate.high:.1f})"


def _bytes(amount: float | None) -> str:
    return "-" if amount is None else format_bytes(amount)
