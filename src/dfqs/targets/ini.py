"""llama.cpp's preset files (INI) changed in place.

Grammar: llama.cpp `common/preset.cpp`. Sections and keys begin their line; a value ends before `;` or `#`; nothing can
be escaped; a section that stands twice forgets what stood in the first. Keys before any section are of the section "".
"""

import re
from dataclasses import dataclass
from typing import Any

from dfqs.errors import FormatError, printable
from dfqs.targets.contract import Step

_COMMENT = r"[ \t]*(?:[;#].*)?"
_HEADER = re.compile(rf"\[[ \t]*([^\]\r\n]+?)[ \t]*\]{_COMMENT}")
_PAIR = re.compile(rf"(([a-zA-Z_][a-zA-Z0-9_.-]*)[ \t]*=[ \t]*)([^;#\r\n]*?)({_COMMENT})")
_EMPTY = re.compile(_COMMENT)


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    section: str
    key: str | None
    value: str


class Ini:
    """The format, as `ConfigText`: sections of keys, all values text."""

    def read(self, text: str) -> dict[str, dict[str, str]]:
        values: dict[str, dict[str, str]] = {"": {}}
        for line in _lines(text):
            if line.key is None:
                if line.section in values:
                    name = printable(line.section)
                    raise FormatError(f"line {line.number + 1}: the section '{name}' stands twice")
                values[line.section] = {}
                continue
            section = values[line.section]
            if line.key in section:
                raise FormatError(f"line {line.number + 1}: the key '{line.key}' stands twice in one section")
            section[line.key] = line.value
        return values

    def put(self, text: str, way: tuple[Step, ...], value: Any) -> str:
        section, key = _names(way)
        if not isinstance(value, str) or re.search(r"[;#\r\n]", value) or value != value.strip(" \t"):
            raise FormatError("a value that a preset file cannot hold", name=key)
        lines, newline = _split(text), "\r\n" if "\r\n" in text else "\n"
        written = f"{key} = {value}"
        last = None
        for line in _lines(text):
            if line.section == section:
                last = line.number
                if line.key == key:
                    match = _PAIR.fullmatch(lines[line.number].rstrip("\r\n"))
                    assert match is not None
                    end = lines[line.number][len(lines[line.number].rstrip("\r\n")) :]
                    lines[line.number] = f"{match[1]}{value}{match[4]}{end}"
                    return "".join(lines)
        if last is None and section:
            gap = "" if not text else newline if text.endswith("\n") else 2 * newline
            return f"{text}{gap}[{section}]{newline}{written}{newline}"
        at = 0 if last is None else last + 1
        if at and not lines[at - 1].endswith("\n"):
            lines[at - 1] += newline
        lines.insert(at, written + newline)
        return "".join(lines)

    def take_out(self, text: str, way: tuple[Step, ...]) -> str:
        lines = _split(text)
        found = [line for line in _lines(text) if line.section == way[0] and (len(way) == 1 or line.key == way[1])]
        for line in reversed(found):
            del lines[line.number]
        if len(way) == 1 and found and found[0].number and not lines[found[0].number - 1].strip():
            # The empty line that was put before it.
            del lines[found[0].number - 1]
        return "".join(lines)


def _names(way: tuple[Step, ...]) -> tuple[str, str]:
    section, key = way
    assert isinstance(section, str) and isinstance(key, str)
    if re.search(r"[\]\r\n]", section) or section != section.strip(" \t"):
        raise FormatError("a name that a preset file cannot hold", name=section)
    return section, key


def _split(text: str) -> list[str]:
    """Lines with their ends. Python knows more line ends than this grammar."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _lines(text: str) -> list[_Line]:
    """Headers and pairs.

    Raises:
        FormatError: a line is none of what the grammar has.
    """
    found, section = [], ""
    for number, line in enumerate(part.removesuffix("\n").removesuffix("\r") for part in _split(text)):
        if (match := _HEADER.fullmatch(line)) is not None:
            section = match[1]
            found.append(_Line(number, section, None, ""))
        elif (match := _PAIR.fullmatch(line)) is not None:
            found.append(_Line(number, section, match[2], match[3]))
        elif _EMPTY.fullmatch(line) is None:
            raise FormatError(f"line {number + 1}: neither a section, nor 'key = value', nor a comment")
    return found
