"""Words from outside made fit for a page: nothing in them is hidden, reorders a line, or takes the page's room."""

from markupsafe import escape

TEXT_BYTES = 600
"""Of a name, a reason or a sentence."""


class Shown(str):
    """Words that were made fit already."""

    __slots__ = ()


def shown(text: str, limit_bytes: int = TEXT_BYTES, *, lines: bool = False) -> Shown:
    """`text` as it can be read: what cannot be seen stands there as its number; still to be escaped by the template.

    Args:
        limit_bytes: of the page, that it may take when escaped.
        lines: line breaks and tabs stay as they are.
    """
    # Never the whole of a text of 100 MB.
    kept = text[: limit_bytes + 1]
    if kept.isprintable():
        plain = kept
    else:
        plain = "".join(
            c if c.isprintable() or (lines and c in "\n\t") else c.encode("unicode_escape").decode() for c in kept
        )
    size = len(str(escape(plain)).encode())
    if len(text) <= limit_bytes and size <= limit_bytes:
        return Shown(plain)
    plain = plain[: max(1, int(len(plain) * min(1.0, limit_bytes / size)))]
    return Shown(f"{plain}... [{len(text):,} characters in all]")
