"""How the command line speaks: data on stdout, everything else on stderr. Nothing else in `cli` writes to either.

The one door for words from outside (a model's keys, file names, a server's answers, arguments): whatever a verb prints,
control characters that a terminal would obey come out as `\\x1b`, and no word is read as markup.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from typing import IO, TYPE_CHECKING, Any

from dfqs.cli.tables import Styled, Table

if TYPE_CHECKING:
    # A verb that prints no record does not pay for pydantic.
    from pydantic import BaseModel

_OBEYED = re.compile(
    # C0 but tab and newline, DEL and C1; marks, embeddings and isolates that reorder a line; half a pair.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_CODES = {"bold": 1, "dim": 2, "italic": 3, "red": 31, "yellow": 33, "cyan": 36}
"""Of styles, as terminals have them (ECMA-48, SGR)."""
_USUAL_COLUMNS = 80
_ERASE_LINE = "\r\x1b[2K"
STANDARD_OUTPUT = "standard output"
"""Its name in errors."""


def escape_controls(text: str) -> str:
    """`text` with every character that a terminal obeys, or that hides or reorders others, shown as its number."""
    return _OBEYED.sub(lambda match: _shown(ord(match[0])), text)


class SafeConsole:
    """A standard stream that shows foreign words as they are: no markup, no emoji codes, no control characters."""

    def __init__(self, *, stderr: bool) -> None:
        self._name = "stderr" if stderr else "stdout"
        self._drawn = ""

    @property
    def file(self) -> IO[str]:
        """The stream as it is now."""
        stream: IO[str] = getattr(sys, self._name)
        return stream

    @property
    def is_terminal(self) -> bool:
        """Whether somebody may be looking."""
        return self.file.isatty()

    @property
    def can_redraw(self) -> bool:
        """Whether a line can be drawn over, and styles are understood."""
        kind = os.environ.get("TERM", "").lower()
        if os.name == "nt" and not kind and "WT_SESSION" not in os.environ:
            # The console of Windows, but for its newer Terminal, prints what others obey.
            return False
        return self.is_terminal and kind not in ("dumb", "unknown")

    @property
    def is_ascii(self) -> bool:
        """Whether the locale has no other signs."""
        return not self._encoding.lower().startswith("utf")

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        given = os.environ.get("COLUMNS", "")
        if given.isdecimal() and int(given) > 0:
            return int(given)
        for stream in (self.file, sys.__stderr__, sys.__stdin__):
            try:
                return os.get_terminal_size(stream.fileno()).columns or _USUAL_COLUMNS  # type: ignore[union-attr]
            except (OSError, AttributeError, ValueError):
                continue
        return _USUAL_COLUMNS

    def print(self, *parts: str | Styled, end: str = "\n") -> None:
        """A line of words side by side, never folded; a line break in a name does not begin another."""
        self._print(self._line(parts) + end)

    def print_text(self, text: str) -> None:
        """Text of several lines."""
        self._print("".join(f"{self._line([line])}\n" for line in text.split("\n")))

    def print_table(self, table: Table) -> None:
        """A table with no column cut: as wide as the terminal, or as it has to be; in a pipe or a file, as it is."""
        width = self.width if self.is_terminal else None
        self._print("".join(f"{self._line(line).rstrip()}\n" for line in table.lines(width, self._words)))

    def draw(self, *parts: str | Styled) -> None:
        """A line that the next one is drawn over, and that stays below whatever is printed; nothing takes it away."""
        self._drawn = self._line(parts)
        self.write(_ERASE_LINE + self._drawn)

    def write(self, text: str) -> None:
        """Text as it is: the one place where anything leaves for a standard stream.

        What cannot be said on stderr (a log on a full disk, a terminal or reader that is gone) is left unsaid from then
        on: the work is worth more than the words about it.

        Raises:
            BrokenPipeError: whoever read stdout has gone. What is written later goes nowhere.
            OSError: stdout cannot be written.
        """
        stream = self.file
        try:
            stream.write(text)
            stream.flush()
        except OSError as error:
            drop(stream)
            if self._name == "stdout":
                error.filename = STANDARD_OUTPUT
                raise

    def _print(self, text: str) -> None:
        self.write(f"{_ERASE_LINE}{text}{self._drawn}" if self._drawn else text)

    def _line(self, parts: Sequence[str | Styled]) -> str:
        styled = (part if isinstance(part, Styled) else Styled(part) for part in parts)
        return "".join(self._coloured(self._words(part.text), part.style) for part in styled)

    def _words(self, text: str) -> str:
        # What the locale cannot write is shown as its number too, and does not end the program.
        return (
            escape_controls(text)
            .replace("\n", _shown(10))
            .encode(self._encoding, "backslashreplace")
            .decode(self._encoding)
        )

    def _coloured(self, text: str, style: str) -> str:
        if not style or not text or not self.can_redraw or os.environ.get("NO_COLOR"):
            return text
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m"

    @property
    def _encoding(self) -> str:
        return getattr(self.file, "encoding", None) or "utf-8"


out = SafeConsole(stderr=False)
"""stdout: data."""
err = SafeConsole(stderr=True)
"""stderr: progress, notes, warnings."""


def emit(
    document: "BaseModel | Callable[[], BaseModel | dict[str, Any]]",
    as_json: bool,
    text: Callable[[], None],
    *,
    indent: int | None = 2,
) -> None:
    """The one way out of a verb's facts: the document itself for programs, or what `text` prints of it for people.

    Args:
        document: or what makes it, where people should not wait for what checks documents to load.
    """
    try:
        if as_json:
            print_json(document() if callable(document) else document, indent=indent)
        else:
            text()
    except BrokenPipeError as error:
        # `dfqs verify MODEL | head -1`: the reader has what it wanted, and the exit code still says what was found.
        if error.filename != STANDARD_OUTPUT:
            raise


def print_parts(*parts: str | Table) -> None:
    """Tables and text for people on stdout, apart by an empty line."""
    for number, part in enumerate(parts):
        if number:
            out.print()
        if isinstance(part, Table):
            out.print_table(part)
        else:
            out.print_text(part)


def print_json(value: "BaseModel | dict[str, Any] | list[Any]", *, indent: int | None = 2) -> None:
    """Data for programs: one JSON document on stdout. Without `indent`, on one line."""
    out.write(_json_text(value, indent))


def complain_json(document: "BaseModel") -> None:
    """Why the program ends, for programs: one JSON document, a line of stderr."""
    err.write(_json_text(document, None))


def print_plain(line: str) -> None:
    """One line for people on stdout."""
    out.print(line)


def print_text(text: str) -> None:
    """Text of several lines for people on stdout."""
    out.print_text(text)


def write_text(text: str) -> None:
    """A piece of a model's answer to stdout as it comes: a terminal is protected from it, a pipe gets it unchanged."""
    if sys.stdout.isatty():
        text = escape_controls(text)
    encoding = sys.stdout.encoding or "utf-8"
    out.write(text.encode(encoding, "replace").decode(encoding))


