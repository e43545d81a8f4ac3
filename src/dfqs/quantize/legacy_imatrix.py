"""llama.cpp's older importance-matrix file (`.dat`, until 2025): read here, no longer written by anybody.

Little-endian: int32 number of entries; for each int32 length of the name, the name, int32 calls, int32 number of
values, float32 values (mean square of a column, times calls; the experts of a stacked weight end to end). Then, in most
files, int32 number of the last chunk, int32 length of the corpus's name, that name.
Source: `common/imatrix-loader.cpp` (`common_imatrix_load_legacy`).
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import FormatError
from dfqs.gguf.layout import MAX_NAME_BYTES
from dfqs.gguf.reader import parse_header
from dfqs.gguf.source import BytesSource, FileSource
from dfqs.gguf.types import ValueType
from dfqs.gguf.values import KeyValue, array, u32
from dfqs.gguf.writer import encode_header

CHUNK_TOKENS = 512
"""A call is a chunk, whose tokens the file does not count: llama-imatrix's default, as that tool takes it too."""
MAX_ENTRIES = 1 << 16
MAX_DATASET_BYTES = 4096
MAX_VALUES = 1 << 24
"""Of one weight; no model comes near."""
_INT = struct.Struct("<i")
_TWO_INTS = struct.Struct("<ii")


@dataclass(frozen=True, slots=True)
class _Entry:
    calls: int
    values: int
    offset: int


class LegacySums:
    """An open `.dat` file: where the values of each weight stand. What was read is checked against the file's length.

    Raises:
        FormatError: it is no such file.
        UsageError: the file is missing or unreadable.
    """

    def __init__(self, path: Path) -> None:
        self._source = FileSource(path)
        self._path = path
        self._position = 0
        try:
            self._entries = self._read_entries()
            header = encode_header(self._read_trailer(), [])
            self.metadata = parse_header(BytesSource(header, str(path))).metadata
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> tuple[str, ...]:
        """Weights it knows, in file order."""
        return tuple(self._entries)

    def elements(self, name: str, suffix: str) -> int:
        """Columns times experts for the squares; one count for all experts (what each saw is not written down)."""
        return {".in_sum2": self._entries[name].values, ".counts": 1}.get(suffix, 0)

    def array(self, name: str, suffix: str) -> NDArray[np.float32]:
        """Sums over as many inputs as the count says. The scale is a power of two: dividing gives the same bits."""
        entry = self._entries[name]
        if suffix == ".counts":
            return np.array([entry.calls * CHUNK_TOKENS], np.float32)
        data = self._source.read_exactly(entry.offset, 4 * entry.values)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.frombuffer(data, "<f4") * np.float32(CHUNK_TOKENS)

    def close(self) -> None:
        self._source.close()

    def _read_entries(self) -> dict[str, _Entry]:
        (count,) = self._take(_INT)
        if not 0 < count <= MAX_ENTRIES:
            raise self._fail(f"claims {count:,} entries")
        entries: dict[str, _Entry] = {}
        for _ in range(count):
            name = self._take_name(MAX_NAME_BYTES)
            calls, values = self._take(_TWO_INTS)
            fits = 1 <= values <= MAX_VALUES and self._position + 4 * values <= self._source.size
            if name in entries or calls < 0 or not fits:
                raise self._fail(f"{values:,} values of {calls:,} calls do not fit", name)
            entries[name] = _Entry(calls, values, self._position)
            self._position += 4 * values
        return entries

    def _read_trailer(self) -> list[KeyValue]:
        """As the keys of the newer files."""
        if self._position == self._source.size:
            return []
        (chunks,) = self._take(_INT)
        dataset = self._take_name(MAX_DATASET_BYTES) if self._position < self._source.size else ""
        if chunks < 0 or self._position != self._source.size:
            raise self._fail("goes on after its end")
        keys = [u32("imatrix.chunk_count", chunks), u32("imatrix.chunk_size", CHUNK_TOKENS)]
        return [*keys, array("imatrix.datasets", ValueType.STRING, [dataset])] if dataset else keys

    def _take(self, form: struct.Struct) -> tuple[int, ...]:
        if self._position + form.size > self._source.size:
            raise self._fail("is cut short")
        values = form.unpack(self._source.read_exactly(self._position, form.size))
        self._position += form.size
        return values

    def _take_name(self, limit: int) -> str:
        (length,) = self._take(_INT)
        if not 0 <= length <= limit or self._position + length > self._source.size:
            raise self._fail(f"a name of {length:,} bytes")
        data = self._source.read_exactly(self._position, length)
        self._position += length
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self._fail("a name that is not UTF-8") from None

    def _fail(self, what: str, name: str | None = None) -> FormatError:
        return FormatError(
            f"neither a GGUF importance matrix nor an older one (.dat): {what}",
            path=self._path,
            offset=self._position,
            name=name,
        )
