"""`dfqs compare`: what evaluations say about the difference of models, and what they cannot say."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dfqs.cli.guard import check_output
from dfqs.cli.options import DryRun, Json
from dfqs.cli.output import column_table, emit, escape_controls, note, print_parts, print_plain, warn
from dfqs.errors import UsageError
from dfqs.report.compare import compare
from dfqs.report.comparison import ComparisonDocument, Outcome
from dfqs.report.comparison_facts import (
    HEADER,
    describe_outcome,
    describe_side,
    difference_lines,
    measure_rows,
    noise_words,
    reason_lines,
)
from dfqs.report.comparison_page import render_comparison
from dfqs.report.reading import read_reported
from dfqs.report.record import is_page
from dfqs.storage.atomic import write_bytes_atomic

WORSE, NOT_MEASURED = 1, 4
EXIT_CODES = {Outcome.WORSE: WORSE, Outcome.REFUSED: WORSE, Outcome.NOT_MEASURED: NOT_MEASURED}
"""A script that waits for "not worse" must not take "nobody looked" for it, nor for a failure that a repeat mends."""


def command(
    evaluations: Annotated[
        list[Path],
        typer.Argument(
            help="Two or more directories of dfqs eval, or report.json files; the first is the reference.",
            show_default=False,
        ),
    ],
    only: Annotated[
        Literal["scores", "speed"] | None, typer.Option("--only", help="Leave the rest out.", show_default=False)
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare under conditions that differ too; they are named all the same.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the comparison as one HTML file.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what stands under the page's name.")] = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Compare evaluations question by question, with intervals, and with the difference that could have been seen.

    Exit code 0: compared, and nothing is worse. 1: something is worse, or was refused because its conditions differ.
    4: a number is missing from one side, so nobody knows.

    Example: dfqs compare results/q8 results/iq1 --html comparison.html
    """
    if len(evaluations) < 2:
        raise UsageError("give at least two evaluations; the first is the reference")
    reported = [read_reported(path) for path in evaluations]
    if html is not None:
        stored = [path if path.is_file() else path / "report.json" for path in evaluations]
        check_output(html, [path for path in stored if path.exists()], overwrite=overwrite or is_page(html))
    document = compare(reported[0], reported[1:], only=only, anyway=anyway)
    if html is not None and not dry_run:
        write_bytes_atomic(html, render_comparison(document).encode(), overwrite=True)
        note(f"wrote {html}")
    emit(document, json_, lambda: _show(document))
    code = EXIT_CODES.get(document.outcome, 0)
    if code:
        raise typer.Exit(code)


def _show(document: ComparisonDocument) -> None:
    print_plain(f"reference: {describe_side(document.reference)}")
    for against in document.others:
        print_plain("")
        print_plain(f"{describe_side(against.other)}: {against.outcome.value}")
        for line in difference_lines(against):
            warn(f"conditions differ, {line}")
        table = column_table(*HEADER, words=HEADER)
        for row in measure_rows(against):
            table.add_row(*(escape_controls(str(cell)) for cell in row))
        print_parts(table)
        for line in reason_lines(against):
            print_plain(f"  {line}")
    print_plain("")
    print_plain(noise_words(document))
    for notice in document.notices:
        warn(notice)
    print_plain(describe_outcome(document))
