"""What an interrupted pull knows when it goes on: which chunks were written, with their hashes.

A record is a claim, and the hash in it is how the claim is checked: on resume every claimed chunk is read back and
hashed before it counts, and every whole file too. So records need not wait for the disk, and a power loss that takes
data but leaves its record does no harm. A torn last line ends the journal there, and so does one that no pull writes:
a journal lies beside a model, so a stranger can have written it. It cannot make a pull believe anything.
"""

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfqs.errors import FormatError, UsageError, printable
from dfqs.pull.plan import MAX_CHUNKS, MIN_CHUNK_BYTES
from dfqs.records import parse_json, sha256_of
from dfqs.storage.atomic import fsync_directory, storage_errors
from dfqs.storage.locks import open_locked

SCHEMA = "dfqs.pull-journal/1"
_BEGINNING = b'{"schema":"dfqs.'
LIMIT_BYTES = 512 << 20
"""Read of a journal at most. A model in `MAX_CHUNKS` chunks makes 120 MB; what is beyond is fetched again."""
_LINE_LIMIT_BYTES = 4096
_READ_BYTES = 1 << 20
_MAX_FILES = 1 << 17
_MAX_CHUNK_BYTES = (1 << 63) - 1
_DIGITS = frozenset("0123456789abcdef")


@dataclass
class Progressed:
    """What the journal claims."""

    chunk_bytes: int
    """How the files were cut when the journal began; its numbers of chunks mean that."""
    chunks: dict[tuple[int, int], str] = field(default_factory=dict)
    """(file, chunk) -> SHA-256."""
    verified: set[int] = field(default_factory=set)
    """Files that were found right. With all of them here, the model was about to get its name, or has it."""


class PullJournal:
    """The journal of one output, open and locked for as long as this object lives.

    Raises:
        UsageError: another pull of the same output is at work.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path):
            busy = f"another dfqs pull is writing {path}; wait for it or stop it"
            self._handle = open_locked(path, busy, append=True)
        self._closed = False

    def start(
        self, identity: dict[str, Any], origin: dict[str, Any], chunk_bytes: int, *, fresh: bool = False
    ) -> Progressed:
        """Read what is there, or begin; what cannot be read is cut off.

        Args:
            identity: what is being pulled; decides whether the journal is for this.
            origin: repository and commit, for messages.
            chunk_bytes: how the files are cut, where this begins the journal.
            fresh: begin anew, since the file that the journal speaks of is gone.

        Raises:
            UsageError: the journal is for other files.
        """
        self._refuse_foreign()
        expected = sha256_of(identity)
        progressed = Progressed(chunk_bytes)
        good_end = 0
        for end, record in () if fresh else self._read():
            if good_end == 0:
                if record.get("schema") != SCHEMA or record.get("identity") != expected:
                    raise UsageError(
                        f"{self.path} is of another pull ({printable(str(record.get('origin')), 300)}); finish that "
                        "one, or give --restart to throw away what it fetched"
                    )
                if not _is_number(record.get("chunk_bytes"), MIN_CHUNK_BYTES, _MAX_CHUNK_BYTES):
                    break
                progressed.chunk_bytes = record["chunk_bytes"]
            elif not _apply(progressed, record):
                break
            good_end = end
        with storage_errors(self.path):
            os.ftruncate(self._handle, good_end)
            if good_end == 0:
                self._append({"schema": SCHEMA, "identity": expected, "origin": origin, "chunk_bytes": chunk_bytes})
                os.fsync(self._handle)
                fsync_directory(self.path.parent)
        return progressed

    def record_chunk(self, file: int, chunk: int, sha256: str) -> None:
        """A chunk was written."""
        self._append({"chunk": [file, chunk], "sha256": sha256})

    def record_dropped(self, file: int, chunk: int) -> None:
        """A chunk that was recorded is not to be counted on."""
        self._append({"dropped": [file, chunk]})

    def record_verified(self, file: int) -> None:
        """A whole file was found right."""
        self._append({"verified": file})
        with storage_errors(self.path):
            os.fdatasync(self._handle)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._handle)

    def _append(self, record: dict[str, Any]) -> None:
        text = json.dumps(record, separators=(",", ":")).encode()
        with storage_errors(self.path):
            # One write to a file opened for appending: lines of several threads do not mix.
            os.write(self._handle, b"%08x %s\n" % (zlib.crc32(text), text))

    def _refuse_foreign(self) -> None:
        """Raises UsageError where something else has the journal's name: it would be cut to nothing."""
        with storage_errors(self.path):
            head = os.pread(self._handle, 9 + len(_BEGINNING), 0)
        # Zeroes are what a power cut leaves of a first line.
        if any(head) and not _BEGINNING.startswith(head[9:]):
            raise UsageError(f"{self.path} is in the way and is no journal of a pull; move it away")

    def _read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(end of line, record) for as long as lines are whole."""
        end = 0
        for line in self._lines():
            if len(line) < 10 or line[:8] != b"%08x" % zlib.crc32(line[9:-1]):
                return
            try:
                record = parse_json(line[9:-1])
            except FormatError:
                return
            if not isinstance(record, dict):
                return
            end += len(line)
            yield end, record

    def _lines(self) -> Iterator[bytes]:
        """Lines with their ends, read through the handle that is locked; a line of ours is short."""
        rest = b""
        for offset in range(0, LIMIT_BYTES, _READ_BYTES):
            with storage_errors(self.path):
                data = os.pread(self._handle, _READ_BYTES, offset)
            lines = (rest + data).split(b"\n")
            rest = lines.pop()
            for line in lines:
                if len(line) >= _LINE_LIMIT_BYTES:
                    return
                yield line + b"\n"
            if len(data) < _READ_BYTES or len(rest) >= _LINE_LIMIT_BYTES:
                return


def _apply(progressed: Progressed, record: dict[str, Any]) -> bool:
    """Take a record in; False when it is none that a pull writes."""
    if set(record) == {"chunk", "sha256"} and _is_place(record["chunk"]) and _is_sha256(record["sha256"]):
        progressed.chunks[(record["chunk"][0], record["chunk"][1])] = record["sha256"]
        return len(progressed.chunks) <= MAX_CHUNKS
    if set(record) == {"dropped"} and _is_place(record["dropped"]):
        progressed.chunks.pop((record["dropped"][0], record["dropped"][1]), None)
        return True
    if set(record) == {"verified"} and _is_number(record["verified"], 0, _MAX_FILES):
        progressed.verified.add(record["verified"])
        return True
    return False


def _is_place(value: object) -> bool:
    """Whether this is [file, chunk]."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and _is_number(value[0], 0, _MAX_FILES)
        and _is_number(value[1], 0, MAX_CHUNKS)
    )


def _is_number(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and _DIGITS.issuperset(value)
