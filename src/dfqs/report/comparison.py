"""`dfqs.comparison/1`: what two evaluations say about two models, and what they cannot say."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from dfqs import __version__
from dfqs.quantize.noise_floor import Resolution
from dfqs.records import Document, Record, Share, Text, Whole


class Outcome(StrEnum):
    """What was found out about one measure of another model, against the reference's."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference shown"
    """Which is not "no difference": beside it stands how small a one could have been seen."""
    NOT_MEASURED = "not measured"
    REFUSED = "refused"
    """The conditions differ."""
    TOLD = "told"
    """Its values are told, and no test made."""


class Compared(Record):
    """One side."""

    place: Text
    """As it was given."""
    name: Text
    file_sha256: str | None
    content_sha256: str | None
    score_fingerprint: str
    speed_fingerprint: str | None
    answers: bool
    """Its answers are here, so that questions can be paired; without them counts are compared."""


class Measure(Record):
    """One number of both."""

    name: str
    """As in `metrics`; `context at N tokens` for a point of the curve, `likelihood of SET` for probabilities."""
    outcome: Outcome
    reason: str | None = None
    """Why there is no better outcome than this."""
    reference: float | None
    value: float | None
    difference: float | None = None
    """`value - reference`; of speeds the ratio less 1; of likelihoods in nats a question."""
    interval: tuple[float, float] | None = None
    """95 %; of speeds, from the slowest and fastest repeats."""
    method: str | None = None
    n: Whole | None = None
    """Questions that both were asked; of speeds, repeats of the reference."""
    both_right: Whole | None = None
    reference_alone_right: Whole | None = None
    other_alone_right: Whole | None = None
    p_value: Share | None = None
    p_adjusted: Share | None = None
    """Allowing for the tests beside it (Holm); the outcome is decided on this."""
    smallest_significant: float | None = None
    """The smallest difference that this test would have told from none."""
    detectable: float | None = None
    """The true difference that would have been shown four times in five."""
    noise_floor: float | None = None
    """How far either model is at most from itself under other numerics, in the difference's unit; null: not known."""
    resolution: Resolution | None = None
    """Whether the difference is more than that."""


class Against(Record):
    """Another evaluation against the reference."""

    other: Compared
    same_content: bool | None
    """The same tensors; null: not known of an endpoint."""
    score_differences: tuple[Text, ...]
    """Conditions of scores that differ."""
    speed_differences: tuple[Text, ...]
    """Conditions of speed that differ."""
    measures: tuple[Measure, ...]
    outcome: Outcome
    """Of all: worse if anything is; refused or not measured if that stands in the way; better if anything is."""


class ComparisonDocument(Document):
    """What `dfqs compare` found. The first evaluation is the reference."""

    schema_: Literal["dfqs.comparison/1"] = Field(default="dfqs.comparison/1", alias="schema")
    dfqs_version: str = __version__
    reference: Compared
    others: tuple[Against, ...]
    anyway: bool
    """Conditions that differ were not refused."""
    noise_floor_nats: float | None
    """How far the reference is from itself under other numerics, a token; null: not measured."""
    notices: tuple[Text, ...]
    outcome: Outcome
