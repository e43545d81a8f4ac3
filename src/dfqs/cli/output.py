"""How the command line speaks: data on stdout, everything else on stderr."""

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dfqs.errors import printable

if TYPE_CHECKING:
    # A verb that prints no record does not pay for pydantic.
    from pydantic import BaseModel

out = Console(soft_wrap=True, highlight=False)
"""stdout: data."""
err = Console(stderr=True, soft_wrap=True, highlight=False)
"""stderr: progress, notes, warnings."""


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
