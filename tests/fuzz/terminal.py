"""What comes out of the door to the terminal, whichever way words went in."""

import io
from collections.abc import Iterator

from rich.table import Table

from dfqs.cli.output import SafeConsole, escape_controls, key_value_table
from dfqs.errors import FormatError, printable


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(text: str) -> Iterator[tuple[str, str]]:
    """(way in, what comes out) of foreign words; colours off, so that every escape would be one of theirs."""
    yield "printable", printable(text, 4000)
    yield "escape_controls", escape_controls(text)
    # A path of its own name, as a downloaded file has one.
    yield "an error", escape_controls(str(FormatError("wrong", path=f"/m/{text}", name=text)))
    for way, file in (("a pipe", io.StringIO()), ("a terminal", _Terminal())):
        console = SafeConsole(stderr=False)
        console.file = file
        console.no_color = True
        console._color_system = None
        console.print(text)
        table = Table(title=escape_controls(text))
        table.add_column("name")
        table.add_row(text)
        console.print_table(table)
        console.print(key_value_table([(text, text)]))
        yield way, file.getvalue()
