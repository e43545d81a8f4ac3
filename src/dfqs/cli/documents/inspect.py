"""What `inspect` prints."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, create_model

from dfqs.cli.documents.plain import inspected
from dfqs.model.description import ModelDescription
from dfqs.model.difference import HeaderDifference
from dfqs.model.files import ModelFiles
from dfqs.model.listing import (
    KeyListing,
    TensorListing,
    TokenizerListing,
    chat_template,
    describe_tokenizer,
    list_keys,
    list_tensors,
)
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
    keys: tuple[KeyListing, ...] | None = None
    """Null: not asked (`--keys`)."""
    listed_tensors: tuple[TensorListing, ...] | None = None
    """Null: not asked (`--tensors`)."""
    tokenizer: TokenizerListing | None = None
    """Null: not asked (`--tokenizer`), or the header has none."""
    template: Text | None = None
    """The chat template; null: not asked (`--template`), or there is none."""
    made_of: ClassVar[type[Record]] = ModelDescription
    """Whose keys follow."""


_DESCRIBED: dict[str, Any] = {
    name: (field.rebuild_annotation() | None, Field(default=None, alias=field.alias, description=field.description))
    for name, field in ModelDescription.model_fields.items()
}
InspectDocument = create_model("InspectDocument", __base__=_Inspected, __doc__=_Inspected.__doc__, **_DESCRIBED)
"""`_Inspected`, and every key of `ModelDescription`."""


class InspectDiffDocument(Document):
    """How two headers differ."""

    schema_: Literal["dfqs.inspect-diff/1"] = Field(default="dfqs.inspect-diff/1", alias="schema")
    first: Text
    """Path or address."""
    second: Text
    is_equal: bool
    difference: HeaderDifference


@dataclass(frozen=True, slots=True)
class Listed:
    """Of a header, what was asked for."""

    keys: tuple[KeyListing, ...] | None = None
    tensors: tuple[TensorListing, ...] | None = None
    tokenizer: TokenizerListing | None = None
    template: str | None = None
    tokenizer_asked: bool = False
    template_asked: bool = False

    @classmethod
    def of(
        cls, model: ModelFiles, keys: str | None, tensors: str | None, *, tokenizer: bool, template: bool
    ) -> "Listed":
        """Look it up.

        Args:
            keys, tensors: patterns of names; None: not asked.

        Raises:
            FormatError: a value is larger than any honest one.
        """
        return cls(
            None if keys is None else list_keys(model, keys),
            None if tensors is None else list_tensors(model, tensors),
            describe_tokenizer(model) if tokenizer else None,
            chat_template(model) if template else None,
            tokenizer,
            template,
        )

    @property
    def is_any(self) -> bool:
        return self.template_asked or self.tokenizer_asked or self.keys is not None or self.tensors is not None


_NOTHING = Listed()


def describe_inspected(
    model: ModelFiles, loaders: tuple[LoaderVerdict, ...] | None = None, listed: Listed = _NOTHING
) -> _Inspected:
    """The document of a file, model or not."""
    asked = {
        "loaders": loaders,
        "keys": listed.keys,
        "listed_tensors": listed.tensors,
        "tokenizer": listed.tokenizer,
        "template": listed.template,
    }
    return InspectDocument(**(inspected(model) | asked))


def describe_difference(first: ModelFiles, second: ModelFiles, found: HeaderDifference) -> InspectDiffDocument:
    """The document of a comparison."""
    return InspectDiffDocument(
        first=first.shards[0].source, second=second.shards[0].source, is_equal=found.is_equal, difference=found
    )
