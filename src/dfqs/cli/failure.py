"""`dfqs.error/1`: why a command ended, for programs. Loaded only where `--json` was given and something went wrong."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from dfqs.errors import DfqsError, EndpointError, FormatError, UnsupportedGGUF, WorkerCrash
from dfqs.records import Document, Text


class ErrorDocument(Document):
    """Why a command ended: under `--json` the last line of stderr. What is not known is null."""

    schema_: Literal["dfqs.error/1"] = Field(default="dfqs.error/1", alias="schema")
    kind: str
    """What went wrong: the `kind` of a class of `dfqs.errors`, or one of `OTHER_KINDS`."""
    code: str | None
    """Which of that kind, where there are several: of `unsupported` and `endpoint`."""
    message: Text
    """The sentence that people get."""
    exit_code: int
    path: Text | None
    """The file (or address) that it concerns."""
    offset: int | None
    """Byte in that file."""
    name: Text | None
    """Key or tensor that it concerns."""
    hint: Text | None
    """What to do about it, where the message does not say so."""
    log: tuple[Text, ...]
    """The runtime's last lines, oldest first, where its process died."""


OTHER_KINDS = ("interrupted", "no-memory", "os", "internal")
"""Kinds of what no class of `dfqs.errors` stands for: Ctrl-C or a signal, memory, the system's own words, our fault."""


def kind_of(error: BaseException) -> str:
    """The stable word for what went wrong."""
    if isinstance(error, DfqsError):
        return error.kind
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError):
        return "no-memory"
    if isinstance(error, OSError):
        return "os"
    # What the parser of the command's words raises is known by how it tells of itself.
    return "usage" if hasattr(error, "format_message") else "internal"


def describe_failure(error: BaseException, message: str, exit_code: int, *, interrupted: bool) -> ErrorDocument:
    """What is known about the end of a command.

    Args:
        interrupted: a signal came first, whatever the error is.
    """
    located = error if isinstance(error, FormatError) else None
    path = located.path if located else error.filename if isinstance(error, OSError) else None
    code: str | None = None
    log: Sequence[str] = ()
    if isinstance(error, UnsupportedGGUF):
        code = error.code
    elif isinstance(error, EndpointError):
        code = error.fault.value
    elif isinstance(error, WorkerCrash):
        log, message = error.log_lines, error.sentence
    return ErrorDocument(
        kind="interrupted" if interrupted else kind_of(error),
        code=code,
        message=message,
        exit_code=exit_code,
        path=str(path) if path is not None else None,
        offset=located.offset if located else None,
        name=located.name if located else None,
        hint=(error.fix or None) if isinstance(error, UnsupportedGGUF) else None,
        log=tuple(log),
    )
