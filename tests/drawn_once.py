"""Pictures of reports, drawn once a session: matplotlib takes a tenth of a second for each, and a hundred tests look at
pages of the same few reports.

What a picture is drawn from is what it is found again by, and the same figures give the same bytes (`dfqs.figure`), so
a page is what it would be. Processes that tests start draw for themselves.
"""

import hashlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from dfqs.report import comparison_page, page
from dfqs.report.schema import Report

find_drawing = page.find_drawing


class Drawn(ModuleType):
    """What draws, with a memory."""

    def __init__(self, drawing: ModuleType) -> None:
        super().__init__(drawing.__name__)
        self._drawing, self._kept = drawing, dict[tuple[str, bytes], Any]()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        draw = getattr(self._drawing, name)

        def drawn(*arguments: Any) -> Any:
            key = (name, hashlib.sha256(repr([*map(drawn_part, arguments)]).encode()).digest())
            if key not in self._kept:
                self._kept[key] = draw(*arguments)
            return self._kept[key]

        return drawn


def drawn_part(argument: Any) -> Any:
    """Of a report, which may have words of 100 MB, what has numbers."""
    return (argument.details, argument.metrics) if isinstance(argument, Report) else argument


_drawn: dict[ModuleType, Drawn] = {}


def find_drawn() -> tuple[ModuleType | None, str | None]:
    """`find_drawing`, asked each time: a test may have hidden matplotlib."""
    drawing, reason = find_drawing()
    return (_drawn.setdefault(drawing, Drawn(drawing)), None) if drawing is not None else (None, reason)


def draw_once() -> None:
    """For this process."""
    for module in (page, comparison_page):
        vars(module)[find_drawing.__name__] = find_drawn
