"""What each line of stored results must look like: checked when read back, because anybody can have written it."""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from dfqs.errors import FormatError, printable
from dfqs.evaluate.scores import ScoredItem
from dfqs.evaluate.stages import BOUNDARY, CONTEXT, FLOOR, ITEM_STAGES, LIKELIHOOD, NOTES, SPEED
from dfqs.hardware import Machine
from dfqs.quantize.noise_floor import NoiseFloor
from dfqs.records import Amount, AtLeastOne, Record, Share, Whole

Duration = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
"""Seconds."""

Fields = dict[str, str | int | float | list[str] | None]
"""Of a machine, to be compared and not read."""


Place = Annotated[int, Field(ge=0, le=10**9)]


class StoredPlan(Record):
    """What a length's questions ask for, and at which depths."""

    notes: list[Place]
    """Where the document says it."""
    depths: list[Share]
    kinds: list[str] = Field(default_factory=list)
    """Of each question; older runs had one kind, and one document."""
    documents: list[Place] = Field(default_factory=list)
    """Number of each question's document."""
    document_lines: list[Place] = Field(default_factory=list)
    """How much of each document is read at this length."""
    document_tokens: list[Place] = Field(default_factory=list)
    """The same in tokens, where they are counted; the template's beginning included."""

    @model_validator(mode="after")
    def _columns_are_equally_long(self) -> Self:
        keys = plan_keys(0, self)
        lengths = {len(column) for column in (self.notes, self.depths, self.kinds or self.notes, keys)}
        if len(lengths) != 1 or len(self.kinds) != len(self.documents) or len(set(keys)) != len(keys):
            raise ValueError("notes and depths that do not belong together")
        return self


def plan_keys(length: int, plan: StoredPlan) -> list[str]:
    """Under which keys the answers of a length's questions are stored, in their order."""
    if not plan.kinds:
        return [f"{length}/{note}" for note in plan.notes]
    questions = zip(plan.documents, plan.kinds, plan.notes, strict=False)
    return [f"{length}/{document}/{kind}/{note}" for document, kind, note in questions]


class StoredReason(Record):
    """Why something was not measured."""

    reason: str
    kind: str | None = None


class StoredCode(Record):
    """Why code is not run; None: it is."""

    reason: str | None


class StoredTarget(Record):
    """What the answerer told."""

    notices: list[str]
    context_tokens: Whole | None


class StoredBandwidth(Record):
    """The memory's bandwidth, and of which machine."""

    bytes_per_s: Annotated[float, Field(gt=0, le=1e18, allow_inf_nan=False)]
    threads: AtLeastOne
    machine: Fields


class StoredCount(Record):
    """`right` of `total`."""

    right: Whole
    total: Whole


class StoredLength(Record):
    """One length that the search for the boundary looked at. Older runs have less."""

    model_config = ConfigDict(extra="ignore")

    length_tokens: AtLeastOne
    count: StoredCount
    failure: str | None
    failure_kind: str | None = None
    likelihood: StoredCount | None = None


class StoredBoundary(Record):
    """The failure boundary as it was found."""

    tokens: Whole | None
    censored: bool
    cause: Literal["score", "runtime", "none", "undecided"]
    reason: str
    lengths: list[StoredLength]
    confidence: Share
    scored_by: Literal["generated", "likelihood"] = "generated"
    chance: Share = 0.0
    failure_kind: str | None = None


class StoredRepeat(Record):
    """One repeat of the speed's measurement, and on which machine."""

    prefill_tokens: Whole
    prefill_s: Duration
    decode_s: Annotated[list[Duration], Field(min_length=1, max_length=100_000)]
    depth_tokens: Whole
    depth_decode_s: Annotated[list[Duration], Field(max_length=100_000)]
    threads: AtLeastOne
    omp_wait_policy: str
    other_cpus: Amount
    disk_bytes: Whole | None = None
    disk_wait_s: Amount | None = None
    energy_joules: Amount | None = None
    machine: Fields


_NOTES: dict[str, type[Record]] = {
    "machine": Machine,
    "target": StoredTarget,
    "code_unavailable": StoredCode,
    "bandwidth": StoredBandwidth,
}

_CONTEXT: dict[str, type[Record]] = {"plan": StoredPlan, "failure": StoredReason}
_FLOOR: dict[str, type[Record]] = {"text": NoiseFloor, "text/failure": StoredReason}
_OTHERS: dict[str, type[Record]] = {BOUNDARY: StoredBoundary, SPEED: StoredRepeat}


def model_of(stage: str, key: str) -> type[Record] | None:
    """The form of a line; None: of no stage that there is."""
    if stage in ITEM_STAGES or stage == LIKELIHOOD:
        return ScoredItem
    if stage == FLOOR:
        return _FLOOR.get(key, ScoredItem)
    if stage == CONTEXT:
        return _CONTEXT.get(key.rpartition("/")[2], ScoredItem)
    return _NOTES.get(key) if stage == NOTES else _OTHERS.get(stage)


def check_line(stage: str, key: str, data: dict[str, Any]) -> bool:
    """
    Returns:
        Whether there is a form for it: of what has none nothing is known, nor how much memory it takes.

    Raises:
        FormatError: not what such a line holds.
    """
    model = model_of(stage, key)
    if model is None:
        return False
    try:
        model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "data"
        message = f"{printable(stage)} {printable(key)}: {printable(where)}: {printable(first['msg'], 200)}"
        raise FormatError(f"results that no evaluation stores: {message}") from None
    return True
