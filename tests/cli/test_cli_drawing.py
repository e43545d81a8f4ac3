"""A progress line says what this run does, fits on the screen, and is not drawn more often than anybody can read."""

import io
import re
import sys
import time
from collections.abc import Iterator

import pytest

from dfqs.cli import drawing, output
from dfqs.cli.drawing import SHARE, _Bar, late_bar, progress_bar
from dfqs.cli.tables import Styled, cell_width


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


class Screen:
    """Lines as they are drawn, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lines: list[str] = []

    def draw(self, *parts: Styled) -> None:
        self.lines.append("".join(part.text for part in parts))

    def bar(self, label: str, unit: str) -> _Bar:
        return _Bar(label, unit, self.draw, lambda: self.now)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    monkeypatch.setenv("COLUMNS", "80")
    yield Screen()


def test_what_an_earlier_run_did_gives_no_rate_and_no_time_left(screen: Screen) -> None:
    bar = screen.bar("context", "questions")
    for done in (0, 40, 80, 100):  # Stored; counted in no time.
        bar(done, 280)
        screen.now += 0.01
    screen.now = 101.0
    bar(110, 280)

    assert "questions/s" not in screen.lines[-1]
    assert "110 of 280 questions, 10.1 s each, 28 min 36 s left" in screen.lines[-1]


def test_what_a_run_that_goes_on_reads_back_gives_no_rate_however_long_it_takes(screen: Screen) -> None:
    bar = screen.bar("quantizing", "parameters")
    for second in range(60):
        screen.now = float(second)
        bar(second * 10**9, None, "blk.0")
    assert "left" not in screen.lines[-1]
    for second in range(60, 71):
        screen.now = float(second)
        bar(60 * 10**9 + (second - 60) * 10**6, 70 * 10**9, "blk.60")

    assert "1.0 M parameters/s, 2 h 46 min left" in screen.lines[-1]


@pytest.mark.parametrize("unit", ["bytes", "questions", "tokens", "parameters", "items", SHARE])
@pytest.mark.parametrize("label", ["", "      ", "hashing", "loading " + "x" * 300, "模型" * 60])
@pytest.mark.parametrize("columns", [20, 80, 200])
def test_a_line_never_wraps(
    unit: str, label: str, columns: int, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    bar = screen.bar(label, unit)
    for step in range(1, 6):
        screen.now = 100.0 * step
        bar(123_456_789 * step, 987_654_321, "blk.12.ffn_down_exps.weight" * 4)

    assert len(screen.lines) > 1
    assert all(cell_width(line) < min(columns, 80) for line in screen.lines)


def test_a_line_is_drawn_twice_a_second_at_most_and_only_when_something_changed(screen: Screen) -> None:
    bar = screen.bar("hashing", SHARE)
    for call in range(10_000):
        screen.now += 0.001
        bar(call * 10**6, 10**10)
    busy = len(screen.lines)
    for _ in range(1000):
        screen.now += 0.6
        bar(10**10, 10**10)

    assert 20 <= busy <= 22
    assert len(screen.lines) - busy <= 1


def test_a_terminal_gets_few_bytes_and_a_clean_line_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", Terminal(raw, encoding="utf-8", newline="\n", write_through=True))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(drawing, "err", output.SafeConsole(stderr=True))
    with progress_bar("hashing") as progress:
        for done in range(100_000):
            progress(done, 100_000)

    written = raw.getvalue().decode()
    assert "hashing" in written
    assert len(written) < 2000
    assert re.search(r"\x1b\[2K\s*$|\x1b\[2K\x1b\[\?25h\s*$|\x1b\[\?25h.*\x1b\[2K$", written, re.DOTALL)


def give_terminal(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """What stderr, a terminal from now on, is sent. (In a fixture pytest would put its own stream back.)"""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", Terminal(raw, encoding="utf-8", newline="\n", write_through=True))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(drawing, "err", output.SafeConsole(stderr=True))
    return raw


def wait_for(raw: io.BytesIO, words: str) -> str:
    deadline = time.monotonic() + 20
    while words not in raw.getvalue().decode():
        assert time.monotonic() < deadline, raw.getvalue()
        time.sleep(0.005)
    return raw.getvalue().decode()


def test_what_is_over_at_once_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = give_terminal(monkeypatch)
    with late_bar("reading the prompt", "tokens") as progress:
        progress(0, 40)
        progress(40, 40)

    assert terminal.getvalue() == b""


def test_what_takes_long_is_drawn_while_nothing_is_told_and_gone_for_good_before_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = give_terminal(monkeypatch)
    monkeypatch.setattr(drawing, "LATE_S", 0.02)
    monkeypatch.setattr(drawing, "TICK_S", 0.01)
    with late_bar("reading the prompt", "tokens") as progress:
        progress(0, 3012)
        wait_for(terminal, "0 of 3.0 K tokens\x1b[2m, 0 s so far")
        progress(3012, 3012)
        gone = terminal.getvalue()
        assert gone.endswith(b"\r\x1b[2K")
        # An answer stands in that line now: neither a late tick, nor a late word, nor the end may take it away.
        time.sleep(0.05)
        progress(5, 3012)

    assert terminal.getvalue() == gone


def test_an_interrupted_wait_leaves_a_clean_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = give_terminal(monkeypatch)
    monkeypatch.setattr(drawing, "LATE_S", 0.0)
    with pytest.raises(KeyboardInterrupt), late_bar("reading the prompt", "tokens") as progress:
        progress(0, 3012)
        wait_for(terminal, "tokens")
        raise KeyboardInterrupt

    assert terminal.getvalue().endswith(b"\r\x1b[2K")


def test_a_log_is_told_nothing_of_a_prompt_that_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    with late_bar("reading the prompt", "tokens") as progress:
        progress(0, 3012)
        time.sleep(0.01)

    assert capsys.readouterr() == ("", "")


def test_time_left_grows_shorter_while_a_batch_is_computed(screen: Screen) -> None:
    bar = screen.bar("reading the prompt", "tokens")
    bar(0, 3000)
    screen.now = 10.0
    bar(1000, 3000)
    assert "1.0 K of 3.0 K tokens, 100 tokens/s, 20.0 s left" in screen.lines[-1]
    screen.now = 14.0
    bar.redraw(waited=True)
    assert "100 tokens/s, 16.0 s left" in screen.lines[-1]
    screen.now = 40.0
    bar.redraw(waited=True)
    assert "left" not in screen.lines[-1] and "so far" not in screen.lines[-1]
