"""How the command line speaks: data on stdout, everything else on stderr."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from dfqs.errors import printable
from dfqs.progress import Progress
from dfqs.units import format_count

if TYPE_CHECKING:
    # A verb that prints no record does not pay for pydantic.
    from pydantic import BaseModel

out = Console(soft_wrap=True, highlight=False)
"""stdout: data."""
err = Console(stderr=True, soft_wrap=True, highlight=False)
"""stderr: progress, notes, warnings."""


def print_json(value: "BaseModel | dict[str, Any] | list[Any]") -> None:
    """Data for programs: one JSON document on stdout."""
    plain = value if isinstance(value, dict | list) else value.model_dump(mode="json")
    sys.stdout.write(json.dumps(plain, indent=2, ensure_ascii=True) + "\n")
    sys.stdout.flush()


def print_plain(text: str) -> None:
    """Text for people on stdout, as it is: nothing in it is taken for markup."""
    out.print(Text(text), soft_wrap=True)


def warn(message: str) -> None:
    """One line on stderr."""
    err.print(Text.assemble(("warning: ", "yellow"), message))


def note(message: str) -> None:
    """One line on stderr."""
    err.print(Text(message, style="dim"))


def key_value_table(rows: list[tuple[str, str]], title: str | None = None) -> Table:
    """Two columns, name and value; values from outside are escaped."""
    table = Table(title=title, show_header=False, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    for name, value in rows:
        table.add_row(name, Text(printable(value, 400)))
    return table


@contextlib.contextmanager
def progress_bar(label: str, unit: str = "bytes") -> Iterator[Progress]:
    """A bar on stderr with amount, rate and time left, where stderr is a terminal; silence where it is not.

    Args:
        unit: "bytes", or the plural of what is counted ("tokens", "items", "parameters").
    """
    if not err.is_terminal:
        yield _silent
        return
    amount: ProgressColumn = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    rate: ProgressColumn = TransferSpeedColumn() if unit == "bytes" else _RateColumn(unit)
    if unit == "parameters":
        amount = _CountColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, rate, TimeRemainingColumn())
    with RichProgress(*columns, TextColumn("[dim]{task.fields[note]}"), console=err, transient=True) as bar:
        task = bar.add_task(label, total=None, note="")

        def advance(done: int, total: int | None = None, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=printable(note, 40))

        yield advance


def _silent(done: int, total: int | None = None, note: str = "") -> None:
    """No terminal to draw on."""


class _RateColumn(ProgressColumn):
    """Things a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: RichTask) -> Text:
        return Text(f"{format_count(task.speed)} {self.unit}/s" if task.speed else "", style="magenta")


class _CountColumn(ProgressColumn):
    """Large counts: 1.2 B/284.3 B."""

    def render(self, task: RichTask) -> Text:
        total = format_count(task.total) if task.total is not None else "?"
        return Text(f"{format_count(task.completed)}/{total}", style="green")
