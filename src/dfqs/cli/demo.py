"""`dfqs demo`: the whole flow on the embedded model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.drawing import SHARE, progress_bar
from dfqs.cli.output import err, out, print_json, print_plain
from dfqs.demo import run_demo
from dfqs.progress import Progress
from dfqs.report.markdown import render_summary


def command(
    directory: Annotated[
        Path, typer.Option("--out", help="Where the model and the report go; made if it is not there.")
    ] = Path("dfqs-demo"),
    json_: Annotated[bool, typer.Option("--json", help="Print the record of what was done as JSON.")] = False,
) -> None:
    """Show the whole flow on a small real model: build it, split it into shards, merge them into one file, verify that
    nothing changed, inspect it, ask how much memory it needs, let it answer, measure it, and write a report.
    Offline after the first fetch (93 MB).

    Example: dfqs demo --out dfqs-demo
    """
    result = run_demo(directory, _Terminal())
    if json_:
        print_json(result.record)
        return
    print_plain(render_summary(result.report))
    out.print(f"\nmodel:  {result.model}", markup=False)
    out.print(f"story:  {result.story}", markup=False)
    out.print(f"report: {result.report_path}", markup=False)


class _Terminal:
    """Tells the story on stderr; what the demonstration leaves is printed on stdout at its end."""

    @contextmanager
    def step(self, number: int, total: int, title: str) -> Iterator[Progress]:
        err.print(f"[{number}/{total}] {title}", style="bold", markup=False)
        with progress_bar("      ", SHARE) as progress:
            yield progress

    def say(self, line: str) -> None:
        err.print(f"      {line}", markup=False)
