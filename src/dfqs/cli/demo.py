"""`dfqs demo`: the whole flow on the embedded model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.drawing import SHARE, progress_bar
from dfqs.cli.options import Json
from dfqs.cli.output import emit, err, note, print_plain, print_text
from dfqs.cli.tables import Styled
from dfqs.demo import run_demo
from dfqs.progress import Progress
from dfqs.report.markdown import render_summary


def command(
    directory: Annotated[
        Path, typer.Option("--out", help="Where the model and the report go; made if it is not there.")
    ] = Path("dfqs-demo"),
    json_: Json = False,
) -> None:
    """Show the whole flow on a small real model: build it, split it into shards, merge them into one file, verify that
    nothing changed, inspect it, ask how much memory it needs, let it answer, measure it, and write a report.
    Offline after the first fetch (93 MB).

    Example: dfqs demo --out dfqs-demo
    """
    result = run_demo(directory, _Terminal())

    def show() -> None:
        print_text(render_summary(result.report))
        print_plain("")
        print_plain(f"model:  {result.model}")
        print_plain(f"story:  {result.story}")
        print_plain(f"report: {result.report_path.resolve().as_uri()}")
        note(f"next:   cd {result.model.parent} && dfqs chat {result.model.name}")

    emit(result.record, json_, show)


class _Terminal:
    """Tells the story on stderr; what the demonstration leaves is printed on stdout at its end."""

    @contextmanager
    def step(self, number: int, total: int, title: str) -> Iterator[Progress]:
        err.print(Styled(f"[{number}/{total}] {title}", "bold"))
        with progress_bar("      ", SHARE) as progress:
            yield progress

    def say(self, line: str) -> None:
        err.print(f"      {line}")
