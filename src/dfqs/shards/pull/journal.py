"""What an interrupted pull knows when it goes on: which chunks were written, with their hashes.

A record is a claim, and the hash in it is how the claim is checked: on resume every claimed chunk is read back and
hashed before it counts, and every whole file too. So records need not wait for the disk, and a power loss that takes
data but leaves its record does no harm. A torn last line ends the journal there.
"""

import errno
import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfqs.errors import UsageError
from dfqs.records import sha256_of
from dfqs.storage import fsync_directory, storage_errors

SCHEMA = "dfqs.pull-journal/1"


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
        self._handle = _open_locked(path)
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
        expected = sha256_of(identity)
        progressed = Progressed(chunk_bytes)
        good_end = 0
        for end, record in () if fresh else self._read():
            if good_end == 0:
                if record.get("schema") != SCHEMA or record.get("identity") != expected:
                    raise UsageError(
                        f"{self.path} is of another pull ({record.get('origin')}); finish that one, or give --restart "
                        "to throw away what it fetched"
                    )
                progressed.chunk_bytes = record["chunk_bytes"]
            else:
                _apply(progressed, record)
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

    def _read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(end of line, record) for as long as lines are whole."""
        with self.path.open("rb") as file:
            end = 0
            for line in file:
                end += len(line)
                if not line.endswith(b"\n") or len(line) < 10 or line[:8] != b"%08x" % zlib.crc32(line[9:-1]):
                    return
                record = json.loads(line[9:-1])
                if not isinstance(record, dict):
                    return
                yield end, record


def _open_locked(path: Path) -> int:
    # O_NOFOLLOW: a journal is cut to what can be read of it, and a link planted here would have that done elsewhere.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        with storage_errors(path):
            try:
                handle = os.open(path, flags, 0o666)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise UsageError(f"{path} is a symlink; it is not followed, move it away") from None
                raise
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UsageError(f"another dfqs pull is writing {path}; wait for it or stop it") from None
        if os.fstat(handle).st_nlink:
            return handle
        # A pull that ended between opening and locking took its journal away.
        os.close(handle)


def _apply(progressed: Progressed, record: dict[str, Any]) -> None:
    if "chunk" in record:
        progressed.chunks[(record["chunk"][0], record["chunk"][1])] = record["sha256"]
    elif "dropped" in record:
        progressed.chunks.pop((record["dropped"][0], record["dropped"][1]), None)
    elif "verified" in record:
        progressed.verified.add(record["verified"])
