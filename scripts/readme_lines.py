"""What the README tells people to type, and what it says that they will see: read out of the page, for who tries it."""

import re
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
_ROW = re.compile(r"^\| (?P<question>[^|`]+) \| `(?P<command>dfqs [^`]+)` \| `(?P<answer>[^`]+)` \|$", re.MULTILINE)
_BLOCK = re.compile(r"```sh\n(?P<lines>.*?)```(?:\n+```text\n(?P<seen>.*?)```)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Line:
    """A command, and what is to be seen of it: each of these somewhere in a line of its output."""

    command: str
    seen: tuple[str, ...] = ()


def questions(text: str | None = None) -> list[Line]:
    """The rows of the table of what can be asked, in order."""
    return [Line(row["command"], (row["answer"],)) for row in _ROW.finditer(text or README.read_text("utf-8"))]


def section(title: str, text: str | None = None) -> list[Line]:
    """Commands of a section's `sh` blocks without comments; what a `text` block shows is seen of the last before it."""
    whole = text or README.read_text("utf-8")
    part = whole.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found: list[Line] = []
    for block in _BLOCK.finditer(part):
        commands = [re.sub(r"\s+#\s.*", "", line).strip() for line in block["lines"].splitlines()]
        lines = [Line(command) for command in commands if command and not command.startswith("#")]
        if block["seen"] and lines:
            shown = tuple(line.strip() for line in block["seen"].splitlines() if line.strip())
            lines[-1] = Line(lines[-1].command, shown)
        found += lines
    return found


def is_seen(expected: str, output: str) -> bool:
    """Whether a line of the output is of that kind: the same words, whatever the numbers; `...` is any text."""
    pattern = ""
    for piece in re.findall(r"\.\.\.|\d[\d,.]*|\s+|[^\d\s.]+|\.", expected.strip()):
        if piece == "...":
            pattern += ".*"
        elif piece[0].isdigit():
            pattern += r"\d[\d,.]*"
        else:
            pattern += r"\s+" if piece.isspace() else re.escape(piece)
    return any(re.search(pattern, line) for line in output.splitlines())
