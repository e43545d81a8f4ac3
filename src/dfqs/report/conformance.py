"""`dfqs.conformance/1`: the specification clause by clause, each with a verdict and what it rests on."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from dfqs import __version__
from dfqs.records import Document, Record, Text


class Judgement(StrEnum):
    """Of a clause."""

    PASS = "PASS"
    FAIL = "FAIL"
    NOT_TESTED = "NOT TESTED"
    """Nothing here tells; `evidence` says what would."""


class Standing(StrEnum):
    """Of a claim that the specification makes for its reference artifact."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    NOT_TESTABLE = "not testable here"


class ClauseVerdict(Record):
    """One clause."""

    id: str
    """Of the procedure in docs/specification.md."""
    level: Literal["SHALL", "SHOULD", "MAY", "states"]
    """`states`: the specification says it in a table or a list, without one of the words."""
    section: str
    clause: str
    """In the specification's words."""
    verdict: Judgement
    evidence: Text
    """The number that it rests on, or what is missing."""
    source: Text
    """The file that the number stands in."""
    command: Text
    """What makes it."""


class ClaimVerdict(Record):
    """One claim of the card."""

    claim: str
    section: str
    standing: Standing
    figure: Text
    """What was found."""


class ConformanceDocument(Document):
    """What `dfqs conform` found out about a model by a report."""

    schema_: Literal["dfqs.conformance/1"] = Field(default="dfqs.conformance/1", alias="schema")
    dfqs_version: str = __version__
    specification: str = "DFQS 1.0 (doi:10.57967/hf/8853)"
    model: Text
    name: Text
    content_sha256: str | None
    """Null where it was not computed."""
    report: Text
    clauses: tuple[ClauseVerdict, ...]
    claims: tuple[ClaimVerdict, ...]
    conforms: bool
    """No SHALL fails, and none is untested."""
    failed: tuple[str, ...]
    """Clauses of every level that fail."""
    untested: tuple[str, ...]
