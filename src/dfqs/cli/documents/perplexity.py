"""What `perplexity` prints."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs.quantize.bootstrap import Estimate
from dfqs.quantize.noise_floor import AgainstFloor, NoiseFloor
from dfqs.quantize.perplexity import Measured, Summary
from dfqs.records import Document, Record, Text
from dfqs.runtime.loading import StreamFigures


class PerplexityConditions(Record):
    """What two measurements share before their numbers are compared; null before the text is read."""

    text_sha256: str | None = None
    vocabulary: int | None = None
    window_tokens: int
    stride_tokens: int
    numerics: Text | None = None
    """Flash attention, cache types, batch, version of the runtime."""


class PerplexityDocument(Document):
    """Loss of a model on a text, and against a reference; what was not measured is null. Losses in nats a token."""

    schema_: Literal["dfqs.perplexity/1"] = Field(default="dfqs.perplexity/1", alias="schema")
    model: Text
    characters: int
    """Of the text."""
    conditions: PerplexityConditions
    nll: Estimate | None
    perplexity: float | None
    perplexity_low: float | None
    perplexity_high: float | None
    kl: Estimate | None
    """Divergence from the reference, at least."""
    nll_difference: Estimate | None
    """Loss minus the reference's, paired by token."""
    same_top: Estimate | None
    """Share of tokens for which the most probable token is the reference's."""
    floor: NoiseFloor | None = None
    """How far the model is from itself under other numerics; null: not measured."""
    against_floor: AgainstFloor | None = None
    """Whether the differences from the reference are more than that; null: no reference, or no floor."""
    streaming: StreamFigures | None = None
    """Of a model that is larger than its memory."""

    @classmethod
    def planned(cls, model: Path, characters: int, window: int, stride: int) -> "PerplexityDocument":
        """What would be measured."""
        return cls(
            model=model,
            characters=characters,
            conditions=PerplexityConditions(window_tokens=window, stride_tokens=stride),
            nll=None,
            perplexity=None,
            perplexity_low=None,
            perplexity_high=None,
            kl=None,
            nll_difference=None,
            same_top=None,
        )

    @classmethod
    def of(cls, model: Path, characters: int, measured: Measured, summary: Summary) -> "PerplexityDocument":
        """What was measured."""
        shared = PerplexityConditions.model_validate(asdict(measured.losses.conditions))
        numbers = {name: getattr(summary, name) for name in summary.__dataclass_fields__}
        return cls(model=model, characters=characters, conditions=shared, **numbers, streaming=measured.streaming)
