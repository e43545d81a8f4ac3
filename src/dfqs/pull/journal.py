"""What an interrupted pull knows when it goes on: which chunks were written, with their hashes.

A record is a claim, and the hash in it is how the claim is checked. It is of the file from its first byte to the
chunk's last, so that the one hash of the file, taken in its order, makes and checks all of them: on resume every
claimed chunk is read back and hashed before it counts, and every whole file too. So records need not wait for the disk,
and a power loss that takes data but leaves its record does no harm. A torn last line ends the journal there, and so
does one that no pull writes: a journal lies beside a model, so a stranger can have written it. It cannot make a pull
believe anything.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfqs.pull.plan import MAX_CHUNKS, MIN_CHUNK_BYTES
from dfqs.records import sha256_of
from dfqs.storage.atomic import storage_errors
from dfqs.storage.disk import Disk, LocalDisk
from dfqs.storage.journal import Journal, JournalKind

LIMIT_BYTES = 512 << 20
"""A journal that is larger was not written here: a model in `MAX_CHUNKS` chunks makes 130 MB."""
KIND = JournalKind(
    schema="dfqs.pull-journal/2",
    work="pull",
    busy="another dfqs pull is writing this output",
    give_up="give --restart to throw away what it fetched",
    limit_bytes=LIMIT_BYTES,
    line_bytes=64 << 10,
    is_claims=True,
)
_MAX_FILES = 1 << 17
_MAX_CHUNK_BYTES = (1 << 63) - 1
_DIGITS = frozenset("0123456789abcdef")


@dataclass
class Progressed:
    """What the journal claims."""

    chunk_bytes: int
    """How the files were cut when the journal began; its numbers of chunks mean that."""
    chunks: dict[tuple[int, int], str] = field(default_factory=dict)
    """(file, chunk) -> SHA-256 of the file as far as the chunk's end."""
    verified: set[int] = field(default_factory=set)
    """Files that were found right. With all of them here, the model was about to get its name, or has it."""


class PullJournal:
    """The journal of one output, open and locked for as long as this object lives.

    Raises:
        UsageError: another pull of the same output is at work, or something else has the journal's name.
    """

    def __init__(self, path: Path, *, disk: Disk | None = None) -> None:
        self.path = path
        disk = disk or LocalDisk()
        with storage_errors(path):
            self._journal = Journal.open_or_create(disk, path, KIND)

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
            UsageError: the journal is for other files, or none of a pull.
            IntegrityError: another version of dfqs left it.
        """
        expected = sha256_of(identity)
        progressed = Progressed(chunk_bytes)

        def take(number: int, record: dict[str, Any]) -> bool:
            if number > 0:
                return _apply(progressed, record)
            if not _is_number(record.get("chunk_bytes"), MIN_CHUNK_BYTES, _MAX_CHUNK_BYTES):
                return False
            progressed.chunk_bytes = record["chunk_bytes"]
            return True

        with storage_errors(self.path):
            if fresh or not self._journal.read(take, fingerprint=expected):
                self._journal.begin({"origin": origin, "chunk_bytes": chunk_bytes}, fingerprint=expected)
        return progressed

    def record_chunk(self, file: int, chunk: int, sha256: str) -> None:
        """A file is there as far as a chunk's end, with this SHA-256."""
        self._journal.append({"chunk": [file, chunk], "sha256": sha256}, durable=False)

    def record_dropped(self, file: int, chunk: int) -> None:
        """A chunk that was recorded is not to be counted on."""
        self._journal.append({"dropped": [file, chunk]}, durable=False)

    def record_verified(self, file: int) -> None:
        """A whole file was found right."""
        self._journal.append({"verified": file})

    def close(self) -> None:
        """Let another process have it. Safe to repeat."""
        self._journal.close()


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
