"""The journal of a merge that consumes its shards: what is to be done, and how far it is.

One file beside the output. Each record is a line: 16 hexadecimal digits of its SHA-256, a space, JSON. The first record
is the whole job; later ones say how far it is. A record counts when it is durable; one that was torn by a loss of power
is the last and is ignored. Room for records is taken when the journal is made, so that a full disk cannot stop it.
"""

import errno
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfqs.errors import IntegrityError, SpaceError, UsageError
from dfqs.shards.disk import Disk, DiskFile
from dfqs.shards.job import Job, State

FORMAT = "dfqs.merge-journal/1"
RESERVED_BYTES = 128 << 10
"""Room for progress records behind the job: more than 1,000 windows of 256 MiB."""
LIMIT_BYTES = 64 << 20
"""A journal that is larger was not written here."""
_DIGEST_DIGITS = 16
_SUFFIX = ".merge-journal"


@dataclass(slots=True)
class Position:
    """How far a merge is. All before (`copy`, `done`) is durable in the output, and may be freed in the shards."""

    state: State = State.BEGUN
    copy: int = 0
    """Index into the job's copies."""
    done: int = 0
    """Bytes of that copy."""
    sha256: dict[int, str] = field(default_factory=dict)
    """Of whole shards whose bytes passed in one run."""

    @property
    def may_have_freed(self) -> bool:
        """Whether bytes of a shard may be gone from it."""
        return self.state >= State.MOVING


class Journal:
    """An open journal, locked by this process."""

    def __init__(self, path: Path, file: DiskFile, job: Job, position: Position, end: int) -> None:
        self.path = path
        self.job = job
        self.position = position
        self._file = file
        self._end = end
        self._closed = False

    @classmethod
    def create(cls, disk: Disk, out: Path, job: Job) -> "Journal":
        """Write the job of a merge to `out` down; from here on it can be resumed or undone.

        Raises:
            UsageError: another process is at work on a merge to `out`.
        """
        path = journal_path(out)
        record = _encode({"format": FORMAT, **job.to_json()})
        try:
            file = disk.create(path)
        except FileExistsError:
            raise UsageError(f"another merge to {out} has begun ({path} exists)") from None
        if not file.lock() or disk.identify(path) is None:
            # Another process came between making and locking, found it empty and removes it: it is not ours to touch.
            file.close()
            raise UsageError(f"another dfqs is at work on {out}; run this again when it is done")
        try:
            file.write_at(0, record + bytes(RESERVED_BYTES))
            file.sync()
            disk.sync_directory(path.parent)
        except BaseException:
            try:
                disk.unlink(path)
            finally:
                file.close()
            raise
        return cls(path, file, job, Position(), len(record))

    @classmethod
    def open(cls, disk: Disk, out: Path) -> "Journal | None":
        """Open the journal of an unfinished merge to `out`, or None when there is none.

        Raises:
            UsageError: another process works on it.
            IntegrityError: it is damaged, or of a version that is not known here.
        """
        path = journal_path(out)
        if disk.identify(path) is None:
            return None
        file = disk.open(path)
        try:
            if not file.lock():
                raise UsageError(f"another dfqs is working on this merge ({path} is locked)")
            if file.size() > LIMIT_BYTES:
                raise IntegrityError(f"{path} is not a journal of a merge: {file.size():,} bytes")
            records, end = _decode_all(file.read_at(0, file.size()), path)
            if not records:
                if disk.identify(working_path(out)) is not None:
                    raise IntegrityError(f"{path} is damaged; {working_path(out)} is left as it is")
                # Torn before it counted: nothing had been done yet.
                disk.unlink(path)
                file.close()
                return None
            job = _decode_job(records[0], path)
            position = Position()
            for record in records[1:]:
                _advance(position, record, path)
            return cls(path, file, job, position, end)
        except BaseException:
            file.close()
            raise

    def record(self, state: State, *, copy: int = 0, done: int = 0, sha256: tuple[int, str] | None = None) -> None:
        """Make a step forward durable.

        Raises:
            SpaceError: the reserved room is used up and the disk is full.
        """
        entry: dict[str, Any] = {"state": state.name.lower(), "copy": copy, "done": done}
        if sha256 is not None:
            entry["shard"], entry["sha256"] = sha256
        data = _encode(entry)
        try:
            self._file.write_at(self._end, data)
            self._file.sync()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise SpaceError(f"no room for {self.path}; free some space and run the same command again") from error
        self._end += len(data)
        _advance(self.position, entry, self.path)

    def close(self) -> None:
        """Let another process have it. Safe to repeat."""
        if not self._closed:
            self._closed = True
            self._file.close()

    def remove(self, disk: Disk) -> None:
        """The merge is over, one way or the other."""
        disk.unlink(self.path)
        disk.sync_directory(self.path.parent)
        self.close()


def unfinished_beside(first_shard: Path) -> Path | None:
    """The output of an unfinished merge of these shards, if its journal lies in their directory."""
    for path in sorted(first_shard.parent.glob("*" + _SUFFIX)):
        try:
            records, _ = _decode_all(path.read_bytes(), path) if path.stat().st_size <= LIMIT_BYTES else ([], 0)
            if records and _decode_job(records[0], path).sources[0].name == first_shard.name:
                return path.with_name(path.name.removesuffix(_SUFFIX))
        except (OSError, IntegrityError, IndexError):
            continue
    return None


def journal_path(out: Path) -> Path:
    """Where the journal of a merge to `out` lies."""
    return out.with_name(out.name + _SUFFIX)


def working_path(out: Path) -> Path:
    """What the output is called until it is whole."""
    return out.with_name(f"{out.name}.merging")


def _encode(record: dict[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode()
    return _digest(text) + b" " + text + b"\n"


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_DIGEST_DIGITS].encode()


def _decode_all(data: bytes, path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records, and where the next one goes. What follows the last whole record must be no record."""
    records: list[dict[str, Any]] = []
    end = 0
    lines = data.rstrip(b"\0").split(b"\n")
    for number, line in enumerate(lines):
        record = _decode(line)
        if record is None:
            if any(_decode(later) is not None for later in lines[number + 1 :]):
                raise IntegrityError(f"{path} is damaged at byte {end:,}; nothing is changed by it")
            break
        records.append(record)
        end += len(line) + 1
    return records, end


def _decode(line: bytes) -> dict[str, Any] | None:
    digest, _, text = line.partition(b" ")
    if len(digest) != _DIGEST_DIGITS or _digest(text) != digest:
        return None
    record = json.loads(text)
    return record if isinstance(record, dict) else None


def _decode_job(record: dict[str, Any], path: Path) -> Job:
    if record.get("format") != FORMAT:
        raise IntegrityError(f"{path} has the format {record.get('format')!r}; this version reads {FORMAT}")
    try:
        return Job.from_json(record)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is no journal of a merge: {error}") from None


def _advance(position: Position, record: dict[str, Any], path: Path) -> None:
    try:
        position.state = State[record["state"].upper()]
        position.copy, position.done = int(record["copy"]), int(record["done"])
        if "sha256" in record:
            position.sha256[int(record["shard"])] = str(record["sha256"])
    except (KeyError, ValueError, AttributeError, TypeError):
        raise IntegrityError(f"{path} holds a record that makes no sense: {record!r:.80}") from None
