"""The journal of a merge that consumes its shards: what is to be done, and how far it is.

One file beside the output, a line for each record (`dfqs.inplace.lines`). The first record is the whole job; later ones
say how far it is. A record counts when it is durable; one that was torn by a loss of power is the last and is ignored.
Room for records is taken when the journal is made, so that a full disk cannot stop it.

What a journal says is carried out, and it can have come with a folder: each record is sealed, so that no other than
this user's dfqs can have written it.
"""

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dfqs.errors import DfqsError, IntegrityError, SpaceError, UsageError, printable
from dfqs.inplace.job import MAX_UNDO_BYTES, Job, State, stamp_from_json
from dfqs.inplace.lines import decode_lines, encode_line, how_to_go_on, whole_lines
from dfqs.records import readable_text
from dfqs.storage.disk import Disk, DiskFile, LocalDisk
from dfqs.storage.identity import FileStamp

FORMAT = "dfqs.merge-journal/2"
RESERVED_BYTES = 128 << 10
"""Room for progress records behind the job: some 400 windows of 256 MiB. Later ones need room on the disk."""
LIMIT_BYTES = 24 << 20
"""A journal that is larger was not written here: 3,000 shards and 100,000 tensors with a header of 10 MB make 16 MB."""
_SUFFIX = ".merge-journal"
_TORN = re.compile(rb"[0-9a-f]{0,16}|[0-9a-f]{16} [0-9a-f]{0,32}|[0-9a-f]{16} [0-9a-f]{32} (\{[^\n]*)?")
"""The beginning of a first record."""


@dataclass(frozen=True, slots=True)
class PendingFreeing:
    """What was about to be freed when a position was recorded."""

    shard: int
    start: int
    end: int
    time_ns: int


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
    stamps: dict[int, list[FileStamp]] = field(default_factory=dict)
    """That shards had after each freeing of our own, and when their user said that they are right."""
    freeing: PendingFreeing | None = None
    """Begun, and not known to be done."""
    refused: set[int] = field(default_factory=set)
    """Shards whose bytes turned out not to be those that were planned."""
    working: FileStamp | None = None
    """The working file, when it was made ready and when it was whole."""

    @property
    def may_have_freed(self) -> bool:
        """Whether bytes of a shard may be gone from it."""
        return self.state >= State.MOVING


class Journal:
    """An open journal, locked by this process."""

    def __init__(self, path: Path, file: DiskFile, job: Job, position: Position, end: int, seal: str) -> None:
        self.path = path
        self.job = job
        self.position = position
        self._file = file
        self._end = end
        self._seal = seal
        self._closed = False

    @classmethod
    def create(cls, disk: Disk, out: Path, job: Job) -> "Journal":
        """Write the job of a merge to `out` down; from here on it can be resumed or undone.

        Raises:
            UsageError: another process is at work on a merge to `out`; its header is too large to be kept, or the name
                of a shard is no text.
        """
        path = journal_path(out)
        for source in job.sources:
            if readable_text(source.name) != source.name:
                # Read back it would be another name, and the merge could be neither finished nor undone.
                raise UsageError(
                    f"a journal cannot hold the name of {source.name}, which is not UTF-8; rename the shards"
                )
        try:
            file = disk.create(path)
        except FileExistsError:
            raise UsageError(f"another merge to {out} has begun ({path} exists)") from None
        if not file.lock() or disk.identify(path) is None:
            # Another process came between making and locking, found it empty and removes it: it is not ours to touch.
            file.close()
            raise UsageError(f"another dfqs is at work on {out}; run this again when it is done")
        try:
            # Not always this user: some file systems give every file to one.
            owner = file.identify().owner
            record, seal = encode_line({"format": FORMAT, "owner": owner, **job.to_json()}, "")
            if len(record) > LIMIT_BYTES - RESERVED_BYTES or _undo_bytes(job) > MAX_UNDO_BYTES:
                raise UsageError(f"{out}: a header this large cannot be kept for an undo; use plain merge")
            file.write_at(0, record + bytes(RESERVED_BYTES))
            file.sync()
            disk.sync_directory(path.parent)
        except BaseException:
            try:
                disk.unlink(path)
            finally:
                file.close()
            raise
        return cls(path, file, job, Position(), len(record), seal)

    @classmethod
    def open(cls, disk: Disk, out: Path, *, trusted: bool = False) -> "Journal | None":
        """Open the journal of an unfinished merge to `out`, or None when there is none.

        Args:
            trusted: the user vouches for it, whether or not it is sealed.

        Raises:
            UsageError: another process works on it; it is a link or no regular file.
            IntegrityError: it is damaged, of a version that is not known here, or not of this user and machine.
        """
        path = journal_path(out)
        found = disk.identify(path)
        if found is None:
            return None
        if not found.is_regular or found.links > 1:
            raise UsageError(f"{path} is a link or no regular file, so it was not left by a merge; remove it")
        file = disk.open(path)
        try:
            if not file.lock():
                raise UsageError(f"another dfqs is working on this merge ({path} is locked)")
            data = _read(file, path)
            lines = whole_lines(data, path)
            if not lines:
                _require_torn(disk, data, out)
                # Torn before it counted: nothing had been done yet.
                disk.unlink(path)
                file.close()
                return None
            records, seal = decode_lines(lines, path, FORMAT, trusted=trusted)
            if not trusted and file.identify().owner not in (records[0].get("owner"), os.geteuid()):
                raise IntegrityError(f"{path} belongs to another user. {how_to_go_on(path)}")
            job = _decode_job(records[0], path)
            position = Position()
            for record in records[1:]:
                _advance(position, job, record, path)
            return cls(path, file, job, position, sum(len(line) + 1 for line in lines), seal)
        except BaseException:
            file.close()
            raise

    def record(
        self,
        state: State,
        *,
        copy: int = 0,
        done: int = 0,
        sha256: tuple[int, str] | None = None,
        freeing: PendingFreeing | None = None,
        working: FileStamp | None = None,
    ) -> None:
        """Make a step forward durable.

        Raises:
            SpaceError: the reserved room is used up and the disk is full.
        """
        entry: dict[str, Any] = {"state": state.name.lower(), "copy": copy, "done": done}
        if sha256 is not None:
            entry["shard"], entry["sha256"] = sha256
        if freeing is not None:
            entry["free"] = [freeing.shard, freeing.start, freeing.end, freeing.time_ns]
        if working is not None:
            entry["working"] = asdict(working)
        self._append(entry, durable=True)

    def note_stamps(self, shard: int, *stamps: FileStamp) -> None:
        """Keep stamps that a shard got by our own doing. A killed process leaves them; a loss of power may not."""
        self._append({"known": shard, "stamps": [asdict(stamp) for stamp in stamps]}, durable=False)

    def note_refused(self, shard: int) -> None:
        """Keep that a shard's bytes were not those that were planned."""
        self._append({"refused": shard}, durable=True)

    def _append(self, entry: dict[str, Any], *, durable: bool) -> None:
        data, seal = encode_line(entry, self._seal)
        try:
            self._file.write_at(self._end, data)
            if durable:
                self._file.sync()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise SpaceError(f"no room for {self.path}; free some space and run the same command again") from error
        self._end += len(data)
        self._seal = seal
        _advance(self.position, self.job, entry, self.path)

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
    """The output of an unfinished merge of these shards, if a journal of ours lies in their directory."""
    disk = LocalDisk()
    for path in sorted(first_shard.parent.glob("*" + _SUFFIX)):
        out = path.with_name(path.name.removesuffix(_SUFFIX))
        try:
            found = disk.identify(path)
            if found is None or not found.is_regular:
                continue
            file = disk.open(path)
            try:
                records, _ = decode_lines(whole_lines(_read(file, path), path)[:1], path, FORMAT, trusted=False)
            finally:
                file.close()
            if _decode_job(records[0], path).sources[0].name == first_shard.name:
                return out
        except (OSError, DfqsError, IndexError):
            continue
    return None


