"""What `inspect` prints."""

from typing import Any, ClassVar, Literal

from pydantic import Field, create_model

from dfqs.gguf.kinds import MODEL
from dfqs.model.description import ModelDescription
from dfqs.model.files import ModelFiles
from dfqs.planning.loaders import LoaderVerdict
from dfqs.records import Document, Record, Text


class _Inspected(Document):
    """What a file is. Of a GGUF that is no model (see `kind`) name, size and tensors are known; the rest is null."""

    schema_: Literal["dfqs.inspect/1"] = Field(default="dfqs.inspect/1", alias="schema")
    source: Text
    """Path or address."""
    kind: str
    """`model`, or what it is instead."""
    gguf_version: int
    alignment: int
    tensors: int
    loaders: tuple[LoaderVerdict, ...] | None = None
    """Which programs load it; null: not asked (`--runtimes`)."""
    made_of: ClassVar[type[Record]] = ModelDescription
    """Whose keys follow."""


_DESCRIBED: dict[str, Any] = {
    name: (field.rebuild_annotation() | None, Field(default=None, alias=field.alias, description=field.description))
    for name, field in ModelDescription.model_fields.items()
}
InspectDocument = create_model("InspectDocument", __base__=_Inspected, __doc__=_Inspected.__doc__, **_DESCRIBED)
"""`_Inspected`, and every key of `ModelDescription`."""


def describe_inspected(model: ModelFiles, loaders: tuple[LoaderVerdict, ...] | None = None) -> _Inspected:
    """The document of a file, model or not."""
    described: dict[str, Any]
    if model.kind is MODEL:
        described = model.description.model_dump(mode="json")
    else:
        metadata = model.header.metadata
        described = {key: metadata.text(f"general.{key}") for key in ("name", "architecture")}
        described["file_bytes"] = model.file_bytes
    return InspectDocument(
        source=model.shards[0].source,
        kind=model.kind.code,
        gguf_version=model.header.version,
        alignment=model.header.alignment,
        tensors=len(model.tensors),
        loaders=loaders,
        **described,
    )
