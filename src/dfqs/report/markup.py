"""Markdown out of words from outside: nothing in them is markup, ends a table's cell, or becomes a link."""

import re
from collections.abc import Sequence

from dfqs.errors import printable
from dfqs.report.facts import Cell, Code, Row

_MARKS = frozenset("|`*_[]<>#~&$")
_ADDRESS = re.compile(r"(?i)(?=://)|(?<=www)(?=\.)|(?=@)")
"""Where readers of Markdown begin to see an address, or somebody's name: a backslash there ends that."""
WORDS_LIMIT = 400
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _,.()%-]*")
"""Names of our rows, which stay as they are for who reads the source."""


def escape_words(value: str, limit: int = WORDS_LIMIT) -> str:
    """Text from outside as text: no markup, no table separators, one line, no address that is made a link of."""
    safe = printable(value, limit).replace("\\", "\\\\")
    marked = "".join(f"\\{c}" if c in _MARKS else c for c in safe)
    return _ADDRESS.sub(lambda _: "\\", marked)


def code_span(value: str, limit: int = 128) -> str:
    """A hash or a name, as code: nothing in it can end that."""
    return f"`{printable(value, limit).replace('`', '').replace('|', '')}`"


def code_block(text: str, language: str = "") -> str:
    """Lines as a block of code: the fence is longer than any in them."""
    ticks = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(header: tuple[str, ...], rows: Sequence[Row]) -> str:
    """A table. The header is ours, and so is the first cell of most rows."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, tuple("---" for _ in header))]
    lines += ["| " + " | ".join([_row_name(name), *map(cell, cells)]) + " |" for name, *cells in rows]
    return "\n".join(lines)


def _row_name(name: Cell) -> str:
    return name if isinstance(name, str) and _PLAIN.fullmatch(name) and not name.endswith("_") else cell(name)


def cell(value: Cell) -> str:
    """Words, hashes, or several of them one after the other."""
    if isinstance(value, str | Code):
        return code_span(value.value) if isinstance(value, Code) else escape_words(value)
    return "".join(map(cell, value))
