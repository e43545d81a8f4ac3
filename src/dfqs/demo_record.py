"""What a demonstration writes down of itself, `demo.json`, and what 0.1.0 wrote."""

from typing import Literal

from pydantic import Field

from dfqs.model.description import ModelDescription
from dfqs.records import Document, Record
from dfqs.report.schema import Report


class DemoStep(Record):
    """One step of the story."""

    title: str
    outcome: str
    wall_s: float


class DemoRecord(Document):
    """What was done, on what, and what came of it."""

    schema_: Literal["dfqs.demo/2"] = Field(default="dfqs.demo/2", alias="schema")
    dfqs_version: str
    made_at: str
    model: ModelDescription
    """What it is, and says of itself; it is not the reference model."""
    file_sha256: str | None
    content_sha256: str
    prompt: str
    answer: str
    answer_tokens: int
    decode_tokens_per_s: float | None
    prompt_tokens_per_s: float | None
    threads: int
    omp_wait_policy: str
    steps: list[DemoStep]
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each file that it left, by name: only these may be replaced by the next one."""


class EarlierDemoRecord(Document):
    """What 0.1.0 wrote down: a model by its name and its table, and no files of its own."""

    schema_: Literal["dfqs.demo/1"] = Field(default="dfqs.demo/1", alias="schema")
    dfqs_version: str
    made_at: str
    model: str
    model_note: str
    file_bytes: int
    file_sha256: str | None
    content_sha256: str
    prompt: str
    answer: str
    answer_tokens: int
    decode_tokens_per_s: float | None
    prompt_tokens_per_s: float | None
    threads: int
    omp_wait_policy: str
    snapshot: dict[str, str]
    """What the model is: the specification's snapshot table."""
    steps: list[DemoStep]


def describe_scores(report: Report) -> str:
    """What was measured, in a line."""
    return (
        f"right: questions about documents {_context(report)}; reasoning {_count(report, 'reasoning')}, code "
        f"{_count(report, 'code')}; failure boundary {_boundary(report)}; "
        f"{_figure(report.metrics.cpu_tokens_per_sec)} tokens/s (few questions: `dfqs eval` asks more)"
    )


def _boundary(report: Report) -> str:
    tokens, found = report.metrics.failure_boundary_tokens, report.details.boundary
    if tokens is None or found is None:
        return "not decided"
    return f"{'beyond ' if found.censored else ''}{tokens:,} tokens"


def _count(report: Report, stage: str) -> str:
    found = getattr(report.details, stage)
    return "not measured" if found is None else f"{found.right} of {found.n}"


def _context(report: Report) -> str:
    """At each length, beside what guessing gives where answers are chosen."""
    found = report.details.context
    if found is None or not found.n:
        return "not measured"
    counts = [
        f"{right} of {n} at {length:,} tokens"
        for right, n, length in zip(found.right, found.n, found.lengths_tokens, strict=True)
    ]
    guessing = "" if found.likelihood is None else f" (guessing: {found.likelihood.chance[0]:.0%})".replace("%", " %")
    return ", ".join(counts) + guessing


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
