"""Figures as `/metrics` tells them: Prometheus' text format.

Format: Prometheus, "Exposition formats", version 0.0.4. What is not known has no line.
"""

from collections.abc import Iterable

Row = tuple[str, str, str, float | None]
"""Name, type (`counter`, `gauge`), text, value."""


def format_rows(prefix: str, rows: Iterable[Row]) -> bytes:
    """Lines for a scrape."""
    return "".join(_lines(f"{prefix}_{name}", kind, text, value) for name, kind, text, value in rows).encode()


def _lines(name: str, kind: str, text: str, value: float | None) -> str:
    return "" if value is None else f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name} {value!r}\n"
