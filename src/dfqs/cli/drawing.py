"""Progress of long work, drawn: a bar where stderr is a terminal, a line a minute in a log."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from dfqs.cli.output import err, escape_controls
from dfqs.cli.tables import Styled, cell_width, clip
from dfqs.errors import printable
from dfqs.progress import Progress, no_progress
from dfqs.units import format_bytes, format_count, format_duration

MINUTE_S = 60.0
REDRAW_S = 0.5
"""A line is drawn again so often at most, and only when something changed: over ssh, or into a recording, every line
is bytes."""
SETTLE_S = 1.0
"""What is counted within so short a time of the beginning was done before, and only read back."""
LATE_S = 1.0
"""What is mostly over at once is drawn only where it takes longer."""
TICK_S = 1.0
LINE_COLUMNS = 79
"""A line is no longer than this, and the terminal's width: a terminal that wraps it could not take it away again."""
BAR_COLUMNS = 24
LABEL_COLUMNS = 40
SHARE = "share"
"""As a unit: what is counted changes on the way (bytes, then layers), so that only the share done says something."""


@contextlib.contextmanager
def progress_bar(label: str, unit: str = "bytes") -> Iterator[Progress]:
    """A bar on stderr with amount, rate and time left, where stderr is a terminal; elsewhere (a log) a line a minute.

    Args:
        unit: "bytes", the plural of what is counted ("tokens", "items", "parameters"), or `SHARE`.
    """
    if not err.can_redraw:
        yield _MinuteLines(label, unit)
        return
    try:
        yield _Bar(label, unit, err.draw)
    finally:
        err.draw()


@contextlib.contextmanager
def late_bar(label: str, unit: str) -> Iterator[Progress]:
    """A bar for what is mostly over at once: it stands from `LATE_S` after its first call on, and is gone with the call
    that tells that all is done. Where stderr is no terminal, nothing.

    Args:
        unit: as `progress_bar` has it.
    """
    if not err.can_redraw:
        yield no_progress
        return
    bar = _LateBar(label, unit, err.draw)
    try:
        yield bar
    finally:
        bar.end()


