"""What is stored: versioned JSON records, their canonical form and its hash."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dfqs.errors import FormatError, UsageError
from dfqs.storage import write_bytes_atomic

RECORD_LIMIT_BYTES = 256 << 20
"""A record read from outside may not be larger; a report is some kilobytes, a manifest of 1,000 tensors 200 kB."""


class Record(BaseModel):
    """Base of everything stored: unknown keys are refused, fields do not change after it is made.

    A record's version stands under the key `schema`; the field is `schema_`, as pydantic has a `schema` of its own.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", serialize_by_alias=True, validate_by_name=True, validate_by_alias=True
    )


RecordT = TypeVar("RecordT", bound=Record)


def write_json(path: Path, value: Record | dict[str, Any], *, overwrite: bool = True) -> None:
    """Write a record as readable JSON (two spaces, sorted only where the record sorts), whole or not at all."""
    plain = value.model_dump(mode="json") if isinstance(value, Record) else value
    write_bytes_atomic(path, (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode(), overwrite=overwrite)


def read_json(path: Path, model: type[RecordT]) -> RecordT:
    """Read and check a stored record.

    Raises:
        FormatError: too large, not JSON, or not of that record's form.
        UsageError: there is no such file.
    """
    try:
        if path.stat().st_size > RECORD_LIMIT_BYTES:
            raise FormatError(f"larger than any {model.__name__} can be", path=path)
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise FormatError(f"not a valid {model.__name__}: {where}: {first['msg']}", path=path) from None


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, UTF-8. Hashes are taken of this."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical form."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
