"""What a model is, worked out of its spec: the values of a `ModelDescription`, for who prints no document.

A look at a header is a tenth of a second; loading what checks documents would double it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dfqs.errors import FormatError
from dfqs.model.classes import ClassMatch, model_tier, recognise_class
from dfqs.model.spec import ModelSpec, RoleSize, bytes_per_token

_LIMIT = 1 << 64
"""No number of a header is as large."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The fields of `ModelDescription`, by the same names and said there; of roles, dictionaries."""

    name: str | None
    description: str | None
    license: str | None
    architecture: str
    files: int
    file_bytes: int
    parameters: int
    parameters_active: int
    tensor_bytes: int
    bytes_per_token: int
    bits_per_weight: float | None
    main_bits_per_weight: float | None
    file_type: str | None
    layers: int | None
    experts: int
    experts_used: int
    experts_shared: int
    context_tokens: int | None
    embedding_length: int | None
    vocabulary: int | None
    chat_template: bool
    class_: str | None
    closest_class: str | None
    class_deviations: tuple[str, ...]
    declared_class: str | None
    tier: str | None
    roles: dict[str, dict[str, Any]]

    @property
    def is_moe(self) -> bool:
        return self.experts > 0


def find_facts(
    spec: ModelSpec, *, files: int, file_bytes: int, license: str | None = None, source_name: str | None = None
) -> ModelFacts:
    """All that a description says.

    Args:
        files: that it lies in.
        license: as the file states it.
        source_name: path or address, for messages.

    Raises:
        FormatError: numbers that no model has.
    """
    match, tier = recognise_class(spec), model_tier(spec)
    facts = ModelFacts(
        name=spec.name,
        description=spec.description,
        license=license,
        architecture=spec.architecture,
        files=files,
        file_bytes=file_bytes,
        parameters=spec.parameters,
        parameters_active=spec.parameters_active,
        tensor_bytes=spec.tensor_bytes,
        bytes_per_token=bytes_per_token(spec),
        bits_per_weight=spec.bits_per_weight,
        main_bits_per_weight=spec.main_bits_per_weight,
        file_type=spec.file_type,
        layers=spec.layers,
        experts=spec.experts,
        experts_used=spec.experts_used,
        experts_shared=spec.experts_shared,
        context_tokens=spec.context_tokens,
        embedding_length=spec.embedding_length,
        vocabulary=spec.vocabulary,
        chat_template=spec.chat_template,
        class_=class_name(match),
        closest_class=match.name if match is not None else None,
        class_deviations=match.deviations if match is not None else (),
        declared_class=spec.declared_class,
        tier=tier.name if tier is not None else None,
        roles={size.role.value: _describe_role(size) for size in spec.roles},
    )
    for name in _impossible(vars(facts)):
        raise FormatError(f"says of itself what no model is ({name})", path=source_name)
    return facts


def class_name(match: ClassMatch | None) -> str | None:
    """The class that every tensor agrees with."""
    return match.name if match is not None and match.exact else None


def _describe_role(size: RoleSize) -> dict[str, Any]:
    return {
        "tensors": size.tensors,
        "parameters": size.parameters,
        "bytes": size.bytes,
        "bits_per_weight": size.bits_per_weight,
        "types": {type_.name: count for type_, count in size.types.items()},
    }


def _impossible(values: dict[str, Any]) -> Iterator[str]:
    """Names of numbers that no model has: `roles.attention.bytes`."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in _impossible(value))
        elif isinstance(value, int | float) and not 0 <= value < _LIMIT:
            yield name
