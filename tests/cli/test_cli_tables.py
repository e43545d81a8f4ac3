"""Tables say all that stands in them, however wide a terminal is and whatever a stranger wrote into a cell."""

import io
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfqs.cli.output import SafeConsole, column_table, key_value_table
from dfqs.cli.tables import cell_width, clip, fold

SGR = re.compile(r"\x1b\[[0-9;]*m")
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=60)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(columns: int | None, monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """A table of wide words, long words and numbers, on a terminal so wide or (None) in a pipe."""
    file = io.StringIO() if columns is None else Terminal()
    monkeypatch.setattr(sys, "stdout", file)
    for name, value in {"COLUMNS": str(columns or 80), "TERM": "xterm", "NO_COLOR": "", **environment}.items():
        monkeypatch.setenv(name, value)
    table = column_table("name", "bytes", "said", words=("name", "said"), title="What is 里面")
    table.add_row("模型" * 8, "1,234", "a few words and then /a/very/long/path/without/any/space/in/it.gguf")
    table.add_row("café", "7", "\x1b]0;owned\x07")
    SafeConsole(stderr=False).print_table(table)
    return file.getvalue()


def test_in_a_pipe_a_row_is_a_line_without_colours_and_columns_stand_under_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    title, heading, *rows = printed(None, monkeypatch).splitlines()

    assert title == "What is 里面"
    assert heading == "name" + " " * 30 + "bytes  said"
    # A wide character takes two columns: 16 signs are as wide as 32.
    assert rows[0] == "模型" * 8 + "  1,234  a few words and then /a/very/long/path/without/any/space/in/it.gguf"
    assert rows[1] == "café" + " " * 34 + "7  \\x1b]0;owned\\x07"
    assert len(rows) == 2


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_on_a_terminal_lines_fit_and_every_word_is_there(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = SGR.sub("", printed(columns, monkeypatch)).splitlines()

    assert all(cell_width(line) <= columns for line in lines)
    assert "".join("".join(lines).split()).count("模") == 8
    assert "1,234" in lines[2]


def test_a_terminal_that_is_too_narrow_breaks_lines_itself_and_loses_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "1,234" in printed(20, monkeypatch)


@pytest.mark.parametrize("off", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_wants_no_colours_gets_none(off: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" in printed(80, monkeypatch)
    assert "\x1b" not in printed(80, monkeypatch, **off)


def test_what_is_printed_while_a_line_is_drawn_stands_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Terminal()
    monkeypatch.setattr(sys, "stderr", file)
    console = SafeConsole(stderr=True)
    console.draw("50 %")
    console.print("a warning")
    console.draw()

    assert file.getvalue() == "\r\x1b[2K50 %\r\x1b[2Ka warning\n50 %\r\x1b[2K"


def test_names_without_a_heading_have_no_line_of_headings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", file := io.StringIO())
    SafeConsole(stderr=False).print_table(key_value_table([("Size", "1 B"), ("Name", "")]))

    assert file.getvalue() == "Size  1 B\nName\n"


@settings(max_examples=60)
@given(TEXT, st.integers(2, 40))
def test_folding_keeps_every_letter_and_no_line_is_too_wide(text: str, width: int) -> None:
    lines = fold(text, width)

    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(cell_width(line.strip()) <= width for line in lines)
    assert cell_width(clip(text, width)) <= width


def test_what_the_headings_mean_stands_below_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", file := io.StringIO())
    table = column_table("layer", "half on", words=("layer",))
    table.add_row("0", "3")
    table.caption = "half on: experts that take half of the load"
    SafeConsole(stderr=False).print_table(table)

    assert file.getvalue().splitlines()[-1] == "half on: experts that take half of the load"
