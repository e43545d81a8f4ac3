"""Reads a GGUF header without believing it.

Lazy: keys are located, not decoded; a vocabulary of 129,280 strings is stepped over by its lengths and costs some
milliseconds. Every count, length, offset and product is checked against the bytes that are there before it is used.
"""

import importlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dfqs.errors import FormatError, UnsupportedGGUF
from dfqs.gguf.cursor import HEADER_LIMIT_BYTES, Cursor
from dfqs.gguf.layout import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_63_BIT,
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    VERSION,
    TensorInfo,
    TensorSpan,
    align_up,
    tensor_length,
)
from dfqs.gguf.metadata import KeyEntry, Metadata
from dfqs.gguf.source import ByteSource, FileSource
from dfqs.gguf.types import SCALAR_BYTES, GGMLType, ValueType
from dfqs.gguf.values import RawKeyValue
from dfqs.units import format_number_of

MAX_KEY_BYTES = 65535
MAX_ENTRIES = 1 << 18
"""Keys, and tensors. A description takes ten times its bytes in memory; the largest models have some 50,000."""
_VERSIONS_TO_COME = 100
"""A version that is larger is no version."""
MIN_KEY_ENTRY_BYTES = 8 + 1 + 4 + 1
MIN_TENSOR_ENTRY_BYTES = 8 + 1 + 4 + 4 + 8


@dataclass(slots=True)
class HeaderBudget:
    """What the headers of one model may take together, however many files it has or seems to have."""

    bytes: int = HEADER_LIMIT_BYTES
    entries: int = MAX_ENTRIES


@dataclass(frozen=True, slots=True)
class Header:
    """All that a GGUF file says of itself."""

    source_name: str
    version: int
    alignment: int
    entries: tuple[KeyEntry, ...]
    """Keys in file order."""
    metadata: Metadata
    tensors: tuple[TensorInfo, ...]
    """In file order."""
    header_length: int
    """Bytes before the padding that precedes the data section."""
    data_offset: int
    """First byte of the data section."""
    file_size: int
    _buffer: bytearray = field(repr=False)
    _by_name: dict[str, TensorInfo] = field(repr=False)

    def tensor(self, name: str) -> TensorInfo:
        """The tensor of that name.

        Raises:
            FormatError: there is none.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise FormatError("there is no such tensor", path=self.source_name, name=name) from None

    def has_tensor(self, name: str) -> bool:
        return name in self._by_name

    def span(self, tensor: TensorInfo) -> TensorSpan:
        """The tensor's place counted from the start of the file."""
        return TensorSpan(tensor.name, self.data_offset + tensor.offset, tensor.length)

    def same_value(self, other: "Header", name: str) -> bool:
        """Whether a key has the same type and value in both headers."""
        ours, theirs = self.metadata.entry(name), other.metadata.entry(name)
        if (ours.type, ours.element_type, ours.count) != (theirs.type, theirs.element_type, theirs.count):
            return False
        return self.metadata.value_bytes(name) == other.metadata.value_bytes(name)

    def is_of(self, source: ByteSource) -> bool:
        """Whether a source, now, begins with this header and is as long as it was."""
        return source.size == self.file_size and source.read_at(0, self.header_length) == self._buffer

    def raw_entry(self, entry: KeyEntry) -> RawKeyValue:
        """The key as it stands in the file, to be carried over unchanged."""
        return RawKeyValue(entry.name, bytes(self._buffer[entry.start : entry.end]))

    @property
    def raw(self) -> bytes:
        """The header's own bytes, from the magic to the last tensor's description."""
        return bytes(memoryview(self._buffer)[: self.header_length])

    @property
    def end_of_data(self) -> int:
        """Where the file should end: the last tensor's end, its padding included."""
        last = max((t.offset + t.length for t in self.tensors), default=0)
        return self.data_offset + align_up(last, self.alignment)


def read_header(source: Path | ByteSource) -> Header:
    """Read a header and make sure that its tensors lie where llama.cpp expects them, inside the file.

    Raises:
        FormatError: a lie, with path, offset and name.
        UsageError: the file is missing or unreadable.
    """
    header = parse_header(source)
    for problem in layout_problems(header):
        raise problem
    return header


def parse_header(source: Path | ByteSource, *, base: int = 0, budget: HeaderBudget | None = None) -> Header:
    """Read a header, whatever its tensor offsets are. Offsets in the result count from `base`.

    Args:
        base: where in the source the GGUF begins; more than 0 only to look into several files laid end to end.
        budget: of the model that it is a part of; what this header takes is taken from it.

    Raises:
        FormatError: the header itself is broken, or beyond the budget.
        UnsupportedGGUF: it is whole, and of a kind that llama.cpp does not load.
        UsageError: the file is missing or unreadable.
    """
    budget = HeaderBudget() if budget is None else budget
    if isinstance(source, Path | str):
        with FileSource(Path(source)) as file:
            return _parse(file, base, budget)
    return _parse(source, base, budget)


