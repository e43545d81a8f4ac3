"""Keys of a GGUF header that anybody may have written: asked for their type and length before a value is built."""

from collections.abc import Mapping
from pathlib import Path

from dfqs.errors import FormatError
from dfqs.gguf.metadata import KeyEntry, Metadata
from dfqs.gguf.types import ValueType

MAX_TEXT_BYTES = 1 << 20
"""A name, a hash or a recipe is some kilobytes at most."""
MAX_NAMES_BYTES = 8 << 20
"""Of a list of names."""

Keys = Mapping[str, object]


def read_text(keys: Keys, name: str) -> str | None:
    """A key that is text; None where there is none, or where it is something else or longer than any honest one."""
    entry = _entry(keys, name)
    if entry is not None and (entry.type is not ValueType.STRING or _length(entry) > MAX_TEXT_BYTES):
        return None
    value = keys.get(name)
    return value if isinstance(value, str) else None


def read_number(keys: Keys, name: str, path: Path) -> int | None:
    """A key that is a whole number; None where there is none.

    Raises:
        FormatError: it is something else.
    """
    if name not in keys:
        return None
    entry = _entry(keys, name)
    value = None if entry is not None and entry.type in (ValueType.ARRAY, ValueType.STRING) else keys[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise FormatError("must be a whole number", path=path, name=name)
    return value


def read_names(keys: Keys, name: str, path: Path) -> tuple[str, ...]:
    """A key that is a list of names; none where there is none.

    Raises:
        FormatError: it is something else, or longer than any honest one.
    """
    if name not in keys:
        return ()
    entry = _entry(keys, name)
    if entry is not None and (entry.element_type is not ValueType.STRING or _length(entry) > MAX_NAMES_BYTES):
        raise FormatError(f"must be a list of names, of {MAX_NAMES_BYTES:,} bytes at most", path=path, name=name)
    value = keys[name]
    return tuple(str(item) for item in value) if isinstance(value, tuple) else ()


def _entry(keys: Keys, name: str) -> KeyEntry | None:
    return keys.entry(name) if isinstance(keys, Metadata) and name in keys else None


def _length(entry: KeyEntry) -> int:
    return entry.end - entry.value_start
