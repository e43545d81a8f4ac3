"""JSON as people keep it (`//` and `/* */` comments, a comma before a closing bracket): read, and changed in place.

What is not changed keeps every character: comments, order, indentation, line ends. Bounded as every JSON from outside:
no nesting beyond `MAX_DEPTH`, no number beyond 64 bits, no key twice (programs differ in which of the two counts).
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from dfqs.errors import FormatError, printable
from dfqs.storage.documents import MAX_DEPTH
from dfqs.targets.contract import Named, Step

_SPACE = re.compile(r"(?:[ \t\r\n]|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,3})?(?![\w.])")
_WORDS = {"true": True, "false": False, "null": None}
_MOST_VALUES = 200_000


@dataclass(slots=True)
class Node:
    """A value and where it stands."""

    start: int
    end: int
    value: Any
    members: dict[str, tuple[int, "Node"]] = field(default_factory=dict)
    """Of an object: where the key begins, and the value."""
    items: list["Node"] = field(default_factory=list)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Of members (with their keys) or items, in order."""
        if self.members:
            return [(start, node.end) for start, node in self.members.values()]
        return [(node.start, node.end) for node in self.items]

    def inner(self, step: Step) -> "Node | None":
        """The value one step further in."""
        if isinstance(step, Named):
            same = (
                item for item in self.items if isinstance(item.value, dict) and item.value.get(step.key) == step.value
            )
            return next(same, None)
        found = self.members.get(step)
        return found[1] if found is not None else None


class Jsonc:
    """The format, as `ConfigText`."""

    def read(self, text: str) -> Any:
        return _parse(text).value if text.strip() else {}

    def put(self, text: str, way: tuple[Step, ...], value: Any) -> str:
        if not text.strip():
            text = "{}\n"
        node = _parse(text)
        for number, step in enumerate(way):
            inner = node.inner(step)
            if node.value is None:
                # Empty and not there are the same.
                value, inner = _nested(way[number:], value), node
                break
            if inner is None:
                return _insert(text, node, way[number], _nested(way[number + 1 :], value))
            node = inner
        return text[: node.start] + _written(value, *_style(text, node.start)) + text[node.end :]

    def take_out(self, text: str, way: tuple[Step, ...]) -> str:
        node = _parse(text)
        for step in way[:-1]:
            inner = node.inner(step)
            assert inner is not None
            node = inner
        target = node.inner(way[-1])
        assert target is not None
        number = next(i for i, span in enumerate(node.spans) if span[1] == target.end)
        return _cut(text, node, number)


def _nested(way: tuple[Step, ...], value: Any) -> Any:
    """A value with the objects and lists around it that its way names."""
    for step in reversed(way):
        if isinstance(step, Named):
            value = [{step.key: step.value, **value} if isinstance(value, dict) else value]
        else:
            value = {step: value}
    return value


def _insert(text: str, parent: Node, step: Step, value: Any) -> str:
    """A new member or item behind the last one."""
    indent, unit, newline = _style(text, parent.start)
    if isinstance(step, Named):
        if not isinstance(value, dict):
            raise FormatError("is no object", name=step.key)
        key, value = "", {step.key: step.value, **value}
    else:
        key = json.dumps(step, ensure_ascii=False) + ": "
    close, spans = parent.end - 1, parent.spans
    one_line = bool(spans) and "\n" not in text[parent.start : parent.end]
    if one_line:
        written = key + json.dumps(value, ensure_ascii=False)
        last = spans[-1][1]
        return f"{text[:last]}, {written}{text[last:]}"
    if spans:
        indent_inner = _line_indent(text, spans[0][0]) if _begins_line(text, spans[0][0]) else indent + unit
    else:
        indent_inner = indent + unit
    written = key + _written(value, indent_inner, unit, newline)
    last = spans[-1][1] if spans else parent.start + 1
    gap = text[last:close]
    has_comma = "," in _bare(gap)
    # Behind what stands after the last one: a comment belongs to that.
    kept = gap.rstrip(" \t\r\n")
    comma = "" if has_comma or not spans else ","
    ending = "," if has_comma else ""
    tail = gap[len(kept) :]
    if "\n" not in tail:
        tail = newline + indent
    return f"{text[:last]}{comma}{kept}{newline}{indent_inner}{written}{ending}{tail}{text[close:]}"


def _cut(text: str, parent: Node, number: int) -> str:
    """Without one member or item, and without one comma; comments around it stay."""
    spans = parent.spans
    start, end = spans[number]
    before = spans[number - 1][1] if number else parent.start + 1
    after = spans[number + 1][0] if number + 1 < len(spans) else parent.end - 1
    between, behind = text[before:start], text[end:after]
    kept = between.rstrip(" \t")
    kept = kept.removesuffix("\n").removesuffix("\r") if kept.endswith("\n") else kept
    comma = _comma(behind)
    if comma is not None:
        behind = behind[:comma] + behind[comma + 1 :]
        if not kept.strip() and not number and "\n" not in between:
            behind = behind.lstrip(" ")
    elif number and (comma := _comma(kept)) is not None:
        kept = kept[:comma] + kept[comma + 1 :]
    rest = kept + behind
    if len(spans) == 1 and not rest.strip():
        rest = ""
    return text[:before] + rest + text[after:]


