"""Metadata values: bytes to Python and back.

Strings are UTF-8 by the format, but vocabularies in the wild hold other bytes; `surrogateescape` keeps every byte, so
that decoding and encoding again gives the same file.
"""

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dfqs.errors import FormatError
from dfqs.gguf.types import SCALAR_CODES, ValueType

Value = int | float | bool | str | tuple[Any, ...]
"""A decoded metadata value; an array is a tuple."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key to be written. For an array `type` is ARRAY and `element_type` says of what."""

    name: str
    type: ValueType
    value: Any
    element_type: ValueType | None = None

    def encode(self) -> bytes:
        """The entry as it stands in a header.

        Raises:
            FormatError: the value does not fit its type.
        """
        try:
            head = encode_string(self.name) + struct.pack("<I", self.type)
            if self.type is ValueType.ARRAY:
                if self.element_type is None or self.element_type is ValueType.ARRAY:
                    raise FormatError("an array needs an element type, and not of arrays", name=self.name)
                values: Sequence[Any] = self.value
                return head + struct.pack("<IQ", self.element_type, len(values)) + _encode(self.element_type, values)
            return head + _encode(self.type, [self.value])
        except (struct.error, TypeError, AttributeError) as error:
            raise FormatError(f"{self.value!r:.60} is no {self.type.name}: {error}", name=self.name) from None


@dataclass(frozen=True, slots=True)
class RawKeyValue:
    """One key carried over from another header, byte for byte."""

    name: str
    data: bytes

    def encode(self) -> bytes:
        return self.data


def u16(name: str, value: int) -> KeyValue:
    return KeyValue(name, ValueType.UINT16, value)


def u32(name: str, value: int) -> KeyValue:
    return KeyValue(name, ValueType.UINT32, value)


def i32(name: str, value: int) -> KeyValue:
    return KeyValue(name, ValueType.INT32, value)


def u64(name: str, value: int) -> KeyValue:
    return KeyValue(name, ValueType.UINT64, value)


def f32(name: str, value: float) -> KeyValue:
    return KeyValue(name, ValueType.FLOAT32, value)


def boolean(name: str, value: bool) -> KeyValue:
    return KeyValue(name, ValueType.BOOL, value)


def string(name: str, value: str) -> KeyValue:
    return KeyValue(name, ValueType.STRING, value)


def array(name: str, element_type: ValueType, values: Sequence[Any]) -> KeyValue:
    return KeyValue(name, ValueType.ARRAY, values, element_type)


def encode_string(text: str) -> bytes:
    """Length (64 bits) and bytes."""
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def decode_scalars(type_: ValueType, data: bytes | memoryview) -> tuple[int | float | bool, ...]:
    """All values of fixed width in `data`."""
    code = SCALAR_CODES[type_]
    values = struct.unpack(f"<{len(data) // struct.calcsize('<' + code)}{code}", data)
    return tuple(v != 0 for v in values) if type_ is ValueType.BOOL else values


def decode_strings(data: bytes | memoryview, count: int) -> tuple[str, ...]:
    """`count` strings that stand one behind the other in `data`; their lengths have been checked."""
    buffer = bytes(data)
    unpack = struct.Struct("<Q").unpack_from
    strings = []
    position = 0
    for _ in range(count):
        end = position + 8 + unpack(buffer, position)[0]
        strings.append(buffer[position + 8 : end].decode("utf-8", "surrogateescape"))
        position = end
    return tuple(strings)


def _encode(type_: ValueType, values: Sequence[Any]) -> bytes:
    if type_ is ValueType.STRING:
        texts = [value.encode("utf-8", "surrogateescape") for value in values]
        lengths = map(struct.Struct("<Q").pack, map(len, texts))
        return b"".join(itertools.chain.from_iterable(zip(lengths, texts, strict=True)))
    if type_ is ValueType.BOOL:
        return bytes(1 if value else 0 for value in values)
    return struct.pack(f"<{len(values)}{SCALAR_CODES[type_]}", *values)
