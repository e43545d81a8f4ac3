"""Progress of long work, drawn: a bar where stderr is a terminal, a line a minute in a log."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.text import Text

from dfqs.cli.output import err
from dfqs.errors import printable
from dfqs.progress import Progress
from dfqs.units import format_bytes, format_count, format_duration

MINUTE_S = 60.0
SHARE = "share"
"""As a unit: what is counted changes on the way (bytes, then layers), so that only the share done says something."""


@contextlib.contextmanager
def progress_bar(label: str, unit: str = "bytes") -> Iterator[Progress]:
    """A bar on stderr with amount, rate and time left, where stderr is a terminal; elsewhere (a log) a line a minute.

    Args:
        unit: "bytes", the plural of what is counted ("tokens", "items", "parameters"), or `SHARE`.
    """
    if not err.is_terminal:
        yield _MinuteLines(label, unit)
        return
    # An item of an evaluation can take many minutes; rich forgets after half of one, and then knows no rate.
    memory_s = 30.0 if unit in ("bytes", "tokens", "parameters") else 86_400.0
    with RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *_amount_columns(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=err,
        transient=True,
        speed_estimate_period=memory_s,
    ) as bar:
        task = bar.add_task(label, total=None, note="")

        def advance(done: int, total: int | None = None, note: str = "") -> None:
            if unit == SHARE and total != bar.tasks[0].total:
                # Other things are counted now: what the last ones took says nothing of them.
                bar.reset(task, total=total)
            bar.update(task, completed=done, total=total, note=printable(note, 60))

        yield advance


def _amount_columns(unit: str) -> tuple[ProgressColumn, ...]:
    """How much, and how fast."""
    if unit == SHARE:
        return (TaskProgressColumn(),)
    if unit == "bytes":
        return DownloadColumn(), TransferSpeedColumn()
    return _CountColumn() if unit == "parameters" else MofNCompleteColumn(), _RateColumn(unit)


class _MinuteLines:
    """Progress for a log: silence for a minute, then a line with amount, rate and time left in every one."""

    def __init__(self, label: str, unit: str, now: Callable[[], float] = time.monotonic) -> None:
        # A label that only indents stands under the line that says what is done.
        self._label = f"{label.strip()}: " if label.strip() else label
        self._unit = unit
        self._now = now
        self._said_at = now()
        self._first: tuple[float, int] | None = None
        self._total: int | None = None

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        now = self._now()
        if self._first is None or (self._unit == SHARE and total != self._total):
            # What was there before tells nothing of the rate, nor does what was counted before.
            self._first = now, done
        self._total = total
        if now - self._said_at < MINUTE_S:
            return
        self._said_at = now
        seconds, new = now - self._first[0], done - self._first[1]
        parts = [_amount(done, total, self._unit)]
        if new > 0:
            if self._unit != SHARE:
                parts.append(_rate(new / seconds, self._unit))
            if total is not None and done < total:
                parts.append(f"{format_duration((total - done) * seconds / new)} left")
        parts += [printable(note, 60)] if note else []
        err.print(Text(f"{self._label}{', '.join(parts)}", style="dim"))


def _amount(done: int, total: int | None, unit: str) -> str:
    """`1.2 GB of 61.6 GB`, `3 of 40 items`, `90 %`."""
    if unit == SHARE:
        return f"{done / total:.0%}".replace("%", " %") if total else "under way"
    written = format_bytes if unit == "bytes" else format_count
    amount = f"{written(done)} of {written(total)}" if total is not None else written(done)
    return amount if unit == "bytes" else f"{amount} {unit}"


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
