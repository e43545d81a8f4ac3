"""The journal of a merge that consumes its shards: what is to be done, and how far it is.

A `dfqs.storage.journal` whose header is the whole job, since shards that are half gone cannot be planned with again;
later records say how far it is. What it says is carried out, and it can have come with a folder: each record is sealed,
so that no other than this user's dfqs can have written it.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dfqs.errors import DfqsError, IntegrityError, UsageError, printable
from dfqs.inplace.job import MAX_UNDO_BYTES, Job, State, stamp_from_json
from dfqs.storage import journal as engine
from dfqs.storage.disk import Disk, LocalDisk
from dfqs.storage.documents import readable_text
from dfqs.storage.identity import FileStamp

SCHEMA = "dfqs.merge-journal/3"
RESERVED_BYTES = 128 << 10
"""Room for progress records behind the job: some 400 windows of 256 MiB. Later ones need room on the disk."""
LIMIT_BYTES = 24 << 20
"""A journal that is larger was not written here: 3,000 shards and 100,000 tensors with a header of 10 MB make 16 MB."""
KIND = engine.JournalKind(
    schema=SCHEMA,
    work="merge",
    busy="another dfqs is working on this merge",
    give_up="have that version undo it (--abort)",
    limit_bytes=LIMIT_BYTES,
    line_bytes=LIMIT_BYTES - RESERVED_BYTES,
    purpose="merge-journal",
    reserved_bytes=RESERVED_BYTES,
)
_SUFFIX = ".merge-journal"


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

    def __init__(self, journal: engine.Journal, job: Job, position: Position) -> None:
        self.path = journal.path
        self.job = job
        self.position = position
        self._journal = journal

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
        if _undo_bytes(job) > MAX_UNDO_BYTES:
            raise UsageError(f"{out}: a header this large cannot be kept for an undo; use plain merge")
        try:
            journal = engine.Journal.create(disk, path, KIND)
        except FileExistsError:
            raise UsageError(f"another merge to {out} has begun ({path} exists)") from None
        try:
            # Not always this user: some file systems give every file to one.
            journal.begin({"owner": journal.owner(), **job.to_json()})
        except BaseException:
            try:
                disk.unlink(path)
            finally:
                journal.close()
            raise
        return cls(journal, job, Position())

    @classmethod
    def open(cls, disk: Disk, out: Path, *, trusted: bool = False) -> "Journal | None":
        """Open the journal of an unfinished merge to `out`, or None when there is none.

        Args:
            trusted: the user vouches for it, whether or not it is sealed.

        Raises:
            UsageError: another process works on it; it is a link or no regular file.
            IntegrityError: it is damaged, of a version that is not known here, or not of this user and machine.
        """
        journal = engine.Journal.open(disk, journal_path(out), KIND)
        if journal is None:
            return None
        jobs: list[Job] = []
        position = Position()

        def take(number: int, record: dict[str, Any]) -> bool:
            if number > 0:
                _advance(position, jobs[0], record, journal.path)
                return True
            if not trusted and journal.owner() not in (record.get("owner"), os.geteuid()):
                raise IntegrityError(f"{journal.path} belongs to another user. {journal.how_to_go_on()}")
            jobs.append(_decode_job(record, journal.path))
            return True

        try:
            if journal.read(take, trusted=trusted):
                return cls(journal, jobs[0], position)
            if disk.identify(working_path(out)) is not None:
                raise IntegrityError(f"{journal.path} is damaged; {working_path(out)} is left as it is")
            # Torn before it counted: nothing had been done yet.
            disk.unlink(journal.path)
            journal.close()
            return None
        except BaseException:
            journal.close()
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
        self._journal.append(entry, durable=durable)
        _advance(self.position, self.job, entry, self.path)

    def close(self) -> None:
        """Let another process have it. Safe to repeat."""
        self._journal.close()

    def remove(self) -> None:
        """The merge is over, one way or the other."""
        self._journal.remove()


def unfinished_beside(first_shard: Path) -> Path | None:
    """The output of an unfinished merge of these shards, if a journal of ours lies in their directory."""
    for path in sorted(first_shard.parent.glob("*" + _SUFFIX)):
        try:
            job = engine.read_header(LocalDisk(), path, KIND)
            if job is not None and _decode_job(job, path).sources[0].name == first_shard.name:
                return path.with_name(path.name.removesuffix(_SUFFIX))
        except (OSError, DfqsError, IndexError):
            continue
    return None


def journal_path(out: Path) -> Path:
    """Where the journal of a merge to `out` lies."""
    return KIND.path_beside(out)


def working_path(out: Path) -> Path:
    """What the output is called until it is whole."""
    return out.with_name(f"{out.name}.merging")


def _undo_bytes(job: Job) -> int:
    return len(job.resident.old_tail) if job.resident is not None else 0


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
