"""Scores answers to the code set: the function is taken out of the answer and must pass hidden tests in the sandbox."""

import ast
import re

from dfqs.evaluate.extract import without_thinking
from dfqs.evaluate.prompts import CodeItem
from dfqs.evaluate.sandbox import Sandbox
from dfqs.evaluate.scores import Completion, ScoredItem, Verdict
from dfqs.evaluate.stages import CODE

SOURCE_CHARACTERS = 1 << 15
"""A longer module is none of ours; parsed, source takes a hundred times its size in this process."""
BLOCKS, CUTS = 50, 30
"""Tried at most: code blocks from the last, and ends of code that stands in no block."""

_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_CODE_LINE = re.compile(r"(?:def|async def|class|import|from|@)")


def score_code(item: CodeItem, completion: Completion, sandbox: Sandbox) -> ScoredItem:
    """Right when the hidden tests pass; nothing generated runs outside the sandbox.

    Raises:
        SandboxUnavailable: it could not be run; that is no verdict on the candidate.
    """
    place = {"level": item.level}
    refusal = completion.refusal()
    if refusal is not None:
        return ScoredItem(stage=CODE, item=item.id, verdict=refusal, completion=completion, place=place)
    source = extract_code(completion.text, item.entry_point)
    if source is None:
        detail = f"no function {item.entry_point} in the answer"
        return ScoredItem(
            stage=CODE, item=item.id, verdict=Verdict.WRONG, detail=detail, completion=completion, place=place
        )
    result = sandbox.run(source, item.entry_point, item.tests)
    return ScoredItem(
        stage=CODE,
        item=item.id,
        verdict=Verdict.RIGHT if result.passed else Verdict.WRONG,
        answer=source,
        detail=f"{result.outcome}: {result.detail}".rstrip(": "),
        completion=completion,
        place=place,
    )


def extract_code(output: str, entry_point: str) -> str | None:
    """The module that defines `entry_point`; None when the answer has none.

    Looked for in this order: the last code block that defines it, all code blocks together, and without any block the
    run of lines from the first that looks like code to the first that Python cannot parse.
    """
    text = without_thinking(output)
    blocks = [match[1] for match in _BLOCK.finditer(text)]
    naming = [block for block in blocks if entry_point in block]
    for block in [*reversed(naming[-BLOCKS:]), "\n".join(blocks)]:
        if _defines(block, entry_point):
            return block
    return None if blocks else _bare_code(text, entry_point)


def _bare_code(text: str, entry_point: str) -> str | None:
    lines = text.splitlines()
    start = next((index for index, line in enumerate(lines) if _CODE_LINE.match(line)), None)
    if start is None:
        return None
    end = len(lines)
    for _ in range(CUTS):
        source = "\n".join(lines[start:end])
        fault = _first_fault(source)
        if fault is None:
            return source if _defines(source, entry_point) else None
        # What comes behind a fault cannot fix it.
        end = start + min(fault, end - start) - 1
        if end <= start:
            return None
    return None


def _first_fault(source: str) -> int | None:
    """The line (from 1) at which Python gives up; None when it parses."""
    if len(source) > SOURCE_CHARACTERS:
        return source.count("\n", 0, SOURCE_CHARACTERS) + 1
    try:
        ast.parse(source)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1
    return None


def _defines(source: str, entry_point: str) -> bool:
    if len(source) > SOURCE_CHARACTERS or entry_point not in source:
        return False
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.FunctionDef) and node.name == entry_point for node in tree.body)
