"""`dfqs.report/1`: the stored form of an evaluation.

The five keys of `Metrics` have the names and types of the DFQS specification, section 11. What was not measured is
null, and `reasons` says why; 0 is always a measured 0. `report-1.schema.json` is this as JSON Schema.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from dfqs.evaluate.conditions import ScoreConditions, SpeedConditions
from dfqs.evaluate.speed import SpeedSummary
from dfqs.hardware import Machine
from dfqs.model.description import ModelDescription
from dfqs.quantize.bootstrap import Estimate
from dfqs.quantize.noise_floor import NoiseFloor
from dfqs.records import AtLeastOne, Document, Record, Share, Text, Whole
from dfqs.report.earlier import upgrade_report

SCHEMA_ID = "dfqs.report/1"
SCHEMA_FILE = Path(__file__).with_name("report-1.schema.json")


class Metrics(Record):
    """The five required metrics (specification, section 11)."""

    reasoning_score: Share | None
    code_score: Share | None
    context_stability_curve: list[Share] | None
    """Score at each of `details.context.lengths_tokens`, shortest first."""
    cpu_tokens_per_sec: Annotated[float, Field(gt=0, le=1e18, allow_inf_nan=False)] | None
    failure_boundary_tokens: Whole | None
    """With `details.boundary.censored`: nothing failed, and this is the longest length tested."""


class Artifact(Record):
    """What was measured."""

    kind: Literal["file", "endpoint"]
    name: str
    file_bytes: Whole | None
    file_sha256: str | None
    content_sha256: str | None
    """Does not depend on the file's layout."""
    model: ModelDescription | None
    """As `dfqs inspect --json` has it; null behind an endpoint, where no file was seen."""


class ScoreDetail(Record):
    """One score: how many, how sure, and what the wrong ones were."""

    n: AtLeastOne
    right: Whole
    wrong: Whole
    truncated: Whole
    empty: Whole
    unusable: Whole
    no_answer: Whole = 0
    """Thought, and ended without saying anything outside of the thoughts. Counts as wrong."""
    thought: Whole = 0
    """Answers before which the model thought, as far as its thoughts were seen; whatever became of them."""
    unjudged: Whole = 0
    """Could not be judged here (code that the sandbox's Python cannot read); not among the n."""
    interval_95: tuple[Share, Share] | None
    """Wilson; null with fewer than two items."""
    groups: dict[str, tuple[Whole, Whole]]
    """Family or level -> (right, total)."""

    @model_validator(mode="after")
    def _counts_add_up(self) -> Self:
        if self.right + self.wrong + self.truncated + self.empty + self.unusable + self.no_answer != self.n:
            raise ValueError("counts that do not add up to n")
        return self


class ToolDetail(Record):
    """Tool calls: called where needed, valid by their schema, and the one asked for."""

    score: ScoreDetail
    """Right: no call where none is needed, or the valid call with the arguments asked for."""
    needed: Whole
    called: Whole
    called_rightly: Whole
    """Called where a call was needed, whatever the call."""
    valid: Whole
    """Calls that their tool's schema allows."""
    trigger_precision: Share | None
    """Null where nothing was called."""
    trigger_recall: Share | None
    trigger_f1: Share | None
    schema_accuracy: Share | None
    """Valid of the calls made; null where none was."""
    schema_interval_95: tuple[Share, Share] | None


class ProfileRow(Record):
    """One row of the capability profile: what the specification claims for its reference, and what was measured."""

    row: str
    claimed: str
    measured_by: str
    n: Whole
    right: Whole
    score: Share | None
    interval_95: tuple[Share, Share] | None
    level: Literal["full", "limited", "little"] | None
    """From 0.9, from 0.5, below; of the score, whatever its interval."""
    reason: str | None
    """Why it was not measured."""


class WrittenBeside(Record):
    """Written answers to the same items, as far as both were measured."""

    n: AtLeastOne
    right: Whole
    interval_95: tuple[Share, Share] | None
    guess: Share
    """Share that guessing among the possible answers gets right."""
    at_floor: bool
    """Not distinguishable from guessing: its interval reaches down to it. Differences between such scores say
    nothing."""


class AnswersAgainstThemselves(Record):
    """The first items again under other numerics, held against the score's own. Null: not measured."""

    numerics: Text
    n: Whole
    same_choice: Share | None
    """Share of items whose likeliest answer is the same."""
    gold: Estimate | None
    """Log-likelihood of the right answer, less that under the score's numerics; nats an item."""
    margin: Estimate | None
    """The same of the margin."""
    reason: Text | None = None
    """Why there are no numbers."""


class LikelihoodDetail(Record):
    """Right answers beside near misses, by how likely the model finds each behind the question. Nats an item;
    intervals of means by bootstrap over items."""

    n: AtLeastOne
    right: Whole
    """Likelier than every near miss."""
    interval_95: tuple[Share, Share] | None
    chance: Share
    """Score of guessing among the answers."""
    above_chance: bool | None
    """Whether the interval lies above chance; null without an interval."""
    unusable: Whole
    """Without numbers, or too long for the context; not among the n."""
    gold: Estimate
    """Log-likelihood of the right answer."""
    margin: Estimate
    """That, less the likeliest near miss's: above 0 where the right answer is preferred."""
    greedy: Whole
    """Items whose right answer greedy decoding would write."""
    groups: dict[str, tuple[Whole, Whole]]
    """Family or level -> (right, total)."""
    written: WrittenBeside | None
    floor: list[AnswersAgainstThemselves]


