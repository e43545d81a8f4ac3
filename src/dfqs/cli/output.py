"""How the command line speaks: data on stdout, everything else on stderr."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
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
from dfqs.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    # A verb that prints no record does not pay for pydantic.
    from pydantic import BaseModel

out = Console(soft_wrap=True, highlight=False)
"""stdout: data."""
err = Console(stderr=True, soft_wrap=True, highlight=False)
"""stderr: progress, notes, warnings."""

MINUTE_S = 60.0


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
    """A bar on stderr with amount, rate and time left, where stderr is a terminal; elsewhere (a log) a line a minute.

    Args:
        unit: "bytes", or the plural of what is counted ("tokens", "items", "parameters").
    """
    if not err.is_terminal:
        yield _MinuteLines(label, unit)
        return
    amount: ProgressColumn = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    rate: ProgressColumn = TransferSpeedColumn() if unit == "bytes" else _RateColumn(unit)
    if unit == "parameters":
        amount = _CountColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, rate, TimeRemainingColumn())
    # An item of an evaluation can take many minutes; rich forgets after half of one, and then knows no rate.
    memory_s = 30.0 if unit in ("bytes", "tokens", "parameters") else 86_400.0
    with RichProgress(
        *columns,
        TextColumn("[dim]{task.fields[note]}"),
        console=err,
        transient=True,
        speed_estimate_period=memory_s,
    ) as bar:
        task = bar.add_task(label, total=None, note="")

        def advance(done: int, total: int | None = None, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=printable(note, 60))

        yield advance


class _MinuteLines:
    """Progress for a log: silence for a minute, then a line with amount, rate and time left in every one."""

    def __init__(self, label: str, unit: str, now: Callable[[], float] = time.monotonic) -> None:
        self._label = label.strip()
        self._unit = unit
        self._now = now
        self._said_at = now()
        self._first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        now = self._now()
        if self._first is None:
            # What was there before tells nothing of the rate.
            self._first = now, done
        if now - self._said_at < MINUTE_S:
            return
        self._said_at = now
        seconds, new = now - self._first[0], done - self._first[1]
        parts = [f"{self._amount(done)} of {self._amount(total)}" if total is not None else self._amount(done)]
        if self._unit != "bytes":
            parts[0] += f" {self._unit}"
        if new > 0:
            parts.append(_rate(new / seconds, self._unit))
            if total is not None and done < total:
                parts.append(f"{format_duration((total - done) * seconds / new)} left")
        parts += [printable(note, 60)] if note else []
        err.print(Text(f"{self._label}: {', '.join(parts)}", style="dim"))

    def _amount(self, count: int) -> str:
        return format_bytes(count) if self._unit == "bytes" else format_count(count)


def _rate(per_s: float, unit: str) -> str:
    """`64.0 K tokens/s`; what comes less than once a second as the time that one takes."""
    if unit == "bytes":
        return f"{format_bytes(per_s)}/s"
    return f"{format_count(per_s)} {unit}/s" if per_s >= 1 else f"{format_duration(1 / per_s)} each"


class _RateColumn(ProgressColumn):
    """Things a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: RichTask) -> Text:
        return Text(_rate(task.speed, self.unit) if task.speed else "", style="magenta")


class _CountColumn(ProgressColumn):
    """Large counts: 1.2 B/284.3 B."""

    def render(self, task: RichTask) -> Text:
        total = format_count(task.total) if task.total is not None else "?"
        return Text(f"{format_count(task.completed)}/{total}", style="green")
