"""Generated text on its way to stdout: nothing in it is obeyed by a terminal, nothing in it ends the program."""

import io
import sys

import pytest

from dfqs.cli.generating import make_sampling
from dfqs.cli.output import write_text


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def written(text: str, kind: type[io.TextIOWrapper], encoding: str, monkeypatch: pytest.MonkeyPatch) -> str:
    raw = io.BytesIO()
    stream = kind(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    write_text(text)
    return raw.getvalue().decode(encoding)


def test_a_terminal_shows_control_characters_and_does_not_obey_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "red \x1b[31m bell \x07 c1 \x9b2J back \r kept \t\n café 👩\u200d💻"

    shown = written(text, Terminal, "utf-8", monkeypatch)

    assert shown == "red \\x1b[31m bell \\x07 c1 \\x9b2J back \\x0d kept \t\n café 👩\u200d💻"


def test_a_pipe_gets_the_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written("\x1b[31m", io.TextIOWrapper, "utf-8", monkeypatch) == "\x1b[31m"


def test_a_character_that_the_locale_lacks_does_not_end_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written("café 🙂", io.TextIOWrapper, "latin-1", monkeypatch) == "café ?"


def test_a_seed_is_drawn_only_where_it_matters() -> None:
    assert make_sampling(8, 0.0, 1.0, 0.0, None).seed == 0
    assert len({make_sampling(8, 0.7, 1.0, 0.0, None).seed for _ in range(8)}) > 1
    assert make_sampling(8, 0.7, 1.0, 0.0, 5).seed == 5
