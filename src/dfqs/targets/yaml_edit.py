"""YAML changed in place: single values of nested mappings, everything else as it stands, comments and form included.

Where values stand is told by the composer of PyYAML; nothing is constructed from a file, so no tag of it does anything.
Aliases that multiply a small file into a large one, recursive ones, and keys that stand twice are refused.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from dfqs.errors import FormatError, printable
from dfqs.storage.documents import MAX_DEPTH
from dfqs.targets.contract import Step
from dfqs.targets.yaml_text import yaml_scalar

LIMIT_CHARACTERS = 400_000
"""The composer is slow; no configuration comes near."""
_MOST_VALUES = 100_000
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*", re.ASCII)
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "none", "y", "n"})


class Yaml:
    """The format, as `ConfigText`. Scalars that are no text, number, truth or null are `(tag, text)`."""

    def read(self, text: str) -> Any:
        node = _compose(text)
        if node is None:
            return {}
        values = _Values()
        return values.of(node, 0)

    def put(self, text: str, way: tuple[Step, ...], value: Any) -> str:
        node = _compose(text)
        if node is None or _is_null(node):
            end = "" if not text or text.endswith("\n") else _newline(text)
            return text + end + _lines(way, value, "", _newline(text))
        for number, step in enumerate(way):
            inner = _inner(node, step)
            if inner is None:
                return self._insert(text, node, way[number:], value)
            if isinstance(inner, yaml.MappingNode) and number + 1 < len(way):
                node = inner
                continue
            return self._replace(text, node, inner, way[number + 1 :], value)
        raise AssertionError("a way has a step")

    def _replace(self, text: str, parent: Any, node: Any, way: tuple[Step, ...], value: Any) -> str:
        """Another scalar, or a mapping where a scalar or nothing was."""
        start, end = node.start_mark.index, node.end_mark.index
        tail = _newline(text) if text[start:end].endswith("\n") else ""
        space = " " if text[start - 1 : start] == ":" else ""
        if not way:
            return f"{text[:start]}{space}{_scalar(value)}{tail}{text[end:]}"
        if parent.flow_style:
            return f"{text[:start]}{space}{_flow(way, value)}{tail}{text[end:]}"
        newline = _newline(text)
        inner = _lines(way, value, _indent_of(parent) + "  ", newline)
        # What follows on the line is a comment.
        line_end = _line_end(text, end)
        comment = text[end:line_end].rstrip()
        return f"{text[:start].rstrip(' ')}{comment}{newline}{inner}{text[_after_line(text, line_end) :]}"

    def _insert(self, text: str, parent: Any, way: tuple[Step, ...], value: Any) -> str:
        """A new key: behind the last one of its mapping, or before the first where that cannot be told."""
        wanted = None
        if parent.flow_style:
            last = parent.end_mark.index - 1
            if not parent.value:
                return f"{text[:last]}{_pair(way, value)}{text[last:]}"
            end = parent.value[-1][1].end_mark.index
            return f"{text[:end]}, {_pair(way, value)}{text[end:]}"
        newline, indent = _newline(text), _indent_of(parent)
        lines = _lines(way, value, indent, newline)
        for position in self._places(text, parent):
            gap = newline if position and text[position - 1] != "\n" else ""
            changed = f"{text[:position]}{gap}{lines}{text[position:]}"
            if wanted is None:
                wanted = changed
            try:
                found = self.read(changed)
            except FormatError:
                continue
            if _is_there(found, parent, way, value):
                return changed
        assert wanted is not None
        return wanted

    def _places(self, text: str, parent: Any) -> Iterator[int]:
        key, value = parent.value[-1]
        leaf = _last_leaf(key, value)
        end = max(leaf.end_mark.index, key.end_mark.index)
        yield end if end and text[end - 1 : end] == "\n" else _after_line(text, _line_end(text, end))
        first = parent.value[0][0].start_mark
        yield first.index - first.column

    def take_out(self, text: str, way: tuple[Step, ...]) -> str:
        node = _compose(text)
        parent, holder = node, None
        for step in way[:-1]:
            holder = next(key for key, _ in parent.value if key.value == step)
            parent = _inner(parent, step)
        assert isinstance(parent, yaml.MappingNode)
        number = next(i for i, (key, _) in enumerate(parent.value) if key.value == way[-1])
        key, value = parent.value[number]
        if parent.flow_style:
            start = key.start_mark.index
            end = value.end_mark.index
            if number + 1 < len(parent.value):
                end = parent.value[number + 1][0].start_mark.index
            elif number:
                start = parent.value[number - 1][1].end_mark.index
            return text[:start] + text[end:]
        start = key.start_mark.index - key.start_mark.column
        leaf = _last_leaf(key, value)
        end = max(leaf.end_mark.index, key.end_mark.index)
        end = end if text[end - 1 : end] == "\n" else _after_line(text, _line_end(text, end))
        if len(parent.value) == 1 and holder is not None:
            # With nothing in it, it would be null.
            colon = text.index(":", holder.end_mark.index) + 1
            return f"{text[:colon]} {{}}{text[colon:start]}{text[end:]}"
        return text[:start] + text[end:]


class _Values:
    """Plain values of nodes, each made once, with a bound on how many there are when aliases are followed."""

    def __init__(self) -> None:
        self.made: dict[int, Any] = {}
        self.sizes: dict[int, int] = {}
        self.open: set[int] = set()

    def of(self, node: Any, depth: int) -> Any:
        if id(node) in self.made:
            return self.made[id(node)]
        if id(node) in self.open or depth > MAX_DEPTH:
            raise FormatError(f"line {node.start_mark.line + 1}: nested in itself, or too deeply")
        self.open.add(id(node))
        value, size = self._make(node, depth)
        self.open.discard(id(node))
        if size > _MOST_VALUES:
            raise FormatError(f"line {node.start_mark.line + 1}: more values than a configuration has")
        self.made[id(node)], self.sizes[id(node)] = value, size
        return value

    def _make(self, node: Any, depth: int) -> tuple[Any, int]:
        if isinstance(node, yaml.ScalarNode):
            return _plain(node), 1
        if isinstance(node, yaml.SequenceNode):
            items = [self.of(item, depth + 1) for item in node.value]
            return items, 1 + sum(self.sizes[id(item)] for item in node.value)
        pairs: dict[Any, Any] = {}
        size = 1
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise FormatError(f"line {key.start_mark.line + 1}: a key that is no text")
            # `<<` merges; two of it are one too many as well.
            name = key.value
            if name in pairs:
                line = key.start_mark.line + 1
                raise FormatError(f"line {line}: the key '{printable(name)}' stands twice in one mapping")
            pairs[name] = self.of(value, depth + 1)
            size += self.sizes[id(value)]
        return pairs, size


def _compose(text: str) -> Any:
    """The tree of the one document of a text; None: it has nothing but comments.

    Raises:
        FormatError: it is no YAML, or more than one document.
    """
    if len(text) > LIMIT_CHARACTERS:
        raise FormatError(f"larger than the {LIMIT_CHARACTERS:,} characters that a configuration can have")
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise FormatError("nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise FormatError(f"{line}no YAML: {printable(getattr(error, 'problem', None) or str(error), 200)}") from None


def _plain(node: Any) -> Any:
    """A scalar's value."""
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind == "str":
        return node.value
    if kind == "null":
        return None
    if kind == "bool":
        return node.value.lower() in ("true", "yes", "on")
    if kind == "int" and re.fullmatch(r"0|[+-]?[1-9][0-9]{0,18}", node.value):
        return int(node.value)
    return [kind, node.value]


