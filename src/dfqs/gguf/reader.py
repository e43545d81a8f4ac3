"""Reads a GGUF header without believing it.

Lazy: keys are located, not decoded; a vocabulary of 129,280 strings is stepped over by its lengths and costs some
milliseconds. Every count, length, offset and product is checked against the bytes that are there before it is used.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dfqs.errors import FormatError
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
from dfqs.gguf.source import ByteSource, FileSource
from dfqs.gguf.types import SCALAR_BYTES, GGMLType, ValueType
from dfqs.gguf.values import RawKeyValue, Value, decode_scalars, decode_strings

HEADER_LIMIT_BYTES = 256 << 20
"""No header is larger; the largest vocabularies make 20 MB. Bounds memory when a header lies about itself."""
FIRST_READ_BYTES = 1 << 16
MAX_KEY_BYTES = 65535
MAX_ENTRIES = 1 << 18  # A description takes ten times its bytes in memory; the largest models have some 50,000.
MIN_KEY_ENTRY_BYTES = 8 + 1 + 4 + 1
MIN_TENSOR_ENTRY_BYTES = 8 + 1 + 4 + 4 + 8


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


class Metadata(Mapping[str, Value]):
    """A header's keys; a value is decoded when it is asked for."""

    def __init__(self, buffer: bytes, entries: tuple[KeyEntry, ...]) -> None:
        self._buffer = buffer
        self._entries = {entry.name: entry for entry in entries}

    def __getitem__(self, name: str) -> Value:
        entry = self._entries[name]
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
    _buffer: bytes = field(repr=False)
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

    def raw_entry(self, entry: KeyEntry) -> RawKeyValue:
        """The key as it stands in the file, to be carried over unchanged."""
        return RawKeyValue(entry.name, self._buffer[entry.start : entry.end])

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


def parse_header(source: Path | ByteSource, *, base: int = 0) -> Header:
    """Read a header, whatever its tensor offsets are. Offsets in the result count from `base`.

    Args:
        base: where in the source the GGUF begins; more than 0 only to look into several files laid end to end.

    Raises:
        FormatError: the header itself is broken.
        UsageError: the file is missing or unreadable.
    """
    if isinstance(source, Path | str):
        with FileSource(Path(source)) as file:
            return _parse(file, base)
    return _parse(source, base)


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
            yield FormatError(
                f"ends {_bytes_word(end - header.file_size)} past the end of the file; the file is truncated",
                path=header.source_name,
                offset=header.file_size,
                name=tensor.name,
            )
        expected = align_up(tensor.offset + tensor.length, header.alignment)


def _bytes_word(count: int) -> str:
    return f"{count:,} byte" if count == 1 else f"{count:,} bytes"


class _Cursor:
    """A position in a source, with the bytes up to it (and somewhat beyond) in memory."""

    def __init__(self, source: ByteSource, base: int) -> None:
        self.source = source
        self.base = base
        self.size = source.size - base
        self.buffer = bytearray()
        self.position = 0

    def fail(self, message: str, offset: int | None = None, name: str | None = None) -> FormatError:
        at = self.position if offset is None else offset
        return FormatError(message, path=self.source.name, offset=self.base + at, name=name)

    def require(self, length: int, what: str, name: str | None = None) -> None:
        """Have `length` bytes from the position in memory."""
        needed = self.position + length
        if needed > self.size:
            raise self.fail(
                f"{what} needs {_bytes_word(length)}, the file has {max(self.size - self.position, 0):,} left",
                name=name,
            )
        if needed > HEADER_LIMIT_BYTES:
            raise self.fail(f"{what} would make the header larger than {HEADER_LIMIT_BYTES:,} bytes", name=name)
        if needed > len(self.buffer):
            have = len(self.buffer)
            # Twice what was read so far: few reads for a large header, little waste for a small one.
            want = min(max(needed, 2 * have, FIRST_READ_BYTES), self.size, HEADER_LIMIT_BYTES)
            self.buffer += self.source.read_at(self.base + have, want - have)
            if needed > len(self.buffer):
                raise self.fail(f"{what}: the file ended while it was read", offset=len(self.buffer), name=name)

    def take(self, form: struct.Struct, what: str, name: str | None = None) -> tuple[int, ...]:
        self.require(form.size, what, name)
        values = form.unpack_from(self.buffer, self.position)
        self.position += form.size
        return values

    def take_bytes(self, length: int, what: str, name: str | None = None) -> bytes:
        self.require(length, what, name)
        data = bytes(self.buffer[self.position : self.position + length])
        self.position += length
        return data

    def take_name(self, what: str, limit: int) -> str:
        start = self.position
        (length,) = self.take(_U64, f"the length of {what}")
        if not 0 < length <= limit:
            raise self.fail(f"{what} is {length:,} bytes long, it must have 1 to {limit:,}", start)
        data = self.take_bytes(length, what)
        if 0 in data:  # C, and so llama.cpp, reads a name up to its first NUL.
            raise self.fail(f"{what} {data[:40]!r} holds a zero byte", start)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} {data[:40]!r} is not UTF-8", start) from None

    def skip(self, length: int, what: str, name: str) -> None:
        self.require(length, what, name)
        self.position += length

    def skip_strings(self, count: int, name: str) -> None:
        """Step over `count` strings by their lengths."""
        unpack = _U64.unpack_from
        while count:
            self.require(8, "the length of a string", name)
            buffer, position, last = self.buffer, self.position, len(self.buffer) - 8
            start = position
            for done in range(count):  # noqa: B007 - the loop is the hot path, `done` is read after it
                if position > last:
                    break
                start = position
                position += 8 + unpack(buffer, position)[0]
            else:
                done = count
            if position > len(buffer):
                # The last string reaches beyond what is in memory: let `require` decide whether it can be true.
                self.position = start
                self.require(position - start, "a string", name)
            self.position = position
            count -= done


