"""What `quantize`, `ladder` (its plan), `imatrix` and `perplexity` print."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs.quantize.bootstrap import Estimate
from dfqs.quantize.checks import gain_problem
from dfqs.quantize.coverage import ColdExpert, Coverage
from dfqs.quantize.imatrix import ImatrixOutcome
from dfqs.quantize.logits_file import Conditions
from dfqs.quantize.metadata import ImatrixOrigin
from dfqs.quantize.perplexity import Summary
from dfqs.quantize.plan import QuantizationPlan
from dfqs.quantize.quantize import Quantized
from dfqs.quantize.recipe import recipe_record
from dfqs.records import Document, Record, Text


class RecipeException(Record):
    """Tensors that get another type than their role's; null: any."""

    role: str | None
    tensors: Text | None
    """A pattern of their names."""
    layers: tuple[int, ...] | None
    type: str


class Recipe(Record):
    """A class: a type for each role, and exceptions."""

    name: Text
    types: dict[str, str]
    exceptions: tuple[RecipeException, ...]


class PlannedRole(Record):
    """What the tensors of one role become."""

    tensors: int
    parameters: int
    bytes: int
    types: dict[str, int]
    """Parameters by type."""


class QuantizeDocument(Document):
    """An artifact, planned or made; what was not done is null."""

    schema_: Literal["dfqs.quantize/1"] = Field(default="dfqs.quantize/1", alias="schema")
    class_: Text = Field(alias="class")
    recipe: Recipe
    done_already: bool
    tensor_bytes: int
    parameters_to_quantize: int
    roles: dict[str, PlannedRole]
    notes: tuple[Text, ...]
    """Tensors that are not what the class says, a sentence each."""
    needs_imatrix: bool
    unseen_experts: int | None
    """(layer, expert) pairs that the importance matrix knows nothing of."""
    needs_allow_requantize: bool
    needs_force: bool
    paths: tuple[Text, ...] | None
    manifests: tuple[Text, ...] | None
    file_bytes: int | None
    wall_s: float | None
    threads: int | None
    resumed_tensors: int | None
    """Those that an earlier run had done."""

    @classmethod
    def of(
        cls,
        plan: QuantizationPlan,
        result: Quantized | None,
        imatrix: ImatrixOrigin | None,
        *,
        done_already: bool = False,
    ) -> "QuantizeDocument":
        """Plan and outcome."""
        outcome = result.outcome if result else None
        return cls(
            class_=plan.class_.name,
            recipe=Recipe.model_validate(recipe_record(plan.class_)),
            done_already=done_already,
            tensor_bytes=plan.bytes,
            parameters_to_quantize=plan.parameters_to_quantize,
            roles={
                size.role.value: PlannedRole(
                    tensors=size.tensors,
                    parameters=size.parameters,
                    bytes=size.bytes,
                    types={type_.name: count for type_, count in size.types.items()},
                )
                for size in plan.roles
            },
            notes=tuple(plan.notes),
            needs_imatrix=bool(plan.needing_importance),
            unseen_experts=imatrix.unseen_experts if imatrix else None,
            needs_allow_requantize=bool(plan.requantized),
            needs_force=gain_problem(plan) is not None,
            paths=tuple(result.paths) if result else None,
            manifests=tuple(result.manifests) if result else None,
            file_bytes=result.file_bytes if result else None,
            wall_s=outcome.wall_s if outcome else None,
            threads=outcome.threads if outcome else None,
            resumed_tensors=outcome.resumed if outcome else None,
        )


class LadderPlan(Document):
    """What a ladder would make, class by class."""

    schema_: Literal["dfqs.ladder-plan/1"] = Field(default="dfqs.ladder-plan/1", alias="schema")
    rungs: tuple[QuantizeDocument, ...]


class ImatrixDocument(Document):
    """An importance matrix, measured or merged; what was not measured is null."""

    schema_: Literal["dfqs.imatrix/1"] = Field(default="dfqs.imatrix/1", alias="schema")
    path: Text | None
    """What was written."""
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

    @classmethod
    def of(
        cls,
        output: Path | None,
        coverage: Coverage | None = None,
        outcome: ImatrixOutcome | None = None,
        corpus_sha256: str | None = None,
    ) -> "ImatrixDocument":
        """What is known."""
        return cls(
            path=output,
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
        )


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
    def of(cls, model: Path, characters: int, conditions: Conditions, summary: Summary) -> "PerplexityDocument":
        """What was measured."""
        shared = PerplexityConditions.model_validate(asdict(conditions))
        parts = {name: getattr(summary, name) for name in summary.__slots__}
        return cls(model=model, characters=characters, conditions=shared, **parts)