def _is_null(node: Any) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")


def _inner(node: Any, step: Step) -> Any:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for key, value in node.value if key.value == step), None)


def _last_leaf(key: Any, node: Any) -> Any:
    """Where a value ends: its last scalar, or what stands on the line of its key (an alias stands elsewhere)."""
    while True:
        if node.start_mark.index < key.end_mark.index:
            return key
        if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
            key, node = node.value[-1]
        elif isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
            node = node.value[-1]
        else:
            return node


def _is_there(values: Any, parent: Any, way: tuple[Step, ...], value: Any) -> bool:
    """Whether a changed text has the value somewhere; that nothing else changed is held by whoever asked for it."""
    waiting = [values]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            inner: Any = item
            for step in way:
                inner = inner.get(step) if isinstance(inner, dict) else None
            if inner == value and len(item) == len(parent.value) + 1:
                return True
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return False


def _lines(way: tuple[Step, ...], value: Any, indent: str, newline: str) -> str:
    """A value with its keys, a line each, in block form."""
    lines = [f"{indent}{'  ' * depth}{_key(step)}:" for depth, step in enumerate(way)]
    lines[-1] += f" {_scalar(value)}"
    return newline.join(lines) + newline


def _pair(way: tuple[Step, ...], value: Any) -> str:
    first, rest = way[0], way[1:]
    return f"{_key(first)}: {_flow(rest, value) if rest else _scalar(value)}"


def _flow(way: tuple[Step, ...], value: Any) -> str:
    return "{" + _pair(way, value) + "}"


def _key(step: Step) -> str:
    assert isinstance(step, str)
    return step if _PLAIN.fullmatch(step) and step.lower() not in _WORDS else yaml_scalar(step)


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise FormatError("is no single value, which is all that is put into YAML here")
    return value if _PLAIN.fullmatch(value) and value.lower() not in _WORDS else yaml_scalar(value)


def _indent_of(parent: Any) -> str:
    return " " * int(parent.value[0][0].start_mark.column)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _line_end(text: str, position: int) -> int:
    """Where the line of a position ends, its line break not counted."""
    end = text.find("\n", position)
    if end < 0:
        return len(text)
    return end - 1 if end > position and text[end - 1] == "\r" else end


def _after_line(text: str, line_end: int) -> int:
    """Behind the line break at a line's end."""
    if text.startswith("\r\n", line_end):
        return line_end + 2
    return line_end + 1 if text.startswith("\n", line_end) else line_end
