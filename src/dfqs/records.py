"""What is stored: versioned JSON records, their canonical form and its hash."""

import hashlib
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar

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

RECORD_LIMIT_BYTES = 8 << 20
"""A record read from outside may not be larger, unless its kind says so; a report is some kilobytes."""
MAX_DEPTH = 64
"""Objects and arrays inside each other; no document of ours comes near."""
MAX_VALUES = 1_500_000
"""In a record's text, counted by its commas: bounds the memory that the values take. A manifest of 512 experts in 94
layers has some 200 thousand."""
MAX_KEYS = 10_000
"""In one object of a record. Each unknown one is an error of its own, which takes some hundred bytes."""
_SEQUENCES = frozenset({"list", "tuple", "set", "frozenset"})
_INTEGER_CHARACTERS = 20
"""Of a 64-bit integer with its sign."""
_HALF = re.compile("[\ud800-\udfff]")


class Record(BaseModel):
    """Base of everything stored: unknown keys are refused, fields do not change after it is made."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", serialize_by_alias=True, validate_by_name=True, validate_by_alias=True
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

    A subclass says `schema_: Literal["dfqs.name/1"] = Field(default="dfqs.name/1", alias="schema")`: pydantic has a
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


def readable_text(value: Any) -> Any:
    """A path, or a stranger's words, as text that any reader of JSON takes: bytes that are no UTF-8 as numbers."""
    if isinstance(value, os.PathLike):
        return os.fsencode(value).decode("utf-8", "backslashreplace")
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "backslashreplace").decode()
    return value


Text = Annotated[str, BeforeValidator(readable_text)]
"""Text of a printed document: a path or words from outside. Half of a surrogate pair comes out as its number."""
RecordT = TypeVar("RecordT", bound=Record)

# Numbers as stored documents have them: bounded, so that nothing computed or printed from them overflows.
Whole = Annotated[int, Field(ge=0, le=2**53)]
AtLeastOne = Annotated[int, Field(ge=1, le=2**53)]
Amount = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False)]
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


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """All bytes of a regular file that may have been put there by anybody.

    A pipe or a device is refused without waiting for it; a file that grows while it is read is read no further than
    the limit.

    Raises:
        FormatError: it is larger than `limit_bytes`.
        UsageError: there is no such file, or it is no regular file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}") from None
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is not a regular file")
        if status.st_size <= limit_bytes:
            data = file.read(limit_bytes + 1)
            if len(data) <= limit_bytes:
                return data
    raise FormatError(f"larger than the {limit_bytes:,} bytes that a file of this kind can have", path=path)


def parse_json(data: bytes | str, *, path: Path | None = None, max_keys: int | None = None) -> Any:
    """The value of a JSON text from outside: the one door for everything that is read back from a disk or a peer.

    Beyond being JSON, it holds nothing that makes trouble later: no NaN or infinity, no integer above 64 bits, no
    half of a surrogate pair (which no file can hold), no nesting deeper than `MAX_DEPTH`.

    Args:
        max_keys: of one object.

    Raises:
        FormatError: it is not that.
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        value = json.loads(text, parse_int=_integer, parse_float=_finite, parse_constant=_refuse_constant)
        _check_values(value, max_keys)
    except RecursionError:
        raise FormatError("nested too deeply to be a document of ours", path=path) from None
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8 text", path=path, offset=error.start) from None
    except ValueError as error:
        raise FormatError(f"not usable JSON: {printable(str(error), 200)}", path=path) from None
    return value


def _check_values(value: Any, max_keys: int | None) -> None:
    """Depth and text of everything inside; not recursive, so that no nesting can exhaust the stack."""
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, str):
            item.encode("utf-8")
        elif isinstance(item, list | dict):
            if depth == MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
            if isinstance(item, dict):
                if max_keys is not None and len(item) > max_keys:
                    raise ValueError(f"an object of more than {max_keys:,} keys")
                waiting.extend((key, depth + 1) for key in item)
                item = item.values()
            waiting.extend((inner, depth + 1) for inner in item)


def _integer(text: str) -> int:
    if len(text) > _INTEGER_CHARACTERS or not -(2**63) <= (value := int(text)) < 2**64:
        raise ValueError(f"an integer of more than 64 bits: {text[:24]}")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a number beyond every range: {text[:24]}")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


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
