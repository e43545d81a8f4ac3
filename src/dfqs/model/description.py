"""What a model is, as a record: the one form in which it is printed, stored with a run, and told in a report."""

from typing import Annotated

from pydantic import Field, ValidationError

from dfqs.errors import FormatError
from dfqs.model.classes import ClassMatch
from dfqs.model.facts import ModelFacts, class_name
from dfqs.records import Amount, AtLeastOne, Record, Text

Count = Annotated[int, Field(ge=0, lt=2**64)]
"""As a header can hold it, however little sense it makes."""


class RoleDescription(Record):
    """What the tensors of one role add up to."""

    tensors: Count
    parameters: Count
    bytes: Count
    bits_per_weight: Amount | None
    types: dict[str, Count]
    """Parameters (for tables: elements) by type."""


class ModelDescription(Record):
    """A model, as its headers describe it. Unknown is null."""

    name: Text | None
    """`general.name`."""
    description: Text | None
    """`general.description`: what the file says of itself."""
    license: Text | None
    """`general.license`."""
    architecture: Text
    files: AtLeastOne
    """1, or the number of shards."""
    file_bytes: Count
    """Of all files."""
    parameters: Count
    parameters_active: Count
    """That one token passes through."""
    tensor_bytes: Count
    bytes_per_token: Count
    """Of the weights that decoding one token reads."""
    bits_per_weight: Amount | None
    main_bits_per_weight: Amount | None
    """Of the matrices of the blocks; the tier goes by it."""
    file_type: str | None
    layers: Count | None
    experts: Count
    """Routed experts a layer; 0 for a dense model."""
    experts_used: Count
    experts_shared: Count
    context_tokens: Count | None
    """As trained."""
    embedding_length: Count | None
    vocabulary: Count | None
    chat_template: bool
    class_: str | None = Field(alias="class")
    """The deployment class that every tensor agrees with."""
    closest_class: str | None
    class_deviations: tuple[str, ...]
    """From the closest class."""
    declared_class: Text | None
    """What whoever made the file says it is."""
    tier: str | None
    """By bits per weight: a name of `dfqs.model.classes.TIERS`."""
    roles: dict[str, RoleDescription]

    @property
    def is_moe(self) -> bool:
        return self.experts > 0


def describe_model(facts: ModelFacts, source_name: str | None = None) -> ModelDescription:
    """The record of a model.

    Args:
        source_name: path or address, for messages.

    Raises:
        FormatError: numbers that no model has.
    """
    try:
        return ModelDescription(**vars(facts))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise FormatError(f"says of itself what no model is ({where})", path=source_name) from None


def describe_class(match: ClassMatch | None) -> dict[str, object]:
    """The class for programs; null where it is none."""
    return {
        "class": class_name(match),
        "closest_class": match.name if match is not None else None,
        "class_deviations": match.deviations if match is not None else (),
    }
