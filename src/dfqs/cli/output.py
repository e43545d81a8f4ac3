"""How the command line speaks: data on stdout, everything else on stderr. Nothing else in `cli` writes to either.

The one door for words from outside (a model's keys, file names, a server's answers, arguments): whatever a verb prints,
control characters that a terminal would obey come out as `\\x1b`, and no word is read as markup.
"""

import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    # A verb that prints no record does not pay for pydantic.
    from pydantic import BaseModel

_OBEYED = re.compile(
    # C0 but tab and newline, DEL and C1; marks, embeddings and isolates that reorder a line; half a pair.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_UNFOLDED_COLUMNS = 1 << 20
"""Wider than any table: where nobody looks at a screen, a row is a line."""


def escape_controls(text: str) -> str:
    """`text` with every character that a terminal obeys, or that hides or reorders others, shown as its number."""
    return _OBEYED.sub(lambda match: _shown(ord(match[0])), text)


class SafeConsole(Console):
    """A console that shows foreign words as they are: no markup, no emoji codes, no control characters."""

    def __init__(self, *, stderr: bool) -> None:
        super().__init__(stderr=stderr, soft_wrap=True, markup=False, emoji=False, highlight=False)
        self._least_width = 0

    @property
    def options(self) -> ConsoleOptions:
        """How wide things may be: as wide as the terminal; in a pipe or a file, as wide as they are."""
        options = super().options
        columns = options.max_width if self.file.isatty() else _UNFOLDED_COLUMNS
        return options.update(max_width=max(columns, self._least_width))

    def render_str(self, text: str, **settings: Any) -> Text:
        """Escaped before it is measured, so that columns are as wide as what is shown in them."""
        return super().render_str(escape_controls(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Everything that this console writes comes through here; its own cursor movements are marked as such."""
        return self._escaped(super().render(renderable, options))

    def print_table(self, table: Table) -> None:
        """A table with no column cut: a terminal that is too narrow breaks its lines."""
        self._least_width = Measurement.get(self, self.options, table).minimum
        try:
            self.print(table)
        finally:
            self._least_width = 0

    def _escaped(self, segments: Iterable[Segment]) -> Iterator[Segment]:
        encoding = getattr(self.file, "encoding", None) or "utf-8"
        for segment in segments:
            if segment.control:
                yield segment
                continue
            # What the locale cannot write is shown as its number too, and does not end the program.
            text = escape_controls(segment.text).encode(encoding, "backslashreplace").decode(encoding)
            yield Segment(text, segment.style)


out = SafeConsole(stderr=False)
"""stdout: data."""
err = SafeConsole(stderr=True)
"""stderr: progress, notes, warnings."""


def emit(
    document: "BaseModel | Callable[[], BaseModel]", as_json: bool, text: Callable[[], None], *, indent: int | None = 2
) -> None:
    """The one way out of a verb's facts: the document itself for programs, or what `text` prints of it for people.

    Args:
        document: or what makes it, where people should not wait for what checks documents to load.
    """
    if as_json:
        print_json(document() if callable(document) else document, indent=indent)
    else:
        text()


def print_parts(*parts: RenderableType) -> None:
    """Tables and text for people on stdout, apart by an empty line."""
    for number, part in enumerate(parts):
        if number:
            out.print()
        out.print(part)


def print_json(value: "BaseModel | dict[str, Any] | list[Any]", *, indent: int | None = 2) -> None:
    """Data for programs: one JSON document on stdout. Without `indent`, on one line."""
    sys.stdout.write(_json_text(value, indent))
    sys.stdout.flush()


def complain_json(document: "BaseModel") -> None:
    """Why the program ends, for programs: one JSON document, a line of stderr."""
    sys.stderr.write(_json_text(document, None))
    sys.stderr.flush()


def print_plain(text: str) -> None:
    """Text for people on stdout."""
    out.print(Text(escape_controls(text)))


def write_text(text: str) -> None:
    """A piece of a model's answer to stdout as it comes: a terminal is protected from it, a pipe gets it unchanged."""
    if sys.stdout.isatty():
        text = escape_controls(text)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def warn(message: str) -> None:
    """One line on stderr."""
    err.print(Text.assemble(("warning: ", "yellow"), escape_controls(message)))


def note(message: str) -> None:
    """One line on stderr."""
    err.print(Text(escape_controls(message), style="dim"))


def complain(message: str) -> None:
    """Why the program ends, on stderr."""
    err.print(Text(f"dfqs: {escape_controls(message)}"))


def key_value_table(rows: list[tuple[str, str]], title: str | None = None) -> Table:
    """Two columns, name and value."""
    table = Table(title=title, show_header=False, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape_controls(value))
    return table


def column_table(*columns: str, words: Collection[str], title: str | None = None) -> Table:
    """Columns of numbers, to the right and never broken, and of `words`, to the left and folded where too wide.

    The title is not read as markup: it may hold a stranger's words.
    """
    heading = None if title is None else Text(escape_controls(title))
    table = Table(title=heading, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        if column in words:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table


def _json_text(value: "BaseModel | dict[str, Any] | list[Any]", indent: int | None) -> str:
    plain = value if isinstance(value, dict | list) else value.model_dump(mode="json")
    # Outside ASCII, json escapes; of what is inside it leaves DEL as it is.
    return json.dumps(plain, indent=indent, ensure_ascii=True).replace("\x7f", "\\u007f") + "\n"


def _shown(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
