"""A walk through the bytes of a header: each step is checked against what is there and what a header may take."""

import functools
import re
import struct

from dfqs.errors import FormatError, TruncatedGGUF
from dfqs.gguf.source import ByteSource
from dfqs.units import format_number_of

HEADER_LIMIT_BYTES = 64 << 20
"""No header is larger; the largest vocabularies make 20 MB. Bounds memory when a header lies about itself."""
FIRST_READ_BYTES = 1 << 16
SHORT_BYTES = 48
RUN = 256
_U64 = struct.Struct("<Q")


class Cursor:
    """A position in a source, with the bytes up to it (and somewhat beyond) in memory."""

    def __init__(self, source: ByteSource, base: int, limit_bytes: int) -> None:
        self.source = source
        self.base = base
        self.limit_bytes = limit_bytes
        self.size = source.size - base
        self.buffer = bytearray()
        self.position = 0

    def fail(self, message: str, offset: int | None = None, name: str | None = None) -> FormatError:
        at = self.position if offset is None else offset
        return FormatError(message, path=self.source.name, offset=self.base + at, name=name)

    def end(self, message: str, name: str | None, offset: int | None = None) -> TruncatedGGUF:
        """Whatever the header says of more than there is: most such files are downloads that broke off."""
        at = self.position if offset is None else offset
        message = f"{message}: it is cut short; fetch or copy it again"
        return TruncatedGGUF(message, path=self.source.name, offset=self.base + at, name=name)

    def require(self, length: int, what: str, name: str | None = None) -> None:
        """Have `length` bytes from the position in memory."""
        needed = self.position + length
        if needed > self.size:
            raise self.end(
                f"{what} needs {format_number_of(length, 'byte')}, the file has "
                f"{max(self.size - self.position, 0):,} left",
                name,
            )
        if needed > self.limit_bytes:
            raise self.fail(
                f"{what} would make the headers of the model larger than {HEADER_LIMIT_BYTES:,} bytes", name=name
            )
        if needed > len(self.buffer):
            have = len(self.buffer)
            # Twice what was read so far: few reads for a large header, little waste for a small one.
            want = min(max(needed, 2 * have, FIRST_READ_BYTES), self.size, self.limit_bytes)
            self.buffer += self.source.read_at(self.base + have, want - have)
            if needed > len(self.buffer):
                raise self.end(f"{what}: the file ended while it was read", name, offset=len(self.buffer))

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
        while count:
            self.require(8, "the length of a string", name)
            passed = self._pass_short_strings(count)
            count -= passed or self._pass_strings(min(count, RUN), name)

    def _pass_short_strings(self, count: int) -> int:
        """Step over whole runs of short strings, as the tokens of a vocabulary are; how many they were."""
        passed = 0
        if count >= RUN:
            pass_run = _run_of_short_strings().match
            while count - passed >= RUN and (run := pass_run(self.buffer, self.position)) is not None:
                self.position = run.end()
                passed += RUN
                # It would keep the buffer from growing.
                del run
        return passed

    def _pass_strings(self, count: int, name: str) -> int:
        """Step over at most `count` strings of any length, as far as they are in memory; how many they were."""
        unpack = _U64.unpack_from
        buffer, position, step = self.buffer, self.position, 0
        try:
            for done in range(count):  # noqa: B007 - the loop is a hot path, `done` is read after it
                step = 8 + unpack(buffer, position)[0]
                position += step
            done = count
        except (struct.error, OverflowError):
            # The next length is not in memory, whether because it is not read yet or because the last one lies.
            pass
        if position > len(buffer):
            # The last string reaches beyond what is in memory: let `require` decide whether it can be true.
            self.position = position - step
            self.require(step, "a string", name)
        self.position = position
        return done


@functools.cache
def _run_of_short_strings() -> re.Pattern[bytes]:
    """`RUN` strings shorter than `SHORT_BYTES`, each behind its length, in one step of the regular expressions' engine,
    which does it in a third of the time: the length decides alone which form a string has, so nothing is ever tried
    again (`+`), and a run is what reading every length would find."""
    forms = (re.escape(struct.pack("<Q", length)) + b".{%d}" % length for length in range(SHORT_BYTES))
    return re.compile(b"(?:%b){%d}+" % (b"|".join(forms), RUN), re.DOTALL)
