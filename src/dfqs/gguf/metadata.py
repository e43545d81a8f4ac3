"""A header's keys: located when the header is read, decoded when they are asked for, and never more than is asked.

A value costs up to ten times its bytes once it is Python's, and a header may hold 100 MB of one. So a reader that wants
a number or a name asks for just that (`integer`, `text`): the type is looked at before a value is built.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dfqs.errors import FormatError
from dfqs.gguf.types import SCALAR_CODES, ValueType
from dfqs.gguf.values import Value, decode_scalars, decode_strings

VALUE_LIMIT_BYTES = 32 << 20
ELEMENTS_LIMIT = 1 << 20
"""No honest value is larger: the largest vocabularies have 262,144 tokens and 600,000 merges, in 10 MB."""
TEXT_LIMIT_BYTES = 1 << 16
"""Of names and descriptions."""
_LENGTH = struct.Struct("<Q")
LAYERS_LIMIT = 4096
"""Of arrays with a value a layer; llama.cpp has 512 layers at most."""
INTEGER_TYPES = frozenset(
    {
        ValueType.UINT8,
        ValueType.INT8,
        ValueType.UINT16,
        ValueType.INT16,
        ValueType.UINT32,
        ValueType.INT32,
        ValueType.UINT64,
        ValueType.INT64,
    }
)


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """Where one key stands in the header. `start` to `end` is the whole entry, `value_start` where its value begins."""

    name: str
    type: ValueType
    element_type: ValueType | None
    """For an array: of what."""
    count: int
    """For an array: how many; 1 otherwise."""
    start: int
    value_start: int
    end: int

    @property
    def type_name(self) -> str:
        """`UINT32`, `array of STRING`."""
        return self.type.name if self.element_type is None else f"array of {self.element_type.name}"


class Metadata(Mapping[str, Value]):
    """A header's keys; a value is decoded when it is asked for.

    Raises (from reading a value):
        FormatError: the value is larger than any honest one; `header` names it and its place.
    """

    def __init__(self, buffer: bytes | bytearray, entries: tuple[KeyEntry, ...], source_name: str) -> None:
        self._buffer = buffer
        self._source_name = source_name
        self._entries = {entry.name: entry for entry in entries}

    def __getitem__(self, name: str) -> Value:
        entry = self._entries[name]
        self._check_size(entry, VALUE_LIMIT_BYTES)
        if entry.count > ELEMENTS_LIMIT:
            raise self._fail(entry, f"an array of {entry.count:,} values, no more than {ELEMENTS_LIMIT:,} are read")
        data = memoryview(self._buffer)[entry.value_start : entry.end]
        if entry.type is ValueType.ARRAY:
            assert entry.element_type is not None
            if entry.element_type is ValueType.STRING:
                return decode_strings(data, entry.count)
            return decode_scalars(entry.element_type, data)
        if entry.type is ValueType.STRING:
            return decode_strings(data, 1)[0]
        return decode_scalars(entry.type, data)[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def entry(self, name: str) -> KeyEntry:
        """Type and place of a key, without decoding it."""
        return self._entries[name]

    def find(self, name: str) -> KeyEntry | None:
        """As `entry`; None where there is no such key."""
        return self._entries.get(name)

    def value_bytes(self, name: str) -> bytes:
        """The value as it stands in the file, without its type."""
        entry = self._entries[name]
        return bytes(memoryview(self._buffer)[entry.value_start : entry.end])

    def integer(self, name: str) -> int | None:
        """A whole number; None where the key is missing or is none (a bool and a float are none)."""
        entry = self._entries.get(name)
        if entry is None or entry.type not in INTEGER_TYPES:
            return None
        value = self[name]
        assert isinstance(value, int)
        return value

    def text(self, name: str, limit_bytes: int = TEXT_LIMIT_BYTES) -> str | None:
        """A string; None where the key is missing or is none.

        Raises:
            FormatError: it is longer than `limit_bytes`.
        """
        entry = self._entries.get(name)
        if entry is None or entry.type is not ValueType.STRING:
            return None
        self._check_size(entry, limit_bytes)
        value = self[name]
        assert isinstance(value, str)
        return value

    def texts(self, name: str, limit_bytes: int = TEXT_LIMIT_BYTES) -> tuple[str, ...] | None:
        """An array of strings; None where the key is missing or is none. Raises as `text`, of all of them together."""
        entry = self._entries.get(name)
        if entry is None or entry.element_type is not ValueType.STRING:
            return None
        self._check_size(entry, limit_bytes)
        value = self[name]
        assert isinstance(value, tuple)
        return tuple(map(str, value))

    def integers(self, name: str, limit: int = LAYERS_LIMIT) -> tuple[int, ...] | None:
        """An array of whole numbers (or bools), one a layer or so; None where the key is missing or is none.

        Raises:
            FormatError: there are more than `limit`.
        """
        entry = self._entries.get(name)
        if entry is None or entry.element_type not in INTEGER_TYPES | {ValueType.BOOL}:
            return None
        if entry.count > limit:
            raise self._fail(entry, f"an array of {entry.count:,} values, no more than {limit:,} are read")
        value = self[name]
        assert isinstance(value, tuple)
        return tuple(int(number) for number in value)

    def first(self, name: str, limit: int) -> tuple[Value, ...]:
        """The first values of an array, at most `limit`, without decoding the others; of a single value, that value.

        Raises:
            FormatError: they are larger than any honest ones.
        """
        entry = self._entries[name]
        if entry.type is not ValueType.ARRAY:
            return (self[name],)
        assert entry.element_type is not None
        count = min(entry.count, limit)
        data = memoryview(self._buffer)[entry.value_start : entry.end]
        if entry.element_type is not ValueType.STRING:
            return decode_scalars(
                entry.element_type, data[: count * struct.calcsize("<" + SCALAR_CODES[entry.element_type])]
            )
        end = 0
        for _ in range(count):
            end += 8 + _LENGTH.unpack_from(data, end)[0]
        if end > VALUE_LIMIT_BYTES:
            raise self._fail(entry, f"strings of {end:,} bytes, no more than {VALUE_LIMIT_BYTES:,} are read")
        return decode_strings(data[:end], count)

    def boolean(self, name: str) -> bool | None:
        """A bool; None where the key is missing or is none."""
        entry = self._entries.get(name)
        return bool(self[name]) if entry is not None and entry.type is ValueType.BOOL else None

    def _check_size(self, entry: KeyEntry, limit_bytes: int) -> None:
        length = entry.end - entry.value_start
        if length > limit_bytes + 8:
            raise self._fail(entry, f"a value of {length:,} bytes, no more than {limit_bytes:,} are read")

    def _fail(self, entry: KeyEntry, message: str) -> FormatError:
        return FormatError(message, path=self._source_name, offset=entry.start, name=entry.name)
