"""What `quantize`, and `ladder` of its plan, print."""

from typing import Literal

from pydantic import Field

from dfqs.quantize.checks import gain_problem
from dfqs.quantize.metadata import ImatrixOrigin
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