def _comma(gap: str) -> int | None:
    """Where the comma of a gap between values stands, comments not counted."""
    position = 0
    while position < len(gap):
        position = _skip(gap, position)
        if position < len(gap) and gap[position] == ",":
            return position
        position += 1
    return None


def _bare(gap: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", gap, flags=re.DOTALL)


def _style(text: str, position: int) -> tuple[str, str, str]:
    """Indentation of a line, the step of indentation, and the line end of a text."""
    newline = "\r\n" if "\r\n" in text else "\n"
    found = re.search(r"[{\[][ \t]*(?://[^\n]*)?\r?\n([ \t]+)\S", text)
    return _line_indent(text, position), found[1] if found else "  ", newline


def _line_indent(text: str, position: int) -> str:
    line = text[text.rfind("\n", 0, position) + 1 : position]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _begins_line(text: str, position: int) -> bool:
    return not text[text.rfind("\n", 0, position) + 1 : position].strip(" \t")


def _written(value: Any, indent: str, unit: str, newline: str) -> str:
    """A value over several lines, the first of which goes behind what stands there."""
    if isinstance(value, dict | list) and not value:
        return json.dumps(value)
    return json.dumps(value, ensure_ascii=False, indent=unit).replace("\n", newline + indent)


def _parse(text: str) -> Node:
    """The value of a whole text.

    Raises:
        FormatError: it is none.
    """
    reader = _Reader(text)
    position = _skip(text, 0)
    node = reader.value(position, 0)
    if (end := _skip(text, node.end)) != len(text):
        raise _wrong(text, end, "something follows the value")
    return node


class _Reader:
    """One pass over a text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.count = 0

    def value(self, position: int, depth: int) -> Node:
        self.count += 1
        if self.count > _MOST_VALUES or depth > MAX_DEPTH:
            raise _wrong(self.text, position, "more values than a configuration has")
        char = self.text[position : position + 1]
        if char == "{":
            return self._object(position, depth)
        if char == "[":
            return self._list(position, depth)
        if char == '"':
            return self._string(position)
        for word, value in _WORDS.items():
            if self.text.startswith(word, position):
                return Node(position, position + len(word), value)
        if (match := _NUMBER.match(self.text, position)) is not None:
            return Node(position, match.end(), json.loads(match[0]))
        raise _wrong(self.text, position, "no value begins here")

    def _string(self, position: int) -> Node:
        match = _STRING.match(self.text, position)
        if match is None:
            raise _wrong(self.text, position, "a string that does not end, or has a control character in it")
        try:
            value = json.loads(match[0])
            value.encode()
        except ValueError:
            raise _wrong(self.text, position, "a string that is no text") from None
        return Node(position, match.end(), value)

    def _object(self, start: int, depth: int) -> Node:
        node = Node(start, start, {})
        position = _skip(self.text, start + 1)
        while self.text[position : position + 1] != "}":
            if self.text[position : position + 1] != '"':
                raise _wrong(self.text, position, "a key is wanted here")
            key = self._string(position)
            colon = _skip(self.text, key.end)
            if self.text[colon : colon + 1] != ":":
                raise _wrong(self.text, colon, "a colon is wanted here")
            value = self.value(_skip(self.text, colon + 1), depth + 1)
            if key.value in node.members:
                raise _wrong(self.text, position, f"the key '{printable(key.value)}' stands twice in one object")
            node.members[key.value] = (position, value)
            node.value[key.value] = value.value
            position = self._next(value.end, "}")
        node.end = position + 1
        return node

    def _list(self, start: int, depth: int) -> Node:
        node = Node(start, start, [])
        position = _skip(self.text, start + 1)
        while self.text[position : position + 1] != "]":
            value = self.value(position, depth + 1)
            node.items.append(value)
            node.value.append(value.value)
            position = self._next(value.end, "]")
        node.end = position + 1
        return node

    def _next(self, position: int, close: str) -> int:
        position = _skip(self.text, position)
        char = self.text[position : position + 1]
        if char == ",":
            return _skip(self.text, position + 1)
        if char != close:
            raise _wrong(self.text, position, f"a comma or '{close}' is wanted here")
        return position


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


def _wrong(text: str, position: int, why: str) -> FormatError:
    line = text.count("\n", 0, position) + 1
    return FormatError(f"line {line}: {why}")
