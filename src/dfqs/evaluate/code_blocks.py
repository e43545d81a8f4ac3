"""Takes the Python out of what a model wrote: blocks however they are fenced, joined; or code that stands in no block.

Pure text and Python's own parser. What the sandbox's Python makes of it is not known here.
"""

import ast
import html
import itertools
import re
import textwrap
from collections.abc import Iterable

SOURCE_CHARACTERS = 1 << 15
"""A longer module is none of ours; parsed, source takes a hundred times its size in this process."""
BLOCKS, CUTS = 50, 30
"""Looked at at most: code blocks from the last, and ends of code that does not parse to its end."""
BARE_CUTS = 60
"""Of all beginnings of code that stands in no block: their ends are the same text again and again."""

_FENCE = re.compile(r"^(?P<before>[^\n`~]*?)(?P<fence>`{3,}|~{3,})(?P<language>[^\n`]*)$", re.MULTILINE)
_QUOTE = re.compile(r"^[ \t]*(?:>[ \t]?)+", re.MULTILINE)
_PYTHON = re.compile(
    r"\s*(?:\{?\.?(?:py|python|python3|python-?3\.\d+|pycon|ipython|sage|cpython)\b.*)?\s*", re.IGNORECASE
)
_CODE_LINE = re.compile(r"[ \t]*(?:def|async def|class|import|from|@)\b")
_PROMPT = re.compile(r"^[ \t]*(?:>>>|\.\.\.) ?", re.MULTILINE)
_TYPE_PARAMETERS = re.compile(
    r"^([ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+\w+)\[[^\n()]*\](?=[ \t]*[(:])", re.MULTILINE
)
_TYPE_STATEMENT = re.compile(r"^type[ \t]+(\w+)(?:\[[^\n\]]*\])?[ \t]*=.*$", re.MULTILINE)


def python_source(text: str, entry_point: str) -> str | None:
    """The module that defines `entry_point`; None when there is none in `text`.

    All Python blocks in their order, so that helpers, imports and the last of several versions count; of a block that
    does not parse the part that does. Without any block the lines that look like code.
    """
    blocks = fenced_blocks(text)
    python = [_readable(body) for language, body in blocks[-BLOCKS:] if _PYTHON.fullmatch(language)]
    if not any(python):
        python = [_readable(body) for _, body in blocks[-BLOCKS:]]
    for chosen in (python, [body for body in python if body and entry_point in body][-1:]):
        source = "\n\n".join(body.strip("\n") for body in chosen if body) + "\n"
        if defines(source, entry_point):
            return source
    return None if blocks else _bare_code(text, entry_point)


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of each block: fenced by backticks or tildes, indented, quoted, behind words, never closed."""
    text = text.replace("\r\n", "\n")
    blocks: list[tuple[str, str]] = []
    place = 0
    while (opening := _FENCE.search(text, place)) is not None:
        body, place = _body(text, opening)
        if ">" in opening["before"]:
            body = _QUOTE.sub("", body)
        blocks.append((opening["language"].strip(), textwrap.dedent(body)))
    return blocks


def _body(text: str, opening: "re.Match[str]") -> tuple[str, int]:
    """What stands between an opening fence and its end, and where to look on."""
    fence = opening["fence"]
    closing = re.compile(
        rf"^[ \t>]*{re.escape(fence[0])}{{{len(fence)},}}[ \t]*$|{re.escape(fence)}[ \t]*$", re.MULTILINE
    )
    start = opening.end() + 1
    end = closing.search(text, start) if start < len(text) else None
    if end is None:
        return text[start:], len(text)
    return text[start : end.start()], end.end()


def defines(source: str, entry_point: str) -> bool:
    """Whether the module gives `entry_point` a value: a function, or a name bound to one."""
    if entry_point not in source:
        return False
    tree = parsed(source)
    return tree is not None and any(entry_point in _bound(node) for node in tree.body)


def parsed(source: str) -> ast.Module | None:
    """None where this Python cannot read it."""
    if len(source) > SOURCE_CHARACTERS:
        return None
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def is_newer_syntax(text: str, entry_point: str) -> bool:
    """Whether a block that is about the function stops only at something that a newer Python may read."""
    for _, body in fenced_blocks(text):
        if f"def {entry_point}" in body and len(body) <= SOURCE_CHARACTERS:
            try:
                ast.parse(body)
            except SyntaxError as error:
                return (error.msg or "").startswith("f-string")
            except (ValueError, RecursionError, MemoryError):
                return False
    return False


def _bound(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.If | ast.Try):
        return set().union(*(_bound(child) for child in node.body))
    return set()


def _readable(body: str) -> str:
    """What of a block this Python can read; empty: nothing."""
    if len(body) > SOURCE_CHARACTERS:
        return ""
    forms = [body]
    if _PROMPT.match(body.lstrip("\n")):
        lines = [line for line in body.splitlines() if _PROMPT.match(line)]
        forms = ["\n".join(_PROMPT.sub("", line) for line in lines)]
    forms += [_without_type_parameters(forms[0]), html.unescape(forms[0])]
    for form in dict.fromkeys(forms):
        if parsed(form) is not None:
            return _without_type_parameters(form)
    return _readable_part(forms[0])


def _without_type_parameters(source: str) -> str:
    """Python 3.12's type parameters say nothing at run time, and older ones do not read them."""
    plain = _TYPE_STATEMENT.sub(r"\1 = object", _TYPE_PARAMETERS.sub(r"\1", source))
    return source if plain == source else f"from __future__ import annotations\n{plain}"


def _readable_part(source: str, attempts: Iterable[int] = range(CUTS)) -> str:
    """The beginning up to the first line that cannot be read; empty where it takes more attempts to find."""
    lines = source.splitlines()
    for _ in attempts:
        fault = _first_fault("\n".join(lines))
        if fault is None:
            return "\n".join(lines)
        # What comes behind a fault cannot fix it.
        lines = lines[: min(fault, len(lines)) - 1]
        if not lines:
            break
    return ""


def _bare_code(text: str, entry_point: str) -> str | None:
    lines = text.replace("\r\n", "\n").splitlines()
    starts = [index for index, line in enumerate(lines) if _CODE_LINE.match(line)][:BLOCKS]
    attempts = iter(range(BARE_CUTS))
    for start in starts:
        indent = len(lines[start]) - len(lines[start].lstrip())
        run = [line[indent:] if not line[:indent].strip() else line for line in lines[start:]]
        source = _readable_part(_without_type_parameters("\n".join(run)), itertools.islice(attempts, CUTS))
        if source and defines(source, entry_point):
            return source
    return None


def _first_fault(source: str) -> int | None:
    """The line (from 1) at which Python gives up; None when it parses."""
    if len(source) > SOURCE_CHARACTERS:
        return source.count("\n", 0, SOURCE_CHARACTERS) + 1
    try:
        ast.parse(source)
    except SyntaxError as error:
        return error.lineno or 1
    except (RecursionError, MemoryError):
        # Too much in one another, and not told where: most likely what comes last, where a model repeats itself.
        return source.count("\n") + 1
    except ValueError:
        return 1
    return None