def warn(message: str) -> None:
    """One line on stderr."""
    err.print(Styled("warning: ", "yellow"), message)


def note(message: str) -> None:
    """One line on stderr."""
    err.print(Styled(message, "dim"))


def complain(sentence: str, *lines: str) -> None:
    """Why the program ends, on stderr, and lines below that sentence."""
    for line in (f"dfqs: {sentence}", *lines):
        err.print(line)


def key_value_table(rows: list[tuple[str, str]], title: str | None = None) -> Table:
    """Two columns, name and value."""
    table = Table(("", ""), (False, True), (True, True), title, first_style="bold")
    table.rows += rows
    return table


def column_table(*columns: str, words: Collection[str], title: str | None = None) -> Table:
    """Columns of numbers, to the right and never broken, and of `words`, to the left and folded where too wide."""
    are_words = [column in words for column in columns]
    return Table(columns, are_words, are_words, title)


def drop(stream: IO[str]) -> None:
    """What is still to be written to a stream that cannot be written goes nowhere, also at the interpreter's end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _json_text(value: "BaseModel | dict[str, Any] | list[Any]", indent: int | None) -> str:
    plain = value if isinstance(value, dict | list) else value.model_dump(mode="json")
    # Outside ASCII, json escapes; of what is inside it leaves DEL as it is.
    return json.dumps(plain, indent=indent, ensure_ascii=True).replace("\x7f", "\\u007f") + "\n"


def _shown(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
