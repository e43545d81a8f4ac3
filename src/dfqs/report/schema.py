"""`dfqs.report/1`: the stored form of an evaluation.

The five keys of `Metrics` have the names and types of the DFQS specification, section 11. What was not measured is
null, and `reasons` says why; 0 is always a measured 0. `report-1.schema.json` is this as JSON Schema.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from dfqs.evaluate.conditions import ScoreConditions, SpeedConditions
from dfqs.evaluate.speed import SpeedSummary
from dfqs.hardware import Machine
from dfqs.records import Record

SCHEMA_ID = "dfqs.report/1"
SCHEMA_FILE = Path(__file__).with_name("report-1.schema.json")

Score = Annotated[float, Field(ge=0, le=1)]


class Metrics(Record):
    """The five required metrics (specification, section 11)."""

    reasoning_score: Score | None
    code_score: Score | None
    context_stability_curve: list[Score] | None
    """Score at each of `details.context.lengths_tokens`, shortest first."""
    cpu_tokens_per_sec: Annotated[float, Field(gt=0)] | None
    failure_boundary_tokens: Annotated[int, Field(ge=0)] | None
    """With `details.boundary.censored`: nothing failed, and this is the longest length tested."""


class Artifact(Record):
    """What was measured."""

    kind: Literal["file", "endpoint"]
    name: str
    file_bytes: int | None
    file_sha256: str | None
    content_sha256: str | None
    """Does not depend on the file's layout."""
    architecture: str | None
    parameters: int | None
    parameters_active: int | None
    bits_per_weight: float | None
    deployment_class: str | None
    tier: str | None
    description: str | None
    """What the file says of itself."""


class ScoreDetail(Record):
    """One score: how many, how sure, and what the wrong ones were."""

    n: int
    right: int
    wrong: int
    truncated: int
    empty: int
    unusable: int
    interval_95: tuple[Score, Score] | None
    """Wilson; null with fewer than two items."""
    groups: dict[str, tuple[int, int]]
    """Family or level -> (right, total)."""


class ContextDetail(Record):
    """The curve's lengths and intervals, index by index with `metrics.context_stability_curve`."""

    lengths_tokens: list[int]
    n: list[int]
    right: list[int]
    truncated: list[int]
    empty: list[int]
    unusable: list[int]
    """These three count as wrong; the rest of those that are not right were answers, and wrong."""
    intervals_95: list[tuple[Score, Score] | None]
    not_measured: dict[str, str]
    """Length -> why it is not in the curve."""


class BoundaryLength(Record):
    """One length that the search looked at."""

    length_tokens: int
    n: int
    right: int
    failure: str | None
    """Why the runtime could not work there."""


class BoundaryDetail(Record):
    """How the failure boundary was found."""

    censored: bool
    cause: Literal["score", "runtime", "none", "undecided"]
    reason: str
    confidence_per_look: float
    lengths: list[BoundaryLength]


class Details(Record):
    """What stands behind each metric; null where the stage was not run."""

    reasoning: ScoreDetail | None
    code: ScoreDetail | None
    context: ContextDetail | None
    speed: SpeedSummary | None
    boundary: BoundaryDetail | None


class Conditions(Record):
    """Under what the numbers were made. Equal fingerprints compare; others do not."""

    score: ScoreConditions
    score_fingerprint: str
    speed: SpeedConditions | None
    speed_fingerprint: str | None


class Report(Record):
    """One evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    schema_: Literal["dfqs.report/1"] = Field("dfqs.report/1", alias="schema")
    dfqs_version: str
    measured_at: str
    """UTC, when the report was made."""
    artifact: Artifact
    statement: str
    """What the scores are about, and what they are not about."""
    machine: Machine
    conditions: Conditions
    metrics: Metrics
    reasons: dict[str, str]
    """Metric -> why it is null."""
    details: Details
    notices: list[str]


def json_schema() -> dict[str, Any]:
    """JSON Schema of `Report`, as stored."""
    schema = Report.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **schema}
