"""`dfqs report`: an evaluation's report, made again from its results."""

from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.options import Json
from dfqs.cli.output import emit, note, print_plain
from dfqs.errors import UsageError, printable
from dfqs.report.markdown import render_markdown
from dfqs.report.record import build_report, find_run, list_runs, write_report


def command(
    directory: Annotated[
        Path, typer.Argument(help="The directory that dfqs eval wrote into, or a run in it.", show_default=False)
    ],
    run: Annotated[
        int | None,
        typer.Option("--run", help="Number of the run.", min=1, show_default="the newest that measured something"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write report.json and report.md into this directory.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace reports that are there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the report and write nothing.")] = False,
    json_: Json = False,
) -> None:
    """Print an evaluation's report as Markdown. Written is only what -o asks for.

    Example: dfqs report results
    """
    chosen = find_run(directory, run)
    report = build_report(chosen)
    runs = list_runs(directory) if chosen != directory else ()
    if len(runs) > 1:
        for entry in runs:
            shown = " (shown)" if entry.directory == chosen else ""
            note(f"run {entry.number}: {printable(entry.model)}, {entry.measured} of 5 metrics{shown}")
        note("--run N shows another")
    if output is not None:
        present = [path for name in ("report.json", "report.md") if (path := output / name).exists()]
        if present and not overwrite:
            raise UsageError(f"{present[0]} exists; --overwrite replaces it")
        if not dry_run:
            output.mkdir(parents=True, exist_ok=True)
            paths = write_report(report, output)
            note(f"wrote {' and '.join(str(path) for path in paths)}")
    emit(report, json_, lambda: print_plain(render_markdown(report)))
