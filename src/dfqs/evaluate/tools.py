"""Scores tool calls: does the model call when it should, and is the call valid by its schema and the one asked for.

Tools are offered in the prompt's text, so that every model and every endpoint is asked in the same words; calls are
understood in the forms that models were trained to write them in.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dfqs.evaluate.prompts import PromptSet, ToolItem
from dfqs.evaluate.scores import Completion, ScoredItem, Verdict
from dfqs.evaluate.stages import TOOLS

CANDIDATES = 200
"""Places looked at where a call may begin."""
NESTING = 40
_BEGIN = re.compile(r"[{\[]")
_NAMED = re.compile(r"(?:<function=|functions\.|\bto=functions\.)([\w-]{1,64})>?[^{\n]{0,80}(?=\{)")
_BEFORE_JSON = r"(?<![\w\"'-])({names})[^\w{{\"'.,;:!?]{{0,24}}(?:```(?:json)?)?\s{{0,4}}(?=\{{)"
"""A tool's own name right in front of its arguments: forms whose marks are special tokens, which are not text."""
_MARK = r"[^\s<>]{0,12}"
_ELEMENT = re.compile(
    rf"""<(?:{_MARK}invoke\ name="|function=)([\w-]{{1,64}})"?>(.{{0,4000}}?)</(?:{_MARK}invoke|function)>""", re.S
)
_PARAMETER = re.compile(
    rf"""<(?:{_MARK}parameter\ name="|parameter=)([\w-]{{1,64}})"?([^>\n]{{0,40}})>(.{{0,2000}}?)</{_MARK}parameter>""",
    re.S,
)
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def tool_prompt(set_: PromptSet[ToolItem], item: ToolItem) -> str:
    """What the model is asked: the set's instruction with the tools and the question."""
    tools = "\n".join(json.dumps(tool) for tool in item.tools)
    return set_.prompt(f"{tools}\n\nMessage: {item.question}")


def score_tools(item: ToolItem, completion: Completion) -> ScoredItem:
    """Right when it calls exactly where a call is needed, and the call is valid and has the arguments asked for."""
    place: dict[str, str | int | float] = {
        "level": item.level,
        "needed": int(item.call is not None),
        "called": 0,
        "valid": 0,
    }
    refusal = completion.refusal()
    if refusal is not None:
        return ScoredItem(stage=TOOLS, item=item.id, verdict=refusal, completion=completion, place=place)
    call = find_call(completion.text, {str(tool["name"]) for tool in item.tools})
    fault = None if call is None else schema_fault(call, item.tools)
    place |= {"called": int(call is not None), "valid": int(call is not None and fault is None)}
    if item.call is None or call is None:
        right, detail = (
            call is item.call,
            "" if call is item.call else "a call that was not needed" if call else "no call",
        )
    else:
        right = fault is None and _same(call, item.call)
        detail = fault or ("" if right else "another call than the one asked for")
    return ScoredItem(
        stage=TOOLS,
        item=item.id,
        verdict=Verdict.RIGHT if right else Verdict.WRONG,
        answer=None if call is None else json.dumps(call, ensure_ascii=False)[:2000],
        detail=detail,
        completion=completion,
        place=place,
    )


def find_call(text: str, names: set[str]) -> dict[str, Any] | None:
    """The first call in `text`; None: there is none. See `find_calls`."""
    return next(find_calls(text, names), None)


def find_calls(text: str, names: set[str]) -> Iterator[dict[str, Any]]:
    """The calls in `text`, as `{"name", "arguments"}`.

    JSON with a name and arguments (`parameters`, or a `function` around them), in any marks or in a list; a function's
    name in front of JSON; or elements with an element for each argument (`<function=f><parameter=x>1</parameter>`,
    `<invoke name="f">`). A name that no tool has is a call, too, where it comes with arguments.
    """
    calls = [*_elements(text), *_named(text, names)]
    if calls:
        yield from calls
        return
    for value in _documents(text):
        for entry in _entries(value):
            call = _as_call(entry, names)
            if call is not None:
                yield call


def schema_fault(call: Mapping[str, Any], tools: tuple[dict[str, Any], ...]) -> str | None:
    """What makes a call invalid by the tools' schemas; None: nothing."""
    tool = next((tool for tool in tools if tool["name"] == call["name"]), None)
    if tool is None:
        return f"no tool {str(call['name'])[:60]}"
    return _fault(call["arguments"], tool["parameters"], "arguments")


