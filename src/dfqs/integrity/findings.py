"""A defect as a value: what is wrong, where, and how to fix it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is. Only an error fails a check."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect."""

    code: str
    """Its kind, for programs: `truncated`, `trailing`, `concatenated`, ..."""
    message: str
    """What is wrong, in a sentence."""
    fix: str
    """What to do about it, in a sentence."""
    severity: Severity = Severity.ERROR
    offset: int | None = None
    """Byte in the file where it stands."""
    name: str | None = None
    """Key or tensor it concerns."""
    repairable: bool = False
    """Whether `fix` is that `dfqs repair` writes a sound file."""


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether a check with these findings failed."""
    return any(finding.severity is Severity.ERROR for finding in findings)