def layout_problems(header: Header) -> Iterator[FormatError]:
    """What is wrong with where the tensors lie: not contiguous, overlapping, outside the file."""
    expected = 0
    for tensor in header.tensors:
        if tensor.offset != expected:
            what = "overlaps the tensor before it" if tensor.offset < expected else "leaves a gap before it"
            if tensor.offset % header.alignment:
                what = f"is not a multiple of the alignment {header.alignment}"
            yield FormatError(
                f"its offset {tensor.offset:,} {what} (expected {expected:,})",
                path=header.source_name,
                name=tensor.name,
            )
        end = header.data_offset + tensor.offset + tensor.length
        if end > header.file_size:
            beyond = format_number_of(end - header.file_size, "byte")
            yield FormatError(
                f"ends {beyond} past the end of the file; the file is truncated: fetch or copy it again",
                path=header.source_name,
                offset=header.file_size,
                name=tensor.name,
            )
        expected = align_up(tensor.offset + tensor.length, header.alignment)


_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_HEAD = struct.Struct("<IQQ")
_ARRAY = struct.Struct("<IQ")
_TYPE_AND_OFFSET = struct.Struct("<IQ")
_SHAPES = tuple(struct.Struct(f"<{axes}Q") for axes in range(MAX_DIMENSIONS + 1))


def _parse(source: ByteSource, base: int, budget: HeaderBudget) -> Header:
    cursor = Cursor(source, base, budget.bytes)
    version, tensor_count, key_count = _take_head(cursor)
    _check_count(cursor, key_count, MIN_KEY_ENTRY_BYTES, "keys", 16)
    _check_count(cursor, tensor_count, MIN_TENSOR_ENTRY_BYTES, "tensors", 8)
    if key_count + tensor_count > budget.entries:
        raise cursor.fail(f"the headers of the model have more than {MAX_ENTRIES:,} keys and tensors together", 8)
    entries = _take_entries(cursor, key_count)
    alignment = _read_alignment(cursor, entries)
    tensors = _take_tensors(cursor, tensor_count)
    # Not a copy: a header may be 100 MB.
    buffer = cursor.buffer
    del buffer[cursor.position :]
    budget.bytes -= cursor.position
    budget.entries -= key_count + tensor_count
    return Header(
        source_name=source.name,
        version=version,
        alignment=alignment,
        entries=entries,
        metadata=Metadata(buffer, entries, source.name),
        tensors=tensors,
        header_length=cursor.position,
        data_offset=align_up(cursor.position, alignment),
        file_size=cursor.size,
        _buffer=buffer,
        _by_name={tensor.name: tensor for tensor in tensors},
    )


def _otherwise(cursor: Cursor, magic: bytes) -> str:
    """What a file is that does not begin with the magic; the end of a sentence."""
    if not any(magic):
        return " (all zeroes: its header was never written)"
    # What other files look like is not on the way of one that is what it should be.
    beginnings = importlib.import_module("dfqs.gguf.beginnings")
    found = beginnings.explain_beginning(bytes(cursor.buffer[: beginnings.SAMPLE_BYTES]))
    begins = f" (starts with {repr(magic)[1:]})"
    return begins if found is None else f"{begins}: {found.message}. {found.fix}"


def _take_head(cursor: Cursor) -> tuple[int, int, int]:
    if cursor.size <= 0:
        raise cursor.fail("the file is empty", 0)
    magic = cursor.take_bytes(min(4, cursor.size), "the magic")
    if magic != MAGIC:
        raise cursor.fail(f"not a GGUF file{_otherwise(cursor, magic)}", 0)
    version, tensor_count, key_count = cursor.take(_HEAD, "the header")
    if version & 0xFFFF == 0 and version:
        raise _unsupported(
            cursor,
            "big-endian",
            "a big-endian GGUF file, which llama.cpp does not load on this machine",
            "Fetch the file for little-endian machines, or turn it round with gguf-py's gguf_convert_endian.py.",
        )
    if version == 1:
        raise _unsupported(
            cursor,
            "version-1",
            "GGUF version 1, which llama.cpp has not read since November 2023",
            "Fetch a newer file of the same model, or convert the original again; no tool turns version 1 into 3.",
        )
    if VERSION < version < _VERSIONS_TO_COME:
        raise _unsupported(
            cursor,
            f"version-{version}",
            f"GGUF version {version}; versions 2 and 3 can be read",
            "It is newer than this program; look for a newer dfqs, or for the model in version 3.",
        )
    if version not in (2, VERSION):
        raise cursor.fail(f"GGUF version {version}; versions 2 and 3 can be read", 4)
    return version, tensor_count, key_count


def _unsupported(
    cursor: Cursor, code: str, message: str, fix: str, offset: int = 4, name: str | None = None
) -> UnsupportedGGUF:
    return UnsupportedGGUF(message, code=code, fix=fix, path=cursor.source.name, offset=cursor.base + offset, name=name)


