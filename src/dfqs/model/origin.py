"""What a model's header says of where it comes from and on which terms. Nothing of it is checked: it is what whoever
made the file wrote.

Keys: the GGUF specification, `general.*`.
"""

from dataclasses import dataclass

from dfqs.gguf.metadata import Metadata

BASE_MODELS_LIMIT = 8
"""A merge of more is not told in full."""


@dataclass(frozen=True, slots=True)
class ModelOrigin:
    """Words from the header; None where it says nothing."""

    license: str | None
    """An identifier, as most write it: `apache-2.0`."""
    license_name: str | None
    license_link: str | None
    source: str | None
    """Address of the model that this file was converted from."""
    base_models: tuple[str, ...]
    """Addresses of what that model was trained or merged from: its own parents, and not what was quantized."""
    author: str | None
    """Of the model; or its organization."""
    quantized_by: str | None
    languages: tuple[str, ...]


def read_origin(metadata: Metadata) -> ModelOrigin:
    """What the header of a file, or of the first shard, says.

    Raises:
        FormatError: words larger than any honest ones.
    """
    count = min(metadata.integer("general.base_model.count") or 0, BASE_MODELS_LIMIT)
    named = [metadata.text(f"general.base_model.{index}.repo_url") for index in range(max(count, 0))]
    return ModelOrigin(
        license=metadata.text("general.license"),
        license_name=metadata.text("general.license.name"),
        license_link=metadata.text("general.license.link"),
        source=metadata.text("general.source.repo_url") or metadata.text("general.repo_url"),
        base_models=tuple(address for address in named if address),
        author=metadata.text("general.author") or metadata.text("general.organization"),
        quantized_by=metadata.text("general.quantized_by"),
        languages=metadata.texts("general.languages") or (),
    )
