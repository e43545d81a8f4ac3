"""`dfqs forecast`: how fast a model will be on this machine, before it is run."""

import importlib
from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.drawing import progress_bar
from dfqs.cli.guard import check_output
from dfqs.cli.options import Json, Overwrite, Source, Threads
from dfqs.cli.output import column_table, emit, note, out, print_plain
from dfqs.cli.source import open_source
from dfqs.planning.forecast import CONTEXTS, Curve, ForecastDocument, ForecastRequest, forecast
from dfqs.planning.speed import Rate
from dfqs.units import format_bytes, parse_size, parse_tokens


def command(
    source: Source,
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
    again: Annotated[bool, typer.Option("--again", help="Calibrate this machine anew.")] = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Say how fast a model will be here: tokens a second with intervals, by context, and against memory where it
    does not all fit; also of a model on the Hub, of which headers are read. The machine is calibrated with small random
    models first (once for each type of weights).

    Exit code 1: the runtime does not load such a model; what is said then is a bound.

    Example: dfqs forecast model.gguf --trace model.route --plot curve.png
    """
    if plot is not None:
        check_output(plot, (Path(source), trace), overwrite=overwrite)
    contexts = tuple(parse_tokens(word.strip()) for word in ctx.split(",")) if ctx else CONTEXTS
    memory = tuple(parse_size(word.strip()) for word in ram.split(",")) if ram else ()
    model = open_source(source)
    # An extra: only who draws needs matplotlib.
    drawing = importlib.import_module("dfqs.planning.curve_plot") if plot is not None else None
    if drawing is not None:
        drawing.check_picture(model, plot)
    request = ForecastRequest(contexts, threads, trace, memory, again=again)
    with progress_bar("measuring this machine", "seconds") as progress:
        document = forecast(model, request, progress)
    if drawing is not None:
        drawing.plot_curve(document, plot, overwrite=overwrite)
    emit(document, json_, lambda: _show(document))
    if document.unknown is not None:
        raise typer.Exit(1)


def _show(document: ForecastDocument) -> None:
    if document.unknown is not None:
        print_plain(f"The runtime does not load it, so there is no forecast: {document.unknown}")
        print_plain(_bound(document))
        _show_notes(document)
        return
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
    _show_notes(document)


def _bound(document: ForecastDocument) -> str:
    read = f"A token reads {format_bytes(document.decode_bytes_per_token)} of weights"
    if document.at_most_tokens_per_s is None:
        return read
    return (
        f"{read}; this machine's memory gives {format_bytes(document.memory_bytes_per_s)}/s: at most "
        f"{document.at_most_tokens_per_s:.1f} tokens/s"
    )


def _show_notes(document: ForecastDocument) -> None:
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
    if curve.disk is None:
        return
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
