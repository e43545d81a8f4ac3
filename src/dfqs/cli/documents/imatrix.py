"""What `imatrix` prints."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs.quantize.coverage import ColdExpert, Coverage
from dfqs.quantize.imatrix import ImatrixOutcome
from dfqs.records import Document, Text
from dfqs.runtime.loading import StreamFigures


class ImatrixDocument(Document):
    """An importance matrix, measured or merged; what was not measured is null."""

    schema_: Literal["dfqs.imatrix/1"] = Field(default="dfqs.imatrix/1", alias="schema")
    path: Text | None
    """What was written."""
    done_already: bool = False
    """An earlier run of the same command wrote it."""
    tokens: int | None
    tokens_available: int | None
    resumed_tokens: int | None
    stopped_because: str | None
    corpus_sha256: str | None
    wall_s: float | None
    experts: int | None
    """(layer, expert) pairs; 0 for a dense model."""
    min_samples: int | None
    median_samples: float | None
    cold: tuple[ColdExpert, ...] | None
    """Pairs that saw less than `min_samples` inputs, coldest first."""
    streaming: StreamFigures | None = None
    """Of a model that is larger than its memory."""

    @classmethod
    def of(
        cls,
        output: Path | None,
        coverage: Coverage | None = None,
        outcome: ImatrixOutcome | None = None,
        corpus_sha256: str | None = None,
        *,
        done_already: bool = False,
    ) -> "ImatrixDocument":
        """What is known."""
        return cls(
            path=output,
            done_already=done_already,
            tokens=outcome.tokens if outcome else None,
            tokens_available=outcome.tokens_available if outcome else None,
            resumed_tokens=outcome.resumed_tokens if outcome else None,
            stopped_because=outcome.stopped_because if outcome else None,
            corpus_sha256=corpus_sha256,
            wall_s=outcome.wall_s if outcome else None,
            experts=coverage.experts if coverage else None,
            min_samples=coverage.min_samples if coverage else None,
            median_samples=coverage.median_samples if coverage else None,
            cold=coverage.cold if coverage else None,
            streaming=outcome.streaming if outcome else None,
        )
