"""A JSON schema as a grammar that llama.cpp samples by (GBNF): what is said under it is JSON that the schema accepts.

Of JSON Schema (2020-12) what describes shapes is taken: types, properties, required, additional ones, items and their
number, lengths of strings, enum, const, anyOf, references within the document. What a grammar cannot keep (bounds of
numbers, patterns, formats, exclusions) is refused by name and place: nothing is left out silently. Properties come in
the schema's order; where it names some, no others are written.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from dfqs.errors import UsageError, printable

_BASE = {
    "space": r'| " " | "\n" [ \t]{0,20}',
    "char": r'[^"\\\x7F\x00-\x1F] | [\\] (["\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    "string": r'"\"" char* "\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": '"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "member": 'string space ":" space value',
    "object": '"{" space (member ("," space member)* space)? "}"',
    "array": '"[" space (value ("," space value)* space)? "]"',
    "value": "object | array | string | number | boolean | null",
}
"""Rules for any JSON; numbers are bounded to what every reader of JSON can hold."""
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_NOTES = frozenset({"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"})
_ROOT_NOTES = frozenset({"$schema", "$id", "$defs", "definitions"})
_OF_TYPE = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength"}),
}
_CHOICES = ("$ref", "const", "enum", "anyOf")
_MOST_RULES = 5000
_MOST_REPEATS = 1000
"""llama.cpp writes a repetition out, so many times."""


def grammar_of_schema(schema: Any) -> str:
    """The grammar (GBNF, from its rule `root`) of a schema, as `json.loads` gives it.

    Raises:
        UsageError: it is no schema, or holds what a grammar cannot keep; says what and where.
    """
    try:
        return _Grammar(schema).text()
    except RecursionError:
        raise _wrong("#", "goes deeper than any answer") from None


class _Grammar:
    def __init__(self, schema: Any) -> None:
        self._whole = schema
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._root = self._rule(schema, "#", "root")

    def text(self) -> str:
        root = {} if self._root == "root" else {"root": self._root}
        return "".join(f"{name} ::= {body}\n" for name, body in {**root, **self._rules, **_BASE}.items())

    def _rule(self, schema: Any, place: str, name: str | None = None) -> str:
        """The name of a rule for a schema."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            raise _wrong(place, "is no schema (an object, or true)")
        if len(self._rules) >= _MOST_RULES:
            raise _wrong(place, f"is one of more than {_MOST_RULES:,} parts; no answer needs so many")
        if "$ref" in schema:
            return self._reference(schema, place)
        name = name or f"r{len(self._rules)}"
        # The place is taken first: rules that it uses are numbered on.
        self._rules[name] = ""
        self._rules[name] = self._body(schema, place)
        return name

    def _body(self, schema: Mapping[str, Any], place: str) -> str:
        given = [key for key in _CHOICES if key in schema]
        if given:
            choice = given[0]
            _refuse_others(schema, {choice, "type"} if choice in ("const", "enum") else {choice}, place)
            if choice == "anyOf":
                return " | ".join(self._each(schema["anyOf"], f"{place}/anyOf"))
            values = [schema["const"]] if choice == "const" else schema["enum"]
            return " | ".join(_literals(values, _types(schema, place), f"{place}/{choice}"))
        types = _types(schema, place)
        allowed = {"type"}.union(*(_OF_TYPE.get(type_, frozenset()) for type_ in types))
        _refuse_others(schema, allowed, place)
        builders: dict[str, Callable[[Mapping[str, Any], str], str]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
        }
        return " | ".join(builders[t](schema, place) if t in builders else t for t in types)

    def _reference(self, schema: Mapping[str, Any], place: str) -> str:
        _refuse_others(schema, {"$ref"}, place)
        target = schema["$ref"]
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            raise _wrong(f"{place}/$ref", "leads out of the document")
        if target == "#":
            if not isinstance(self._whole, Mapping) or "$ref" in self._whole:
                raise _wrong(f"{place}/$ref", "leads to another reference; write its target")
            return "root"
        if target not in self._references:
            found: Any = self._whole
            for part in target[2:].split("/"):
                key = part.replace("~1", "/").replace("~0", "~")
                if not isinstance(found, Mapping) or key not in found:
                    raise _wrong(f"{place}/$ref", f"leads nowhere: {printable(target)}")
                found = found[key]
            if isinstance(found, Mapping) and "$ref" in found:
                raise _wrong(f"{place}/$ref", "leads to another reference; write its target")
            self._references[target] = name = f"d{len(self._references)}"
            if self._rule(found, target, name) != name:
                self._rules[name] = "value"
        return self._references[target]

    def _each(self, schemas: Any, place: str) -> list[str]:
        if not isinstance(schemas, list) or not schemas:
            raise _wrong(place, "is no list of schemas")
        return [self._rule(schema, f"{place}/{number}") for number, schema in enumerate(schemas)]

    def _object(self, schema: Mapping[str, Any], place: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise _wrong(place, "has properties that are no object, or required ones that are no list")
        more = schema.get("additionalProperties", True)
        if missing := [name for name in required if not isinstance(name, str) or name not in properties]:
            raise _wrong(
                f"{place}/required", f"asks for {printable(str(missing[0]))!r}, which properties does not have"
            )
        if not properties:
            if more is False:
                return r'"{" space "}"'
            member = f'string space ":" space {self._rule(more, f"{place}/additionalProperties")}'
            return f'"{{" space ({member} ("," space {member})* space)? "}}"'
        members = [
            (f'{_literal(name)} space ":" space {self._rule(value, f"{place}/properties/{name}")}', name in required)
            for name, value in properties.items()
        ]
        return rf'"{{" space {self._members(members)} "}}"'

    def _members(self, members: list[tuple[str, bool]]) -> str:
        """Members in order, those that may be left out too. Of each rest there are two rules: where nothing stands
        before it, and where a comma comes first."""
        first = behind = '""'
        for member, is_required in reversed(members):
            after = self._named(f'"," space {member} {behind}' + ("" if is_required else f" | {behind}"))
            first = self._named(f"{member} {behind}" + ("" if is_required else f" | {first}"))
            behind = after
        # The last comma and the closing brace have their space here.
        return f"{first} space"

    def _array(self, schema: Mapping[str, Any], place: str) -> str:
        least, most = _bounds(schema, "Items", place)
        item = self._rule(schema.get("items", True), f"{place}/items")
        if most == 0:
            return r'"[" space "]"'
        end = "" if most is None else str(most - 1)
        several = f'{item} ("," space {item}){{{max(least - 1, 0)},{end}}} space'
        return f'"[" space {several} "]"' if least else f'"[" space ({several})? "]"'

    def _string(self, schema: Mapping[str, Any], place: str) -> str:
        least, most = _bounds(schema, "Length", place)
        return "string" if (least, most) == (0, None) else rf'"\"" char{{{least},{"" if most is None else most}}} "\""'

    def _named(self, body: str) -> str:
        name = f"r{len(self._rules)}"
        self._rules[name] = body
        return name


def _types(schema: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """The types that it speaks of; without a word about them, what its other keys are of, or all."""
    given = schema.get("type")
    types = tuple(given) if isinstance(given, list) else (given,)
    if given is None:
        return tuple(type_ for type_, keys in _OF_TYPE.items() if keys & set(schema)) or _TYPES
    if not types or not all(type_ in _TYPES for type_ in types):
        raise _wrong(f"{place}/type", f"is not of {', '.join(_TYPES)}")
    return types


def _bounds(schema: Mapping[str, Any], what: str, place: str) -> tuple[int, int | None]:
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}")
    for key, value in ((f"min{what}", least), (f"max{what}", 0 if most is None else most)):
        if type(value) is not int or not 0 <= value <= _MOST_REPEATS:
            raise _wrong(f"{place}/{key}", f"is no number from 0 to {_MOST_REPEATS:,}")
    if most is not None and most < least:
        raise _wrong(place, f"wants at least {least} and at most {most}")
    return least, most


def _literals(values: Any, types: tuple[str, ...], place: str) -> list[str]:
    if not isinstance(values, list) or not values:
        raise _wrong(place, "is no list of values")
    names = {dict: "object", list: "array", str: "string", float: "number", int: "integer", bool: "boolean"}
    found = []
    for value in values:
        type_ = names.get(type(value), "null")
        if type_ in types or (type_ == "integer" and "number" in types):
            found.append(_literal(value))
    if not found:
        raise _wrong(place, "has no value of the type that is asked for")
    return found


def _literal(value: Any) -> str:
    """A JSON value as a terminal of the grammar."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        text.encode()
    except (UnicodeEncodeError, ValueError):
        text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\x7f", "\\x7F") + '"'


def _refuse_others(schema: Mapping[str, Any], taken: set[str], place: str) -> None:
    notes = _NOTES | (_ROOT_NOTES if place == "#" else frozenset())
    for key in schema:
        if key not in taken and key not in notes:
            raise _wrong(
                f"{place}/{key}", "is nothing that a grammar can keep to here; leave it out, or check the answer"
            )


def _wrong(place: str, what: str) -> UsageError:
    return UsageError(f"the JSON schema cannot be followed: {printable(place, 160)} {what}")