def journal_path(out: Path) -> Path:
    """Where the journal of a merge to `out` lies."""
    return out.with_name(out.name + _SUFFIX)


def working_path(out: Path) -> Path:
    """What the output is called until it is whole."""
    return out.with_name(f"{out.name}.merging")


def _undo_bytes(job: Job) -> int:
    return len(job.resident.old_tail) if job.resident is not None else 0


def _read(file: DiskFile, path: Path) -> bytes:
    if file.size() > LIMIT_BYTES:
        raise IntegrityError(f"{path} is not a journal of a merge: {file.size():,} bytes")
    return file.read_at(0, file.size()).rstrip(b"\0")


def _require_torn(disk: Disk, data: bytes, out: Path) -> None:
    """Raises IntegrityError when a journal without a record is more than one whose writing was cut off."""
    if disk.identify(working_path(out)) is not None:
        raise IntegrityError(f"{journal_path(out)} is damaged; {working_path(out)} is left as it is")
    if not _TORN.fullmatch(data):
        raise IntegrityError(f"{journal_path(out)} is damaged, or no journal of a merge; look at it and remove it")


def _decode_job(record: dict[str, Any], path: Path) -> Job:
    try:
        return Job.from_json(record)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is no journal of a merge: {printable(str(error), 200)}") from None


def _advance(position: Position, job: Job, record: dict[str, Any], path: Path) -> None:
    try:
        if "known" in record:
            shard = _index(record["known"], job.sources)
            position.stamps.setdefault(shard, []).extend(map(stamp_from_json, record["stamps"]))
            if position.freeing is not None and position.freeing.shard == shard:
                position.freeing = None
        elif "refused" in record:
            position.refused.add(_index(record["refused"], job.sources))
        else:
            _move_on(position, job, record)
    except (KeyError, ValueError, AttributeError, TypeError):
        raise IntegrityError(f"{path} holds a record that makes no sense: {printable(repr(record))}") from None


def _move_on(position: Position, job: Job, record: dict[str, Any]) -> None:
    state, copy, done = State[record["state"].upper()], record["copy"], record["done"]
    if (copy, done) != (0, 0):
        _index(copy, job.copies)
        if type(done) is not int or not 0 <= done <= job.copies[copy].length:
            raise ValueError(done)
    position.state, position.copy, position.done = state, copy, done
    if "sha256" in record:
        if not isinstance(record["sha256"], str):
            raise TypeError(record["sha256"])
        position.sha256[_index(record["shard"], job.sources)] = record["sha256"]
    position.freeing = None
    if "free" in record:
        shard, start, end, time_ns = record["free"]
        _index(shard, job.sources)
        if any(type(value) is not int for value in (start, end, time_ns)):
            raise TypeError(record["free"])
        if not 0 <= start <= end <= job.sources[shard].bytes:
            raise ValueError(record["free"])
        position.freeing = PendingFreeing(shard, start, end, time_ns)
    if "working" in record:
        position.working = stamp_from_json(record["working"])


def _index(value: Any, items: Sequence[Any]) -> int:
    if type(value) is not int or not 0 <= value < len(items):
        raise ValueError(value)
    return value
