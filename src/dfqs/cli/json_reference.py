"""docs/json.md: every form of document that is stored or printed, its keys with types and meaning, from the records."""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dfqs.records import Document

SOURCE = Path(__file__).parents[1]
HEADER = """# JSON documents

Written by `scripts/write-docs` from the records; a test fails when it is not current.

Every document that dfqs prints (`--json`) or stores begins with `schema`: the name and version of its form. A form's
keys are all there, in this order, whichever way the work went (planned, fresh, resumed, aborted): what is not known is
null. Sizes are bytes, times seconds, losses nats. Text is Unicode: of a path, bytes that are no UTF-8 stand as their
numbers. What an earlier version stored under another key (`schema_id`, `format`) is read as before.

When a command fails under `--json`, the last line of stderr is one document `dfqs.error/1`, and stdout has none
(`verify`, `audit`, `route check`, `compare` and `conform`, whose answer is "no", print theirs and exit with 1, or
with 4 where nobody measured what was asked).
"""
WHERE = {
    "dfqs.attest/1": "`dfqs attest --json`",
    "dfqs.audit/1": "`dfqs audit --json`",
    "dfqs.blame/1": "`dfqs eval --blame --json`",
    "dfqs.cache/1": "`dfqs cache --json`, of what is kept; of its verbs, what they fetched or removed",
    "dfqs.calibration/1": "stored in the cache: how fast a machine does each kind of work",
    "dfqs.card/1": "`dfqs card --json`",
    "dfqs.comparison/1": "`dfqs compare --json`",
    "dfqs.config/1": "`dfqs config --json`",
    "dfqs.conformance/1": "`dfqs conform --json`",
    "dfqs.conversation/1": "stored by `/save` of `dfqs chat`",
    "dfqs.deploy-undo/1": "`dfqs deploy --undo --json`",
    "dfqs.deploy/1": "`dfqs deploy --json`",
    "dfqs.deployment/1": "stored in `~/.local/state/dfqs`: what a deployment changed, and where the back-ups of it are",
    "dfqs.deploy-list/1": "`dfqs deploy --list --json`",
    "dfqs.demo/1": "stored beside the report by 0.1.0",
    "dfqs.demo/2": "`dfqs demo --json`; stored beside the report",
    "dfqs.error/1": "stderr of every verb that failed under `--json`",
    "dfqs.eval-plan/1": "`dfqs eval --dry-run --json`",
    "dfqs.find/1": "`dfqs find --json`",
    "dfqs.forecast/1": "`dfqs forecast --json`",
    "dfqs.imatrix/1": "`dfqs imatrix --json`",
    "dfqs.inspect-diff/1": "`dfqs inspect --diff --json`",
    "dfqs.inspect/1": "`dfqs inspect --json`; a line each where several models are given",
    "dfqs.kept-model/1": "stored beside a model of the Hub that is kept, as `kept.json`",
    "dfqs.ladder-plan/1": "`dfqs ladder --dry-run --json`",
    "dfqs.ladder/1": "`dfqs ladder --json`; stored as `ladder.json`",
    "dfqs.manifest/1": "`dfqs manifest --json`; stored as `MODEL.manifest.json` by `manifest`, `pull` and `quantize`",
    "dfqs.merge/1": "`dfqs merge --json`",
    "dfqs.perplexity/1": "`dfqs perplexity --json`",
    "dfqs.plan/1": "`dfqs plan --json`",
    "dfqs.prompts/1": "stored in the package: the frozen prompt sets",
    "dfqs.publish/1": "`dfqs publish --json`",
    "dfqs.pull/1": "`dfqs pull --json`",
    "dfqs.quantize/1": "`dfqs quantize --json`",
    "dfqs.receipt/1": "stored in the cache: what a piece of work wrote, to be known as done after a kill",
    "dfqs.repair/1": "`dfqs repair --json`",
    "dfqs.report/1": "`dfqs eval --json`, `dfqs report --json`; stored as `report.json`",
    "dfqs.route-capture/1": "`dfqs route trace --json`",
    "dfqs.route-check/1": "`dfqs route check --json`; stored by `--out`",
    "dfqs.route-diff/1": "`dfqs route diff --json`",
    "dfqs.route-margins/1": "`dfqs route margins --json`",
    "dfqs.route-pressure/1": "`dfqs route pressure --json`",
    "dfqs.route-stats/1": "`dfqs route stats --json`",
    "dfqs.route-trace/1": "stored as the header of a trace (docs/route-trace-format.md)",
    "dfqs.rung/1": "stored by `dfqs ladder` as `NAME.measured.json` beside a model's losses",
    "dfqs.run-record/1": "stored as `run.json` of a run of `dfqs eval`",
    "dfqs.run/1": "`dfqs run --json`; `dfqs chat --json`, a line each",
    "dfqs.runtime-choice/1": "stored in the cache: the llama.cpp that `dfqs runtime use` chose",
    "dfqs.runtime/1": "`dfqs runtime --json`",
    "dfqs.serve/1": "`dfqs serve --json`, when it is ready",
    "dfqs.signing-key/1": "`dfqs attest --new-key --json`",
    "dfqs.split/1": "`dfqs split --json`",
    "dfqs.tuning/1": "`dfqs tune --json`; stored in the cache: settings for a model on a machine",
    "dfqs.verify/1": "`dfqs verify --json`",
}
"""Which verb prints or stores a form."""


