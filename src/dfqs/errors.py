"""Every exception that dfqs raises on purpose, on one page.

A message is one or two sentences: what, where (path, offset, name), what to do. Defects that a check finds are
findings (values), not exceptions; an exception is for what stops the work.
"""

from enum import StrEnum
from pathlib import Path


class DfqsError(Exception):
    """Base of all."""

    exit_code = 3
    """What the command line returns: 2 usage, 3 operational."""
    kind = "failed"
    """What went wrong, for programs: never another word for the same class. A class without its own has its base's."""

    @property
    def sentence(self) -> str:
        """What happened, without the lines that may follow it."""
        return str(self)

    @property
    def lines(self) -> tuple[str, ...]:
        """What stands below the sentence: the end of a log, names to choose from."""
        return ()


class UsageError(DfqsError):
    """The request makes no sense as given: a wrong option, an output that exists, shard 2 in place of shard 1.

    Args:
        message: one sentence.
        lines: below it: what there is to choose from.
    """

    exit_code = 2
    kind = "usage"

    def __init__(self, message: str, *lines: str) -> None:
        super().__init__(message, *lines)

    def __str__(self) -> str:
        return "\n".join(self.args)

    @property
    def sentence(self) -> str:
        return str(self.args[0])

    @property
    def lines(self) -> tuple[str, ...]:
        return self.args[1:]


class AlreadyDone(UsageError):
    """The output is there, and is what this very call would make."""

    kind = "done-already"


class FormatError(DfqsError):
    """Bytes that are not what the format says: a header that lies, a truncated file.

    Args:
        message: what is wrong.
        path: the file (or address) it is in.
        offset: byte in that file where the lie stands.
        name: key or tensor it concerns.
    """

    kind = "format"

    def __init__(
        self,
        message: str,
        *,
        path: Path | str | None = None,
        offset: int | None = None,
        name: str | None = None,
    ) -> None:
        self.detail = message
        self.path = path
        self.offset = offset
        self.name = name
        super().__init__(message)

    def __str__(self) -> str:
        where = str(self.path) if self.path is not None else ""
        if self.offset is not None:
            where += f" at byte {self.offset:,}"
        what = f"'{printable(self.name)}': {self.detail}" if self.name is not None else self.detail
        return f"{where.strip()}: {what}" if where else what

    def __reduce__(self) -> tuple[object, ...]:
        # Crosses a process boundary (worker to caller) with its fields.
        return (_rebuild_format_error, (type(self), self.detail, self.path, self.offset, self.name))


class TruncatedGGUF(FormatError):
    """The file ends before what its header announces."""

    kind = "truncated"


class UnsupportedGGUF(FormatError):
    """A file that is whole and of a kind that cannot be used here: another byte order, another version of the format.

    Args:
        code: the kind, for programs.
        fix: what to do about it, in a sentence.
    """

    kind = "unsupported"

    def __init__(
        self,
        message: str,
        *,
        code: str = "unsupported",
        fix: str = "",
        path: Path | str | None = None,
        offset: int | None = None,
        name: str | None = None,
    ) -> None:
        self.code = code
        self.fix = fix
        super().__init__(message, path=path, offset=offset, name=name)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_unsupported, (self.detail, self.code, self.fix, self.path, self.offset, self.name))


class ShardError(FormatError):
    """Shards that do not make one model: one missing, of another model, numbered wrongly."""

    kind = "shards"


class IntegrityError(DfqsError):
    """Bytes that are not the bytes they were recorded to be."""

    kind = "integrity"


class SpaceError(DfqsError):
    """The disk has not the room that the work needs."""

    kind = "no-space"


class NetworkError(DfqsError):
    """A server could not be reached, or answered with something unusable."""

    kind = "network"


class EndpointFault(StrEnum):
    """What went wrong with a request to a model's server; code decides by this and never by the sentence."""

    UNREACHABLE = "unreachable"
    """Nothing listens there."""
    BROKEN = "broken"
    """The connection ended, or the bytes were no HTTP."""
    SILENT = "silent"
    TOO_SLOW = "too-slow"
    """The wall clock of the whole answer ran out."""
    TOO_LARGE = "too-large"
    UNUSABLE = "unusable"
    """It answered, but not in the form that was asked for."""
    REFUSED = "refused"
    """A status or an error object of its own."""
    CONTEXT_EXCEEDED = "context-exceeded"
    """A refusal that says, in a form known to mean it, that the prompt is longer than the context."""


class EndpointError(NetworkError):
    """A request to a model's server failed.

    Args:
        retry_after_s: how long the server asks to be left alone.
        status: of HTTP, where there was an answer that refuses.
    """

    kind = "endpoint"

    def __init__(
        self, message: str, fault: EndpointFault, retry_after_s: float | None = None, status: int | None = None
    ) -> None:
        self.fault = fault
        self.retry_after_s = retry_after_s
        self.status = status
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.args[0], self.fault, self.retry_after_s, self.status))


class RuntimeFailure(DfqsError):
    """llama.cpp refused or failed, and said so."""

    kind = "runtime"


class NonFiniteLogits(RuntimeFailure):
    """The model computed NaN or infinity where a distribution over tokens should be."""

    kind = "non-finite"


class WorkerCrash(DfqsError):
    """The worker process died (a C assert, a signal, out of memory).

    Args:
        message: one sentence with the signal's name and what was under way.
        log_lines: the native library's last lines, oldest first.
    """

    kind = "worker-crash"

    def __init__(self, message: str, log_lines: tuple[str, ...] = ()) -> None:
        self.log_lines = log_lines
        super().__init__(message)

    @property
    def sentence(self) -> str:
        return str(self.args[0])

    @property
    def lines(self) -> tuple[str, ...]:
        return ("last lines of its log:", *(f"  {line}" for line in self.log_lines)) if self.log_lines else ()

    def __str__(self) -> str:
        return "\n".join((self.sentence, *self.lines))

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.args[0], self.log_lines))


class SandboxUnavailable(DfqsError):
    """Generated code cannot be run safely here, so it is not run."""

    kind = "no-sandbox"


def printable(text: str, limit: int = 80) -> str:
    """`text` from outside, safe to print on a terminal: control characters escaped, length bounded."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[: limit + 1])
    return safe if len(text) <= limit else safe[:limit] + "..."


def _rebuild_format_error(
    cls: type[FormatError], message: str, path: Path | str | None, offset: int | None, name: str | None
) -> FormatError:
    return cls(message, path=path, offset=offset, name=name)


def _rebuild_unsupported(
    message: str, code: str, fix: str, path: Path | str | None, offset: int | None, name: str | None
) -> UnsupportedGGUF:
    return UnsupportedGGUF(message, code=code, fix=fix, path=path, offset=offset, name=name)
