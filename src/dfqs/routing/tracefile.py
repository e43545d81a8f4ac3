"""Trace files: written as a stream, read as a stream, and believed only as far as their hashes and bounds reach.

Format (docs/route-trace-format.md): a header in JSON, then chunks of compressed tokens and ids, then an end mark. Every
part carries the SHA-256 of itself and all parts before it, so that none can change, move or go missing unseen.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from pydantic import ValidationError

from dfqs.errors import FormatError, UsageError, printable
from dfqs.records import compact_json, parse_json
from dfqs.routing.trace import Trace, TraceChunk, TraceHeader, names_twice
from dfqs.storage.atomic import atomic_writer
from dfqs.storage.closing import Closing
from dfqs.storage.linux import BINARY, CLOEXEC, NONBLOCK

MAGIC = b"dfqsrtr1"
START = struct.Struct("<8sI")
"""Magic, bytes of the header."""
FRAME = struct.Struct("<4sIIII")
"""Kind, bytes of the payload, prompt, position, tokens. In the end mark: 0, prompts, chunks, tokens modulo 2^32."""
CHUNK, END = b"CHNK", b"END\0"
DIGEST_BYTES = 32
MAX_HEADER_BYTES = 1 << 20
MAX_CHUNK_BYTES = 32 << 20
"""Of a chunk before compression. Bounds the memory that a reader needs, whatever a file says."""
MAX_TOKEN_BYTES = MAX_CHUNK_BYTES // 4
"""Of one token before compression."""
_LEVEL = 6


class TraceWriter:
    """Writes a trace chunk by chunk to an open file.

    Args:
        file: positioned at its start; `write_trace` gives one that appears only when whole.
    """

    def __init__(self, file: BinaryIO, header: TraceHeader) -> None:
        self.header = header
        self._file = file
        self._digest = hashlib.sha256()
        self._prompt, self._position = -1, 0
        self._chunks = self.tokens = 0
        if header.token_bytes > MAX_TOKEN_BYTES:
            raise UsageError(f"one token takes {header.token_bytes:,} bytes; leave the router scores out")
        text = compact_json(header)
        if len(text) > MAX_HEADER_BYTES:
            raise UsageError(f"a trace header of {len(text):,} bytes is too large; the limit is {MAX_HEADER_BYTES:,}")
        self._emit(START.pack(MAGIC, len(text)) + text)

    def write(self, chunk: TraceChunk) -> None:
        """Append a chunk; large ones are cut.

        Raises:
            ValueError: its shape, its place or its ids are not those of this trace.
        """
        self._check(chunk)
        step = max(1, MAX_TOKEN_BYTES // self.header.token_bytes)
        for start in range(0, len(chunk), step):
            part = chunk.part(start, min(start + step, len(chunk)))
            payload = zlib.compress(_pack(self.header, part), _LEVEL)
            self._emit(FRAME.pack(CHUNK, len(payload), part.prompt, part.position, len(part)) + payload)
            self._chunks += 1
        self._prompt, self._position = chunk.prompt, chunk.position + len(chunk)
        self.tokens += len(chunk)

    def finish(self) -> str:
        """Write the end mark.

        Returns:
            The trace's identity: SHA-256 over all of it.
        """
        return self._emit(FRAME.pack(END, 0, self._prompt + 1, self._chunks, self.tokens & 0xFFFFFFFF))

    def _emit(self, part: bytes) -> str:
        self._digest.update(part)
        self._file.write(part + self._digest.digest())
        return self._digest.hexdigest()

    def _check(self, chunk: TraceChunk) -> None:
        header = self.header
        expected = (len(header.layers), len(chunk), header.model.experts_used)
        if chunk.ids.shape != expected:
            raise ValueError(f"ids have shape {chunk.ids.shape}, not {expected}")
        if not len(chunk) or chunk.ids.min() < 0 or chunk.ids.max() >= header.model.experts:
            raise ValueError("an expert number is out of range")
        if names_twice(chunk.ids):
            raise ValueError("an expert is chosen twice for one token")
        if not _follows(self._prompt, self._position, chunk.prompt, chunk.position):
            raise ValueError(f"prompt {chunk.prompt}, position {chunk.position} does not follow what was written")
        for kind in ("probabilities", "selection"):
            scores = getattr(chunk, kind)
            if (scores is not None) != (kind in header.scores):
                raise ValueError(f"{kind} must be there as the header says")
            if scores is not None and scores.shape != (*expected[:2], header.model.experts):
                raise ValueError(f"{kind} have shape {scores.shape}")
        if not _has_sound_scores(chunk):
            raise ValueError("a router score is not a number")


def write_trace(path: Path, header: TraceHeader, chunks: Iterable[TraceChunk], *, overwrite: bool = False) -> str:
    """Write a trace file, whole or not at all; holds one chunk at a time.

    Returns:
        SHA-256 over all of it.
    """
    with atomic_writer(path, overwrite=overwrite) as file:
        writer = TraceWriter(file, header)
        for chunk in chunks:
            writer.write(chunk)
        return writer.finish()


class TraceReader(Closing):
    """A trace file open for reading: its header at once, its chunks as they are asked for.

    Raises:
        FormatError: not a trace, or one that was changed, cut short, or lies about itself.
        UsageError: there is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sha256: str | None = None
        """Identity of the trace, known once every chunk has been read."""
        self._digest = hashlib.sha256()
        self._offset = 0
        """Bytes read. Not asked of the file, which may be a pipe."""
        try:
            self._file = _open_file_or_pipe(path)
        except FileNotFoundError:
            raise UsageError(f"no such file: {path}") from None
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise
        self._first_chunk = self._offset
        self._header_digest = self._digest.copy()

    def chunks(self) -> Iterator[TraceChunk]:
        """Every chunk from the start, in order; holds one at a time. A second time only where the file can be sought.

        Raises:
            FormatError: a chunk was changed, cut short, or lies; or there is something after the end mark.
        """
        if self._offset != self._first_chunk:
            self._offset = self._file.seek(self._first_chunk)
        self._digest = self._header_digest.copy()
        prompt, position, chunks, tokens = -1, 0, 0, 0
        while True:
            start = self._offset
            head = self._read(FRAME.size, "the trace ends without its end mark; its capture was interrupted")
            kind, length, *place, count = FRAME.unpack(head)
            if kind == END:
                if (length, *place, count) != (0, prompt + 1, chunks, tokens & 0xFFFFFFFF):
                    self._refuse("the end mark does not agree with the chunks before it", start)
                self.sha256 = self._verify(head, start)
                if self._file.read(1):
                    self._refuse("there is something after the end mark", self._offset)
                return
            if kind != CHUNK:
                self._refuse(f"neither a chunk nor an end mark: {printable(repr(kind))}", start)
            raw_bytes = count * self.header.token_bytes
            if not 0 < raw_bytes <= MAX_CHUNK_BYTES or length > raw_bytes + raw_bytes // 64 + 1024:
                self._refuse(f"a chunk of {count:,} tokens in {length:,} bytes is impossible", start)
            if not _follows(prompt, position, *place):
                self._refuse(f"prompt {place[0]}, position {place[1]:,} does not follow the chunk before", start)
            payload = self._read(length, "the trace ends within a chunk")
            self._verify(head + payload, start)
            yield self._unpack(payload, raw_bytes, place[0], place[1], count, start)
            prompt, position, chunks, tokens = place[0], place[1] + count, chunks + 1, tokens + count

    def read(self) -> Trace:
        """All of it in memory."""
        return Trace(self.header, tuple(self.chunks()))

    def close(self) -> None:
        self._file.close()

    def _read_header(self) -> TraceHeader:
        start = self._file.read(START.size)
        self._offset = len(start)
        if len(start) < START.size or start[:8] != MAGIC:
            raise FormatError("not a routing trace", path=self.path)
        length = START.unpack(start)[1]
        if length > MAX_HEADER_BYTES:
            raise FormatError(f"a header of {length:,} bytes is impossible", path=self.path, offset=8)
        text = self._read(length, "the trace ends within its header")
        self._verify(start + text, 0)
        try:
            header = TraceHeader.model_validate(parse_json(text, path=self.path))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "header"
            raise FormatError(
                f"the header is no trace header: {printable(where)}: {printable(first['msg'], 200)}", path=self.path
            ) from None
        if header.token_bytes > MAX_TOKEN_BYTES:
            self._refuse(f"tokens of {header.token_bytes:,} bytes each are impossible", 0)
        return header

    def _read(self, count: int, otherwise: str) -> bytes:
        data = self._file.read(count)
        self._offset += len(data)
        if len(data) != count:
            self._refuse(otherwise, self._offset)
        return data

    def _verify(self, part: bytes, start: int) -> str:
        self._digest.update(part)
        if self._read(DIGEST_BYTES, "the trace ends within a hash") != self._digest.digest():
            self._refuse("the bytes from here on are not what was written: their hash differs", start)
        return self._digest.hexdigest()

    def _unpack(self, payload: bytes, raw_bytes: int, prompt: int, position: int, count: int, at: int) -> TraceChunk:
        inflater = zlib.decompressobj()
        try:
            raw = inflater.decompress(payload, raw_bytes + 1)
        except zlib.error as error:
            self._refuse(f"a chunk cannot be decompressed ({error})", at)
        if len(raw) != raw_bytes or not inflater.eof or inflater.unused_data:
            self._refuse(f"a chunk of {count:,} tokens does not hold the {raw_bytes:,} bytes it should", at)
        chunk = _unpack(self.header, raw, prompt, position, count)
        if int(chunk.ids.max()) >= self.header.model.experts:
            self._refuse(f"expert {int(chunk.ids.max())} of {self.header.model.experts}", at)
        if names_twice(chunk.ids):
            self._refuse("an expert is chosen twice for one token", at)
        if int(chunk.tokens.min()) < 0:
            self._refuse("a negative token", at)
        if not _has_sound_scores(chunk):
            self._refuse("a router score is not a number", at)
        return chunk

    def _refuse(self, reason: str, offset: int) -> NoReturn:
        raise FormatError(reason, path=self.path, offset=offset)