@functools.cache
def documents() -> dict[str, type[Document]]:
    """Every form by its schema id."""
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if re.search(r"\(Document\)|schema_: Literal", text):
            importlib.import_module(
                ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
            )
    found: dict[str, type[Document]] = {}
    waiting = list(Document.__subclasses__())
    while waiting:
        form = waiting.pop()
        waiting.extend(form.__subclasses__())
        schema = form.model_fields["schema_"].default
        # Of a form and one made on it, the latter is what is printed.
        if schema not in found or issubclass(form, found[schema]):
            found[schema] = form
    return dict(sorted(found.items()))


def render_documents() -> str:
    """The whole page."""
    sections = [HEADER]
    for schema, form in documents().items():
        sections.append(f"## {schema}\n\n{WHERE[schema]}.\n\n{_summary(form)}\n\n" + _table(form))
    return "\n".join(sections)


def _table(form: type[Any]) -> str:
    """Its keys; those of the records in it below, with the way to them."""
    rows = ["| key | type | |", "|---|---|---|", *_rows(form, "", ())]
    return "\n".join(rows) + "\n"


def _rows(form: type[Any], way: str, above: tuple[type[Any], ...]) -> Iterator[str]:
    notes = _notes(form)
    for name, key, annotation in _fields(form):
        yield f"| `{way}{key}` | {_type_text(annotation)} | {notes.get(name, '')} |"
        for inner, suffix in _records_in(annotation):
            if inner not in above:
                yield from _rows(inner, f"{way}{key}{suffix}.", (*above, form, inner))


def _fields(form: type[Any]) -> Iterator[tuple[str, str, Any]]:
    if dataclasses.is_dataclass(form):
        hints = typing.get_type_hints(form)
        yield from ((field.name, field.name, hints[field.name]) for field in dataclasses.fields(form))
        return
    for name, field in form.model_fields.items():
        yield name, field.alias or name, field.annotation


def _records_in(annotation: Any, suffix: str = "") -> Iterator[tuple[type[Any], str]]:
    """Records that a value of the type holds, with how it is got at: `[]` of a list, `.*` of an object's values."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and origin is None:
        if hasattr(annotation, "model_fields") or dataclasses.is_dataclass(annotation):
            yield annotation, suffix
        return
    if origin is typing.Annotated:
        arguments = arguments[:1]
    inner = "[]" if origin in (tuple, list) else ".*" if origin is dict else ""
    for argument in arguments:
        yield from _records_in(argument, suffix + inner)


def _type_text(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_text(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_text(argument) for argument in arguments)
    if origin in (tuple, list):
        return f"list of {_type_text(arguments[0])}" if arguments else "list"
    if origin is dict:
        return f"object of {_type_text(arguments[1])}"
    words = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", Any: "anything"}
    return words.get(annotation, "object" if isinstance(annotation, type) else "text")


def _notes(form: type[Any]) -> dict[str, str]:
    """The sentences below the fields, as a reader of the source finds them; a base's too."""
    notes = _notes(more) if (more := getattr(form, "made_of", None)) is not None else {}
    for base in reversed(form.__mro__):
        if not base.__module__.startswith("dfqs."):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError):
            continue
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
                notes[field.target.id] = " ".join(str(ast.literal_eval(after.value)).split()).replace("|", "\\|")
    return notes


def _summary(form: type[Any]) -> str:
    return " ".join((form.__doc__ or "").split("\n\n")[0].split())
