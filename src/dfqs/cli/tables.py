"""Tables as lines of a terminal or a file: how wide words are, how they are folded, what stands under what. Pure.

Nothing else is needed to print what a model is, so that a look at a file waits for no library of the screen.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

GAP = "  "
"""Between columns."""
LEAST_COLUMNS = 20
"""A column of words is not folded further; then the terminal breaks the lines."""
_WORD = re.compile(r"\s*\S+\s*")
_NO_WIDTH = frozenset({"Mn", "Me", "Cf"})


class Styled(NamedTuple):
    """Words in a colour or weight, where the terminal has them."""

    text: str
    style: str = ""
    """bold, dim, italic, red, yellow or cyan."""


class Table:
    """Columns of numbers, to the right and never broken, and of words, to the left and folded where too wide.

    Args:
        columns: headings; without any, no line of headings is printed.
        folded: whether a column may be folded.
        first_style: of the first column.
    """

    def __init__(
        self,
        columns: Sequence[str],
        folded: Sequence[bool],
        to_the_left: Sequence[bool],
        title: str | None = None,
        first_style: str = "",
    ) -> None:
        self.columns, self.folded, self.to_the_left = columns, folded, to_the_left
        self.title, self.first_style = title, first_style
        self.caption: str | None = None
        """What the headings mean, below the rows."""
        self.rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """A row; a cell may hold a stranger's words."""
        self.rows.append(cells)

    def lines(self, width: int | None, shown: Callable[[str], str]) -> Iterator[list[Styled]]:
        """The table, line by line.

        Args:
            width: of the terminal; None: a row is a line.
            shown: what becomes of a text on its way to the screen, before it is measured.
        """
        heading = [shown(text) for text in self.columns]
        rows = [[shown(cell).expandtabs() for cell in row] for row in self.rows]
        has_heading = any(heading)
        widths = self._widths([heading, *rows], width)
        if self.title is not None:
            yield from ([Styled(line, "italic")] for line in fold(shown(self.title), width))
        if has_heading:
            yield from self._row(heading, widths, ["bold"] * len(heading))
        for row in rows:
            yield from self._row(row, widths, [self.first_style])
        if self.caption is not None:
            yield from ([Styled(line, "dim")] for line in fold(shown(self.caption), width))

    def _widths(self, rows: list[list[str]], width: int | None) -> list[int]:
        """Columns as wide as what stands in them; folded ones narrower, the widest first, where there is no room."""
        columns = list(itertools.zip_longest(*rows, fillvalue=""))
        widths = [max(cell_width(line) for cell in column for line in cell.split("\n")) for column in columns]
        if width is None:
            return widths
        room = width - len(GAP) * (len(widths) - 1)
        words = [max(cell_width(word.strip()) for cell in column for word in cell.split(" ")) for column in columns]
        least = widths
        # Between words, if that is enough.
        for narrowest in (words, [LEAST_COLUMNS] * len(words)):
            limits = zip(widths, narrowest, self.folded, strict=True)
            least = [min(wide, narrow) if folds else wide for wide, narrow, folds in limits]
            for most in range(min(max(widths), width), 0, -1):
                fitted = [max(low, min(wide, most)) for low, wide in zip(least, widths, strict=True)]
                if sum(fitted) <= room:
                    return fitted
        return least

    def _row(self, cells: list[str], widths: list[int], styles: list[str]) -> Iterator[list[Styled]]:
        folded = [fold(cell, width) for cell, width in zip(cells, widths, strict=False)]
        for line in itertools.zip_longest(*folded, fillvalue=""):
            parts = []
            for index, (text, width) in enumerate(zip(line, widths, strict=False)):
                space = " " * (width - cell_width(text))
                last = index == len(line) - 1
                text = (text if last else text + space) if self.to_the_left[index] else space + text
                parts.append(Styled(text + ("" if last else GAP), styles[index] if index < len(styles) else ""))
            yield parts


def fold(text: str, width: int | None) -> list[str]:
    """`text` in lines of at most `width`: broken between words, and within one that is wider by itself."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines += [line] if width is None or cell_width(line) <= width else _fold_line(line, max(width, 2))
    return lines


def _fold_line(text: str, width: int) -> Iterator[str]:
    line = ""
    for word in _WORD.findall(text):
        if line and cell_width(line + word.rstrip()) > width:
            yield line.rstrip()
            line = ""
        while cell_width(word.rstrip()) > width:
            head = clip(word, width, ellipsis="")
            yield head
            word = word[len(head) :]
        line += word
    if line.strip():
        yield line.rstrip()


def clip(text: str, width: int, *, ellipsis: str = "…") -> str:
    """The beginning of a text that fits into `width`, with an ellipsis where something was left out."""
    if cell_width(text) <= width:
        return text
    room, taken = width - len(ellipsis), 0
    for index, character in enumerate(text):
        taken += cell_width(character)
        if taken > room:
            return text[:index] + ellipsis
    return text


def cell_width(text: str) -> int:
    """Columns that a terminal takes for a text: two for a wide character, none for a mark that joins the one before."""
    if text.isascii():
        return len(text)
    return sum(map(_character_width, text))


def _character_width(character: str) -> int:
    if character.isascii():
        return 1
    if unicodedata.category(character) in _NO_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
