"""What a demonstration writes down of itself, `demo.json`, and what 0.1.0 wrote."""

from typing import Literal

from pydantic import Field

from dfqs.model.description import ModelDescription
from dfqs.records import Document, Record


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