class ContextCell(Record):
    """Questions of one depth at one length."""

    length_tokens: AtLeastOne
    depth: Share
    """0 is the document's beginning, 1 its end."""
    n: AtLeastOne
    right: Whole
    """As `scored_by` of the whole says."""
    likelihood_right: Whole | None = None
    """Null where no likelihoods were measured."""


class ContextKind(Record):
    """Questions of one kind, index by index with the curve's lengths."""

    kind: str
    n: list[Whole]
    right: list[Whole]
    likelihood_right: list[Whole] | None = None


class ContextLikelihood(Record):
    """The same questions scored by likelihood: right when the answer is likelier than every near miss. Index by index
    with the curve's lengths."""

    n: list[AtLeastOne]
    right: list[Whole]
    chance: list[Share]
    """Score of guessing among the answers."""
    intervals_95: list[tuple[Share, Share] | None]


class ContextTokens(Record):
    """Tokens that the curve takes when it is measured in one go, and those that it saves. Computed from what was
    stored, so that a run that was killed and went on says the same."""

    documents: list[Whole]
    """Read of each document, once, up to its longest length."""
    questions: Whole
    """Read of questions, with the template's end."""
    answers: Whole
    """Generated."""
    likelihoods: Whole
    """Read of given answers to be scored."""
    unshared: Whole
    """All of these had each question been asked after a document of its own."""
    saved: Whole


class ContextDetail(Record):
    """The curve's lengths and intervals, index by index with `metrics.context_stability_curve`."""

    lengths_tokens: list[AtLeastOne]
    n: list[AtLeastOne]
    right: list[Whole]
    truncated: list[Whole] | None
    empty: list[Whole] | None
    unusable: list[Whole] | None
    """These three count as wrong; the rest of those that are not right were answers, and wrong. Null in the oldest
    reports, which did not tell them apart."""
    intervals_95: list[tuple[Share, Share] | None]
    not_measured: dict[Annotated[str, Field(pattern=r"^[0-9]{1,15}$")], str]
    """Length -> why it is not in the curve."""
    scored_by: Literal["generated", "likelihood"] = "generated"
    """Whether the curve counts answers that were written, or those that were the likeliest of the ones given."""
    documents: AtLeastOne = 1
    """That questions were asked about, at each length."""
    grid: list[ContextCell] = Field(default_factory=list)
    """Depth by length; empty in what was measured before 0.3."""
    kinds: list[ContextKind] = Field(default_factory=list)
    likelihood: ContextLikelihood | None = None
    tokens: ContextTokens | None = None

    @property
    def not_judged(self) -> tuple[list[int] | None, ...]:
        """Cut off, empty, without a usable answer: index by index with the lengths, or not known."""
        return self.truncated, self.empty, self.unusable

    @model_validator(mode="after")
    def _columns_are_equally_long(self) -> Self:
        told = [column for column in self.not_judged if column is not None]
        lengths = {len(self.n), len(self.right), len(self.intervals_95), *map(len, told)}
        if lengths != {len(self.lengths_tokens)}:
            raise ValueError("columns of unequal length")
        for n, *counts in zip(self.n, self.right, *told, strict=True):
            if sum(counts) > n:
                raise ValueError("counts that are more than n")
        return self


class BoundaryLength(Record):
    """One length that the search looked at."""

    length_tokens: AtLeastOne
    n: Whole
    right: Whole
    failure: str | None
    """Why the runtime could not work there."""
    failure_kind: str | None = None
    """`allocate`, `truncated`, `not-finite`, `refused`, `died`, `unanswered` or `trained`; null where it was not
    told."""


class BoundaryDetail(Record):
    """How the failure boundary was found."""

    scored_by: Literal["generated", "likelihood"] = "generated"
    """What `right` counts; likelihoods decide where no fall of written answers could be shown."""
    chance: Share = 0.0
    """Score of guessing at the shortest length: a fall is to half of what lies above it."""
    failure_kind: str | None = None
    """Of the length that is the boundary, where the runtime failed."""

    censored: bool
    cause: Literal["score", "runtime", "none", "undecided"]
    reason: str
    confidence_per_look: Share
    lengths: list[BoundaryLength]


class Details(Record):
    """What stands behind each metric; null where the stage was not run."""

    reasoning: ScoreDetail | None
    code: ScoreDetail | None
    context: ContextDetail | None
    speed: SpeedSummary | None
    boundary: BoundaryDetail | None
    tools: ToolDetail | None = None
    profile: list[ProfileRow] | None = None
    likelihood: LikelihoodDetail | None = None
    noise_floor: NoiseFloor | None = None
    """The same file against itself under other numerics, on held-out text."""


class Conditions(Record):
    """Under what the numbers were made. Equal fingerprints compare; others do not."""

    score: ScoreConditions
    score_fingerprint: str
    speed: SpeedConditions | None
    speed_fingerprint: str | None


class Report(Document):
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

    @model_validator(mode="before")
    @classmethod
    def _earlier_forms_are_read(cls, value: Any) -> Any:
        return upgrade_report(value)

    @model_validator(mode="after")
    def _curve_has_its_lengths(self) -> Self:
        curve, context = self.metrics.context_stability_curve, self.details.context
        if curve is not None and context is not None and len(curve) != len(context.lengths_tokens):
            raise ValueError("a curve of another length than its columns")
        return self


def json_schema() -> dict[str, Any]:
    """JSON Schema of `Report`, as stored."""
    schema = Report.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **schema}