def _open_file_or_pipe(path: Path) -> BinaryIO:
    """Not waiting for a pipe's other end: where nobody writes, it is empty."""
    handle = os.open(path, os.O_RDONLY | CLOEXEC | NONBLOCK | BINARY)
    try:
        if NONBLOCK:
            os.set_blocking(handle, True)
        return open(handle, "rb")
    except OSError:
        os.close(handle)
        raise


def read_trace(path: Path) -> Trace:
    """A whole trace in memory, checked.

    Raises:
        FormatError: not a trace, or one that was changed, cut short, or lies about itself.
        UsageError: there is no such file.
    """
    with TraceReader(path) as reader:
        return reader.read()


def _follows(prompt: int, position: int, next_prompt: int, next_position: int) -> bool:
    goes_on = next_prompt == prompt and next_position == position
    return goes_on or (next_prompt == prompt + 1 and next_position == 0)


def _has_sound_scores(chunk: TraceChunk) -> bool:
    if chunk.probabilities is not None and not np.isfinite(chunk.probabilities).all():
        return False
    # Experts of groups that are not chosen from score -inf.
    return chunk.selection is None or not (np.isnan(chunk.selection) | np.isposinf(chunk.selection)).any()


def _pack(header: TraceHeader, chunk: TraceChunk) -> bytes:
    parts = [chunk.tokens.astype("<i4").tobytes(), chunk.ids.astype(header.id_dtype).tobytes()]
    parts += [getattr(chunk, kind).astype("<f4").tobytes() for kind in header.scores]
    return b"".join(parts)


def _unpack(header: TraceHeader, raw: bytes, prompt: int, position: int, count: int) -> TraceChunk:
    layers, model = len(header.layers), header.model
    tokens = np.frombuffer(raw, "<i4", count).astype(np.int32)
    id_count = layers * count * model.experts_used
    ids = np.frombuffer(raw, header.id_dtype, id_count, 4 * count).reshape(layers, count, model.experts_used)
    offset = 4 * count + id_count * header.id_dtype.itemsize
    scores = {}
    for kind in header.scores:
        size = layers * count * model.experts
        scores[kind] = np.frombuffer(raw, "<f4", size, offset).astype(np.float32).reshape(layers, count, -1)
        offset += size * 4
    return TraceChunk(prompt, position, tokens, ids, **scores)