_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_HEAD = struct.Struct("<IQQ")
_ARRAY = struct.Struct("<IQ")
_TYPE_AND_OFFSET = struct.Struct("<IQ")


def _parse(source: ByteSource, base: int) -> Header:
    cursor = _Cursor(source, base)
    version, tensor_count, key_count = _take_head(cursor)
    _check_count(cursor, key_count, MIN_KEY_ENTRY_BYTES, "keys", 16)
    _check_count(cursor, tensor_count, MIN_TENSOR_ENTRY_BYTES, "tensors", 8)
    entries = _take_entries(cursor, key_count)
    alignment = _read_alignment(cursor, entries)
    tensors = _take_tensors(cursor, tensor_count)
    buffer = bytes(memoryview(cursor.buffer)[: cursor.position])
    return Header(
        source_name=source.name,
        version=version,
        alignment=alignment,
        entries=entries,
        metadata=Metadata(buffer, entries),
        tensors=tensors,
        header_length=cursor.position,
        data_offset=align_up(cursor.position, alignment),
        file_size=cursor.size,
        _buffer=buffer,
        _by_name={tensor.name: tensor for tensor in tensors},
    )


def _take_head(cursor: _Cursor) -> tuple[int, int, int]:
    if cursor.size <= 0:
        raise cursor.fail("the file is empty", 0)
    magic = cursor.take_bytes(min(4, cursor.size), "the magic")
    if magic != MAGIC:
        hint = "all zeroes: its header was never written" if not any(magic) else f"starts with {repr(magic)[1:]}"
        raise cursor.fail(f"not a GGUF file ({hint})", 0)
    version, tensor_count, key_count = cursor.take(_HEAD, "the header")
    if version & 0xFFFF == 0 and version:
        raise cursor.fail("a big-endian GGUF file, which llama.cpp does not load on this machine", 4)
    if version not in (2, VERSION):
        raise cursor.fail(f"GGUF version {version}; versions 2 and 3 can be read", 4)
    return version, tensor_count, key_count


def _check_count(cursor: _Cursor, count: int, each: int, what: str, offset: int) -> None:
    most = min(cursor.size // each, MAX_ENTRIES)
    if count > most:
        raise cursor.fail(f"claims {count:,} {what}, {cursor.size:,} bytes hold {most:,}; is it cut short?", offset)


def _take_entries(cursor: _Cursor, count: int) -> tuple[KeyEntry, ...]:
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


def _value_type(cursor: _Cursor, number: int, name: str) -> ValueType:
    try:
        return ValueType(number)
    except ValueError:
        raise cursor.fail(f"value type {number} is unknown", cursor.position - 4, name) from None


def _skip_values(cursor: _Cursor, type_: ValueType, count: int, name: str) -> None:
    if type_ is ValueType.ARRAY:
        raise cursor.fail("an array of arrays, which llama.cpp does not read", name=name)
    if type_ is ValueType.STRING:
        if count * 8 > cursor.size - cursor.position:
            raise cursor.fail(f"claims {count:,} strings, more than the bytes left can hold", name=name)
        cursor.skip_strings(count, name)
        return
    cursor.skip(count * SCALAR_BYTES[type_], f"{count:,} values of {type_.name}", name)


def _read_alignment(cursor: _Cursor, entries: tuple[KeyEntry, ...]) -> int:
    entry = next((entry for entry in entries if entry.name == "general.alignment"), None)
    if entry is None:
        return DEFAULT_ALIGNMENT
    if entry.type is not ValueType.UINT32:
        raise cursor.fail(f"must be UINT32, is {entry.type.name}", entry.start, entry.name)
    value: int = _U32.unpack_from(cursor.buffer, entry.value_start)[0]
    if value == 0 or value & (value - 1):
        raise cursor.fail(f"alignment {value} is not a power of two", entry.value_start, entry.name)
    return value


def _take_tensors(cursor: _Cursor, count: int) -> tuple[TensorInfo, ...]:
    tensors: list[TensorInfo] = []
    seen: set[str] = set()
    for _ in range(count):
        start = cursor.position
        name = cursor.take_name("a tensor name", MAX_NAME_BYTES)
        if name in seen:
            raise cursor.fail("the tensor stands twice", start, name)
        seen.add(name)
        (axes,) = cursor.take(_U32, "the number of axes", name)
        if axes > MAX_DIMENSIONS:
            raise cursor.fail(f"has {axes} axes, at most {MAX_DIMENSIONS} are known", cursor.position - 4, name)
        shape = cursor.take(struct.Struct(f"<{axes}Q"), "a shape", name) or (1,)
        number, offset = cursor.take(_TYPE_AND_OFFSET, "type and offset", name)
        try:
            type_ = GGMLType(number)
        except ValueError:
            raise cursor.fail(f"tensor type {number} is unknown", cursor.position - 12, name) from None
        try:
            length = tensor_length(type_, shape)
        except FormatError as error:
            raise cursor.fail(error.detail, start, name) from None
        if offset > MAX_63_BIT - length:
            raise cursor.fail(f"offset {offset:,} does not fit in 63 bits", cursor.position - 8, name)
        tensors.append(TensorInfo(name, shape, type_, offset, length))
    return tuple(tensors)
