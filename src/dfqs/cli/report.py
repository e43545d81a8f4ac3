"""`dfqs report`: an evaluation's report, made again from its results."""

from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.output import note, print_json, print_plain
from dfqs.report.markdown import render_markdown
from dfqs.report.record import build_report, write_report


def command(
    directory: Annotated[Path, typer.Argument(help="The directory that dfqs eval wrote into.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the report and write nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Print an evaluation's report as Markdown, and write report.json and report.md beside its results.

    Example: dfqs report results
    """
    report = build_report(directory)
    if not dry_run:
        paths = write_report(report, directory)
        note(f"wrote {' and '.join(str(path) for path in paths)}")
    if json_:
        print_json(report.model_dump(mode="json"))
    else:
        print_plain(render_markdown(report))
