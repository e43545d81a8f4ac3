"""What is stored: versioned JSON records, their canonical form and its hash."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema

from dfqs.errors import FormatError, UsageError, printable
from dfqs.storage.atomic import write_bytes_atomic
from dfqs.storage.documents import MAX_DEPTH as MAX_DEPTH
from dfqs.storage.documents import parse_json as parse_json
from dfqs.storage.documents import read_bounded as read_bounded
from dfqs.storage.documents import readable_text as readable_text

RECORD_LIMIT_BYTES = 8 << 20
"""A record read from outside may not be larger, unless its kind says so; a report is some kilobytes."""
MAX_VALUES = 1_500_000
"""In a record's text, counted by its commas: bounds the memory that the values take. A manifest of 512 experts in 94
layers has some 200 thousand."""
MAX_KEYS = 10_000
"""In one object of a record. Each unknown one is an error of its own, which takes some hundred bytes."""
_SEQUENCES = frozenset({"list", "tuple", "set", "frozenset"})
_HALF = re.compile("[\ud800-\udfff]")


def is_null(value: object) -> bool:
    """For `Field(exclude_if=...)`: what is not known is left out, as in records of before it was asked."""
    return value is None


class Record(BaseModel):
    """Base of everything stored: unknown keys are refused, fields do not change after it is made."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        defer_build=True,
        serialize_by_alias=True,
        validate_by_name=True,
        validate_by_alias=True,
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Of a list whose entries are all wrong only the first is told: errors take more memory than the text."""
        schema = handler(source)
        waiting: list[Any] = [schema]
        while waiting:
            node = waiting.pop()
            if isinstance(node, dict):
                # A field may be called "type" too; then its schema stands there, not a word.
                kind = node.get("type")
                if isinstance(kind, str) and kind in _SEQUENCES:
                    node["fail_fast"] = True
                waiting.extend(node.values())
            elif isinstance(node, list | tuple):
                waiting.extend(node)
        return schema


class Document(Record):
    """Base of everything that is stored or printed by itself. It begins with `schema`, its form's name and version.

    A subclass says `schema_: Literal["dfqs.NAME/1"] = Field(default="dfqs.NAME/1", alias="schema")`: pydantic has a
    `schema` of its own.
    """

    schema_: str = Field(alias="schema")
    earlier_keys: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Keys of documents that were stored before, each with what it is called now. They are read for ever."""

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for before, now in cls.earlier_keys:
                # Where both are there, the earlier one is what it would be in any document: an unknown key.
                if before in value and now not in value:
                    value = {now if key == before else key: entry for key, entry in value.items()}
        return value


Text = Annotated[str, BeforeValidator(readable_text)]
"""Text of a printed document: a path or words from outside. Half of a surrogate pair comes out as its number."""
RecordT = TypeVar("RecordT", bound=Record)

# Numbers as stored documents have them: bounded, so that nothing computed or printed from them overflows.
Whole = Annotated[int, Field(ge=0, le=2**53)]
AtLeastOne = Annotated[int, Field(ge=1, le=2**53)]
Amount = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def write_json(path: Path, value: Record | dict[str, Any], *, overwrite: bool = False) -> None:
    """Write a record as readable JSON (two spaces, sorted only where the record sorts), whole or not at all."""
    plain = value.model_dump(mode="json") if isinstance(value, Record) else value
    text = _whole(json.dumps(plain, indent=2, ensure_ascii=False))
    write_bytes_atomic(path, (text + "\n").encode(), overwrite=overwrite)


def read_json(path: Path, model: type[RecordT], *, limit_bytes: int = RECORD_LIMIT_BYTES) -> RecordT:
    """Read and check a stored record.

    Args:
        limit_bytes: a file of this kind may not be larger; pydantic takes some 16 times as much memory as the text.

    Raises:
        FormatError: too large, not JSON, or not of that record's form.
        UsageError: there is no such file, or it is no regular file.
    """
    return parse_record(read_bounded(path, limit_bytes), model, path=path)


def is_document(path: Path, schema: str) -> bool:
    """Whether a file is a JSON document of `schema`: what dfqs wrote itself, it may write again."""
    try:
        found = parse_json(read_bounded(path, RECORD_LIMIT_BYTES))
    except (FormatError, UsageError):
        return False
    return isinstance(found, dict) and found.get("schema") == schema


def parse_record(data: bytes | str, model: type[RecordT], *, path: Path | None = None) -> RecordT:
    """A record out of its JSON text, checked.

    Raises:
        FormatError: not JSON, or not of that record's form.
    """
    commas = data.count(b",") if isinstance(data, bytes) else data.count(",")
    if commas > MAX_VALUES:
        raise FormatError(f"more than {MAX_VALUES:,} values, which no {model.__name__} has", path=path)
    try:
        return model.model_validate(parse_json(data, path=path, max_keys=MAX_KEYS))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        message = f"not a valid {model.__name__}: {printable(where)}: {printable(first['msg'], 200)}"
        raise FormatError(message, path=path) from None


def compact_json(document: Document) -> bytes:
    """A document without spaces, its keys in the order of its form: `schema` first."""
    plain = document.model_dump(mode="json")
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, UTF-8. Hashes are taken of this."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return _whole(
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    ).encode()


def _whole(json_text: str) -> str:
    """JSON text without halves of surrogate pairs: what no file can hold stands there as its number."""
    return _HALF.sub(lambda match: f"\\\\u{ord(match[0]):04x}", json_text)


def sha256_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical form."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
