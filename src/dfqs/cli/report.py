"""`dfqs report`: an evaluation's report, made again from its results."""

from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.guard import check_output
from dfqs.cli.options import Json
from dfqs.cli.output import emit, note, print_text
from dfqs.errors import UsageError, printable
from dfqs.evaluate.store import runs_of
from dfqs.report.evidence import gather_evidence
from dfqs.report.markdown import render_markdown
from dfqs.report.page import render_page
from dfqs.report.reading import read_reported
from dfqs.report.record import REPORT_NAMES, find_run, is_page, list_runs, write_report
from dfqs.report.schema import Report
from dfqs.storage.atomic import write_bytes_atomic


def command(
    directory: Annotated[
        Path,
        typer.Argument(
            help="The directory that dfqs eval wrote into, a run in it, or a stored report.json.", show_default=False
        ),
    ],
    run: Annotated[
        int | None,
        typer.Option("--run", help="Number of the run.", min=1, show_default="the newest that measured something"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write report.json, .md and .html into it.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the report as one HTML file.", show_default=False)
    ] = None,
    with_: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            help="A document for the page: --json of plan, ladder, route check or route stats. Those that lie in "
            "DIRECTORY are taken by themselves.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace reports that are there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the report and write nothing.")] = False,
    json_: Json = False,
) -> None:
    """Print an evaluation's report as Markdown. Written is only what -o and --html ask for.

    Example: dfqs report results --html report.html
    """
    reported = read_reported(directory, run)
    report = reported.report
    _list_runs(directory, run)
    if output is not None:
        present = [path for name in REPORT_NAMES if (path := output / name).exists()]
        if present and not overwrite:
            raise UsageError(f"{present[0]} exists; --overwrite replaces it")
    if html is not None:
        check_output(html, [*_read_files(directory), *(with_ or ())], overwrite=overwrite or is_page(html))
    if output is not None or html is not None:
        beside = directory if directory.is_dir() else directory.parent
        page = render_page(report, gather_evidence(reported, (beside,), with_ or ()))
        if not dry_run:
            _write(report, page, output, html)
    emit(report, json_, lambda: print_text(render_markdown(report)))


def _read_files(directory: Path) -> list[Path]:
    """What a report is made of."""
    if directory.is_file():
        return [directory]
    names = ("report.json", "run.json", "results.jsonl")
    return [path for place in (directory, *runs_of(directory)) for name in names if (path := place / name).exists()]


def _list_runs(directory: Path, run: int | None) -> None:
    """On stderr, where there are several."""
    runs = list_runs(directory) if not (directory / "run.json").exists() else ()
    if len(runs) > 1:
        chosen = find_run(directory, run)
        for entry in runs:
            shown = " (shown)" if entry.directory == chosen else ""
            note(f"run {entry.number}: {printable(entry.model)}, {entry.measured} of 5 metrics{shown}")
        note("--run N shows another")


def _write(report: Report, page: str, output: Path | None, html: Path | None) -> None:
    paths: list[Path] = []
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        paths += write_report(report, page, output)
    if html is not None:
        write_bytes_atomic(html, page.encode(), overwrite=True)
        paths.append(html)
    note(f"wrote {', '.join(str(path) for path in paths)}")