class _Pace:
    """How fast work goes, from what this run itself has done."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._begun_at: float | None = None
        self._first = (0.0, 0)
        self._total: int | None = None

    def take(self, done: int, total: int | None) -> float:
        """Note where the work is; returns the time."""
        now = self._now()
        if self._begun_at is None or total != self._total:
            # What was counted before (other things, or what an earlier run did) tells nothing of the rate.
            self._begun_at = now
        if now - self._begun_at <= SETTLE_S:
            self._first = now, done
        self._total = total
        self._latest = now, done
        return now

    def waited_s(self) -> float:
        """Since the work began, as far as this run has seen it."""
        return self._now() - (self._begun_at if self._begun_at is not None else self._now())

    def rate(self) -> float | None:
        """Things a second; None while nothing was done."""
        seconds, new = self._latest[0] - self._first[0], self._latest[1] - self._first[1]
        return new / seconds if new > 0 and seconds > 0 else None

    def words(self, unit: str, *, with_rate: bool = True, at: float | None = None) -> list[str]:
        """Rate and time left, as far as they are known.

        Args:
            at: the time now, where some may have gone by since the work last told where it is.
        """
        rate, done = self.rate(), self._latest[1]
        if rate is None:
            return []
        parts = [_rate(rate, unit)] if with_rate and unit != SHARE else []
        if self._total is not None and done < self._total:
            left_s = (self._total - done) / rate - (0.0 if at is None else at - self._latest[0])
            parts += [f"{format_duration(left_s)} left"] if left_s > 0 else []
        return parts


class _Bar:
    """Progress on a terminal: one line."""

    def __init__(
        self,
        label: str,
        unit: str,
        draw: Callable[..., object],
        now: Callable[[], float] = time.monotonic,
        *,
        shown: bool = True,
    ) -> None:
        self._label = clip(escape_controls(label), min(LABEL_COLUMNS, err.width // 2))
        self._unit, self._draw, self._now = unit, draw, now
        self._pace = _Pace(now)
        self._drawn_at: float | None = None
        self._drawn: list[Styled] = []
        self._last: tuple[int, int | None, str] = 0, None, ""
        if shown:
            self._show([Styled(self._label)])

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        now = self.take(done, total, note)
        if self._drawn_at is None or now - self._drawn_at >= REDRAW_S:
            self.redraw()

    @property
    def is_drawn(self) -> bool:
        """Whether there is a line to take away."""
        return bool(self._drawn)

    def take(self, done: int, total: int | None, note: str) -> float:
        """Note where the work is, and draw nothing; returns the time."""
        self._last = done, total, note
        return self._pace.take(done, total)

    def redraw(self, *, waited: bool = False) -> None:
        """The line as it is now.

        Args:
            waited: while there is no rate, say for how long the work goes on.
        """
        self._drawn_at = self._now()
        done, total, note = self._last
        if waited and self._pace.rate() is None:
            note = f"{self._pace.waited_s():.0f} s so far"
        self._show(self._line(done, total, note))

    def _show(self, line: list[Styled]) -> None:
        if line != self._drawn:
            self._drawn = line
            self._draw(*line)

    def _line(self, done: int, total: int | None, note: str) -> list[Styled]:
        """Label, bar, amount, rate, time left, note: what has no room is left out, the last of it first."""
        room = min(LINE_COLUMNS, err.width - 1)
        amount = _amount(done, total, self._unit)
        # It is drawn again while a batch is computed.
        parts = [amount, *self._pace.words(self._unit, at=self._drawn_at)]
        shorter = [amount, *self._pace.words(self._unit, with_rate=False, at=self._drawn_at)]
        if cell_width(f"{self._label} {', '.join(parts)}") > room:
            parts = shorter
        words = ", ".join(parts)
        free = room - cell_width(f"{self._label} {words}")
        bar = _bar(done, total, min(BAR_COLUMNS, free - 1)) if free > BAR_COLUMNS // 2 else ""
        line = [Styled(f"{self._label} "), Styled(f"{bar} " if bar else "", "cyan"), Styled(words)]
        if note and room - sum(cell_width(part.text) for part in line) > BAR_COLUMNS // 2:
            line.append(Styled(f", {printable(note, 60)}", "dim"))
        return _clipped(line, room)


class _LateBar:
    """A bar that is drawn by a clock: nothing before `LATE_S` have gone by, then once a second, so that it is seen to
    live while a batch takes long. Once ended, it never draws again: what then stands in its line is not its own."""

    def __init__(self, label: str, unit: str, draw: Callable[..., object]) -> None:
        self._bar = _Bar(label, unit, draw, shown=False)
        self._draw = draw
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._clock: threading.Thread | None = None

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        if total is not None and done >= total:
            self.end()
            return
        with self._lock:
            self._bar.take(done, total, note)
        if self._clock is None:
            self._clock = threading.Thread(target=self._run, name="late bar", daemon=True)
            self._clock.start()

    def end(self) -> None:
        """Take the line away, if there is one."""
        with self._lock:
            if not self._over.is_set():
                if self._bar.is_drawn:
                    self._draw()
                self._over.set()

    def _run(self) -> None:
        wait_s = LATE_S
        # A terminal that is gone is noticed by whoever has something to say on it.
        with contextlib.suppress(OSError, ValueError):
            while not self._over.wait(wait_s):
                with self._lock:
                    if not self._over.is_set():
                        self._bar.redraw(waited=True)
                wait_s = TICK_S


def _clipped(line: list[Styled], room: int) -> list[Styled]:
    """As much of a line as fits into `room` columns."""
    fitting = []
    for part in line:
        text = clip(part.text, room)
        room -= cell_width(text)
        fitting.append(Styled(text, part.style))
        if text != part.text:
            break
    return fitting


def _bar(done: int, total: int | None, columns: int) -> str:
    """`━━━━╌╌╌╌`, in plain signs where the locale has no others; nothing where the end is not known."""
    if not total:
        return ""
    full = min(max(done * columns // total, 0), columns)
    filled, empty = ("#", "-") if err.is_ascii else ("━", "╌")
    return filled * full + empty * (columns - full)


class _MinuteLines:
    """Progress for a log: silence for a minute, then a line with amount, rate and time left in every one."""

    def __init__(self, label: str, unit: str, now: Callable[[], float] = time.monotonic) -> None:
        # A label that only indents stands under the line that says what is done.
        self._label = f"{label.strip()}: " if label.strip() else label
        self._unit = unit
        self._said_at = now()
        self._pace = _Pace(now)

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        now = self._pace.take(done, total)
        if now - self._said_at < MINUTE_S:
            return
        self._said_at = now
        parts = [_amount(done, total, self._unit), *self._pace.words(self._unit)]
        parts += [printable(note, 60)] if note else []
        err.print(Styled(f"{self._label}{', '.join(parts)}", "dim"))


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