def _check_count(cursor: Cursor, count: int, each: int, what: str, offset: int) -> None:
    most = min(cursor.size // each, MAX_ENTRIES)
    if count > most:
        raise cursor.fail(f"claims {count:,} {what}, {cursor.size:,} bytes hold {most:,}; is it cut short?", offset)


def _take_entries(cursor: Cursor, count: int) -> tuple[KeyEntry, ...]:
    entries: dict[str, KeyEntry] = {}
    for _ in range(count):
        start = cursor.position
        name = cursor.take_name("a key", MAX_KEY_BYTES)
        if name in entries:
            raise cursor.fail("the key stands twice", start, name)
        type_ = _value_type(cursor, cursor.take(_U32, "the type of a key", name)[0], name)
        element_type, length = None, 1
        if type_ is ValueType.ARRAY:
            number, length = cursor.take(_ARRAY, "an array", name)
            element_type = _value_type(cursor, number, name)
        value_start = cursor.position
        _skip_values(cursor, element_type if element_type is not None else type_, length, name)
        entries[name] = KeyEntry(name, type_, element_type, length, start, value_start, cursor.position)
    return tuple(entries.values())


def _value_type(cursor: Cursor, number: int, name: str) -> ValueType:
    try:
        return ValueType(number)
    except ValueError:
        raise cursor.fail(f"value type {number} is unknown", cursor.position - 4, name) from None


def _skip_values(cursor: Cursor, type_: ValueType, count: int, name: str) -> None:
    if type_ is ValueType.ARRAY:
        raise cursor.fail("an array of arrays, which llama.cpp does not read", name=name)
    if type_ is ValueType.STRING:
        if count * 8 > cursor.size - cursor.position:
            raise cursor.end(f"claims {count:,} strings, more than the bytes left can hold", name)
        cursor.skip_strings(count, name)
        return
    cursor.skip(count * SCALAR_BYTES[type_], f"{count:,} values of {type_.name}", name)


def _read_alignment(cursor: Cursor, entries: tuple[KeyEntry, ...]) -> int:
    entry = next((entry for entry in entries if entry.name == "general.alignment"), None)
    if entry is None:
        return DEFAULT_ALIGNMENT
    if entry.type is not ValueType.UINT32:
        raise cursor.fail(f"must be UINT32, is {entry.type.name}", entry.start, entry.name)
    value: int = _U32.unpack_from(cursor.buffer, entry.value_start)[0]
    if value == 0 or value & (value - 1):
        raise cursor.fail(f"alignment {value} is not a power of two", entry.value_start, entry.name)
    return value


def _take_tensors(cursor: Cursor, count: int) -> tuple[TensorInfo, ...]:
    tensors: list[TensorInfo] = []
    seen: set[str] = set()
    # Thousands of tensors have a handful of shapes: each is checked, and kept, once.
    forms: dict[tuple[int, tuple[int, ...]], tuple[tuple[int, ...], GGMLType, int]] = {}
    for _ in range(count):
        start = cursor.position
        name = cursor.take_name("a tensor name", MAX_NAME_BYTES)
        if name in seen:
            raise cursor.fail("the tensor stands twice", start, name)
        seen.add(name)
        (axes,) = cursor.take(_U32, "the number of axes", name)
        if axes > MAX_DIMENSIONS:
            raise cursor.fail(f"has {axes} axes, at most {MAX_DIMENSIONS} are known", cursor.position - 4, name)
        shape = cursor.take(_SHAPES[axes], "a shape", name) or (1,)
        number, offset = cursor.take(_TYPE_AND_OFFSET, "type and offset", name)
        form = forms.get((number, shape))
        if form is None:
            form = forms[number, shape] = _check_form(cursor, start, name, number, shape)
        if offset > MAX_63_BIT - form[2]:
            raise cursor.fail(f"offset {offset:,} does not fit in 63 bits", cursor.position - 8, name)
        tensors.append(TensorInfo(name, form[0], form[1], offset, form[2]))
    return tuple(tensors)


def _check_form(
    cursor: Cursor, start: int, name: str, number: int, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], GGMLType, int]:
    """Shape, type and bytes of a tensor that begins at `start` and has just been read."""
    try:
        type_ = GGMLType(number)
    except ValueError:
        raise _unsupported(
            cursor,
            "unknown-type",
            f"tensor type {number} is unknown",
            "It was made for a fork or another version of llama.cpp; quantize it again with a type known here.",
            cursor.position - 12,
            name,
        ) from None
    if 0 in shape:
        raise _unsupported(
            cursor,
            "empty-tensor",
            f"its shape {list(shape)} holds no value: a dimension is not positive",
            "The converter that made the file wrote a tensor of nothing; make it again without that tensor.",
            start,
            name,
        )
    try:
        return shape, type_, tensor_length(type_, shape)
    except FormatError as error:
        raise cursor.fail(error.detail, start, name) from None