def _fault(value: Any, schema: Mapping[str, Any], where: str) -> str | None:
    """The subset of JSON Schema that our tools use."""
    kind = schema["type"]
    inside: Any = value
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return f"{where} is no {kind}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is none of {', '.join(schema['enum'])}"
    if "minimum" in schema and value < schema["minimum"]:
        return f"{where} is below {schema['minimum']}"
    if kind == "array":
        faults = (_fault(each, schema["items"], f"{where}[{index}]") for index, each in enumerate(inside))
        return next((fault for fault in faults if fault), None)
    if kind != "object":
        return None
    missing = [name for name in schema["required"] if name not in inside]
    unknown = [name for name in inside if name not in schema["properties"]]
    if missing or unknown:
        return f"{where} without {missing[0]}" if missing else f"{where} with an unknown {str(unknown[0])[:60]}"
    found = (_fault(each, schema["properties"][name], name) for name, each in inside.items())
    return next((fault for fault in found if fault), None)


def _same(call: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return bool(call["name"] == wanted["name"]) and _plain(call["arguments"]) == _plain(wanted["arguments"])


def _plain(value: Any) -> Any:
    """Letters' case and spaces around texts do not matter, nor the order of a list's things."""
    if isinstance(value, str):
        return " ".join(value.lower().split())
    if isinstance(value, list):
        return sorted(str(_plain(each)) for each in value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value


def _named(text: str, names: set[str]) -> Iterator[dict[str, Any]]:
    patterns = [_NAMED]
    if names:
        own = _BEFORE_JSON.format(names="|".join(map(re.escape, sorted(names, key=len, reverse=True))))
        patterns.append(re.compile(own))
    matches = {match.end(): match for pattern in patterns for match in pattern.finditer(text)}
    for end, match in sorted(matches.items()):
        value = _json_at(text, end)
        if isinstance(value, dict):
            yield {"name": match[1], "arguments": value}


def _elements(text: str) -> Iterator[dict[str, Any]]:
    for element in _ELEMENT.finditer(text):
        parameters = _PARAMETER.findall(element[2])
        if parameters:
            yield {"name": element[1], "arguments": {name: _value(*rest) for name, *rest in parameters}}


def _value(marks: str, text: str) -> Any:
    """Of an argument's element: JSON where it is some and not said to be text."""
    value = None if 'string="true"' in marks else _parse(text)
    return text.strip() if value is None else value


def _entries(value: Any) -> list[Any]:
    """What can be a call in a JSON value: itself, or what a list or `tool_calls` has."""
    calls = value.get("tool_calls") if isinstance(value, dict) else value
    return calls if isinstance(calls, list) else [value]


def _as_call(value: Any, names: set[str]) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    for key in ("function", "tool_call", "function_call"):
        if isinstance(value.get(key), dict):
            return _as_call(value[key], names)
    name = next(
        (value[key] for key in ("name", "tool", "tool_name", "function") if isinstance(value.get(key), str)), None
    )
    arguments = next((value[key] for key in ("arguments", "parameters", "args") if key in value), None)
    if isinstance(arguments, str):
        arguments = _parse(arguments)
    if name is None or ("properties" in (arguments or {}) and "type" in (arguments or {})):
        # A schema said again is no call.
        return None
    if arguments is None:
        return {"name": name, "arguments": {}} if name in names and "description" not in value else None
    return {"name": name, "arguments": arguments}


def _documents(text: str) -> Iterator[Any]:
    place = 0
    for _ in range(CANDIDATES):
        found = _BEGIN.search(text, place)
        if found is None:
            return
        end = _end_of(text, found.start())
        value = _parse(text[found.start() : end]) if end else None
        if value is not None:
            yield value
        place = end if value is not None and end else found.end()


def _json_at(text: str, place: int) -> Any:
    end = _end_of(text, place)
    return _parse(text[place:end]) if end else None


def _end_of(text: str, start: int) -> int | None:
    """Where the brackets that open at `start` are closed again, within a call's length."""
    depth, quoted, escaped = 0, False, False
    for place in range(start, min(len(text), start + 4000)):
        character = text[place]
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            quoted = True
        elif character in "{[":
            depth += 1
            if depth > NESTING:
                return None
        elif character in "}]":
            depth -= 1
            if depth == 0:
                return place + 1
    return None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
