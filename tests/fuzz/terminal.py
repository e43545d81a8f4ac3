"""What comes out of the door to the terminal, whichever way words went in."""

import io
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from unittest import mock

from dfqs.cli.output import SafeConsole, column_table, escape_controls, key_value_table
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
        with redirect_stdout(file), mock.patch.dict(os.environ, NO_COLOR="1"):
            console.print(text)
            table = column_table("name", words=("name",), title=text)
            table.add_row(text)
            console.print_table(table)
            console.print_table(key_value_table([(text, text)]))
        yield way, file.getvalue()
