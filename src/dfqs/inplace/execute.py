"""Carries out a merge that consumes its shards, so that it can be cut off at any instant.

The order that makes it safe: the job is durable before anything is touched; bytes are durable in the working file
before the journal says so; the journal is durable before the same bytes are freed in a shard. The working file carries
no magic until it is whole, so that no program takes it for a model. Until the first byte has been freed everything can
be undone; from then on the merge can always be carried on.
"""

import errno
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dfqs.errors import DfqsError, IntegrityError, ShardError, SpaceError, UsageError
from dfqs.gguf.layout import MAGIC
from dfqs.gguf.shard import Shard
from dfqs.inplace.gap import remove_gap
from dfqs.inplace.job import Job, Resident, State
from dfqs.inplace.journal import Journal, working_path
from dfqs.inplace.mover import Mover, refuse_other_bytes
from dfqs.inplace.plan_resident import HEAD_BYTES, JobPlan
from dfqs.inplace.unchanged import ShardGuard, require_alone
from dfqs.progress import Progress, no_progress
from dfqs.shards.locks import require_stamp
from dfqs.storage.disk import Disk, DiskFile
from dfqs.units import format_bytes

WINDOW_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where a merge happens."""

    out: Path
    shards: Path
    """Directory of the shards."""

    @property
    def working(self) -> Path:
        return working_path(self.out)


def begin(disk: Disk, plan: JobPlan, place: Place, shards: Sequence[Shard] = ()) -> Journal:
    """Write the journal, make the working file, and bring it to the state READY. A failure on the way is undone.

    Args:
        shards: as they were planned with; what changed since is refused before anything is written.

    Raises:
        ShardError: a shard was changed since its header was read.
    """
    journal = Journal.create(disk, place.out, _stamped(disk, plan.job, place, shards))
    try:
        with _failures(plan.job, journal, place):
            resident = plan.job.resident
            working = disk.create(place.working) if resident is None else _open_gap(disk, journal, place, resident)
            try:
                _write_header(working, plan, resident)
                working.truncate(plan.job.file_bytes)
                working.sync()
                made = working.identify().stamp
            finally:
                working.close()
            if resident is None:
                disk.sync_directory(place.out.parent)
            journal.record(State.READY, working=made)
    except BaseException:
        try:
            undo(disk, journal, place)
        finally:
            journal.close()
        raise
    return journal


def carry_on(
    disk: Disk,
    journal: Journal,
    place: Place,
    *,
    window_bytes: int = WINDOW_BYTES,
    hash_sources: bool = True,
    trust_shards: bool = False,
    progress: Progress = no_progress,
) -> tuple[Path, ...]:
    """Go on from wherever the journal says the merge is, to its end. Afterwards only the output is left.

    Args:
        window_bytes: how much is copied before it is made durable and freed in the shard.
        trust_shards: the user vouches for shards that were touched since the merge began.
        progress: in bytes moved.

    Returns:
        Files that have a shard's name and are not that shard; they were left.

    Raises:
        SpaceError: the disk is full; nothing is lost, the same call goes on later.
        IntegrityError: a shard or the working file is not the one that the journal speaks of, or was changed.
    """
    guard = ShardGuard(disk, journal, place.shards, trusted=trust_shards)
    with _failures(journal.job, journal, place):
        if journal.position.state < State.SEALED:
            working = _open_working(disk, journal, place, trusted=trust_shards)
            try:
                refuse_other_bytes(journal, place.working, trusted=trust_shards)
                Mover(guard, journal, place.working, working, window_bytes, hash_sources, progress).run()
                _seal(working, journal, place)
            finally:
                working.close()
        return _publish(disk, journal, place, guard)


def undo(disk: Disk, journal: Journal, place: Place) -> None:
    """Put everything back as it was before the merge began, and remove the journal. Safe to repeat after a crash.

    Raises:
        DfqsError: bytes have been freed already; the merge can only go forward.
    """
    job, position = journal.job, journal.position
    if position.may_have_freed:
        raise DfqsError(_why_no_undo(job, journal, place))
    if job.resident is None:
        if disk.identify(place.working) is not None:
            disk.unlink(place.working)
    elif (found := disk.identify(place.working)) is not None:
        ShardGuard(disk, journal, place.shards, trusted=False).require_resident(
            job.resident, found.stamp, place.working
        )
        _close_gap(disk, journal, place, job.resident)
        disk.rename(place.working, place.shards / job.sources[job.resident.shard].name)
        disk.sync_directory(place.shards)
    disk.sync_directory(place.out.parent)
    journal.remove()


def _stamped(disk: Disk, job: Job, place: Place, shards: Sequence[Shard]) -> Job:
    """The job with the shards' stamps of this moment, which must be those of `shards` where these are given."""
    sources = []
    for index, source in enumerate(job.sources):
        found = disk.identify(place.shards / source.name)
        if found is None:
            raise ShardError("is gone since its header was read", path=place.shards / source.name)
        if shards:
            require_stamp(shards[index], found.stamp)
        sources.append(replace(source, stamp=found.stamp))
    return replace(job, sources=tuple(sources))


def _open_working(disk: Disk, journal: Journal, place: Place, *, trusted: bool) -> DiskFile:
    """Raises IntegrityError when the working file is gone, or another file has its name."""
    found, made = disk.identify(place.working), journal.position.working
    if found is None:
        raise IntegrityError(f"{place.working} is gone, and with it the bytes that were moved there")
    if not found.is_regular or found.links != 1 or (made and found.inode != made.inode and not trusted):
        raise IntegrityError(
            f"{place.working} is not the file that this merge made; nothing was changed. Put that back, or give "
            "--trust-shards if this one has its bytes"
        )
    return disk.open(place.working)


def _open_gap(disk: Disk, journal: Journal, place: Place, resident: Resident) -> DiskFile:
    source = journal.job.sources[resident.shard]
    disk.rename(place.shards / source.name, place.working)
    disk.sync_directory(place.out.parent)
    working = disk.open(place.working)
    try:
        found, planned = working.identify().stamp, source.stamp
        if planned is not None and replace(found, changed_ns=planned.changed_ns) != planned:
            raise ShardError("was changed while the merge began; all was put back", path=place.shards / source.name)
        if resident.gap:
            _insert(working, resident, place)
        working.sync()
        journal.record(State.INSERTED)
        # The shard's old header now lies where other bytes belong, and padding must be zeroes.
        if resident.old_tail:
            working.punch(resident.insert_at + resident.gap, len(resident.old_tail))
    except BaseException:
        working.close()
        raise
    return working


def _insert(working: DiskFile, resident: Resident, place: Place) -> None:
    try:
        working.insert_range(resident.insert_at, resident.gap)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        # The file system can, for this file it will not: inline data, old block maps, a limit of size.
        raise UsageError(
            f"the file system of {place.out.parent} would not insert into this shard ({error.strerror}); all was put "
            "back, use --consume"
        ) from error


def _close_gap(disk: Disk, journal: Journal, place: Place, resident: Resident) -> None:
    working = disk.open(place.working)
    try:
        if journal.position.state in (State.INSERTED, State.READY):
            gap_end = resident.insert_at + resident.gap
            working.truncate(resident.old_bytes + resident.gap)
            working.write_at(gap_end, resident.old_tail)
            if resident.insert_at:
                working.write_at(0, resident.old_head)
            if resident.gap:
                working.punch(resident.insert_at, resident.gap)
            working.sync()
            journal.record(State.UNDOING)
        if resident.gap:
            remove_gap(working, gap=resident.gap, old_bytes=resident.old_bytes, path=place.working)
    finally:
        working.close()


def _write_header(working: DiskFile, plan: JobPlan, resident: Resident | None) -> None:
    """All of the header but its magic, which comes last of all."""
    start = resident.insert_at if resident is not None else 0
    head = bytes(len(MAGIC)) + plan.header[len(MAGIC) : HEAD_BYTES]
    if start:
        working.write_at(0, head)
        working.write_at(start, plan.header[start:])
    else:
        working.write_at(0, head + plan.header[HEAD_BYTES:])


def _seal(working: DiskFile, journal: Journal, place: Place) -> None:
    """Make sure that the header is what was planned, and write the magic: from here on it is a model."""
    header = MAGIC + working.read_at(len(MAGIC), journal.job.header_bytes - len(MAGIC))
    if hashlib.sha256(header).hexdigest() != journal.job.header_sha256:
        raise IntegrityError(f"{place.working} has a header that was not written by this merge; nothing was changed")
    require_alone(working, place.working)
    working.write_at(0, MAGIC)
    working.sync()
    position = journal.position
    journal.record(State.SEALED, copy=position.copy, done=position.done, working=working.identify().stamp)


def _publish(disk: Disk, journal: Journal, place: Place, guard: ShardGuard) -> tuple[Path, ...]:
    """Give the output its name, then remove what is left of the shards, then the journal."""
    if disk.identify(place.working) is not None:
        _require_sealed(disk, journal, place.working)
        disk.rename(place.working, place.out)
        disk.sync_directory(place.out.parent)
    _require_sealed(disk, journal, place.out)
    left = []
    for index in range(len(journal.job.sources)):
        if disk.identify(guard.path(index)) is None:
            continue
        if guard.may_remove(index):
            guard.remove(index)
        else:
            left.append(guard.path(index))
    if place.shards.resolve() != place.out.parent.resolve():
        disk.sync_directory(place.shards)
    journal.remove()
    return tuple(left)


def _require_sealed(disk: Disk, journal: Journal, path: Path) -> None:
    """Raises IntegrityError when a file is not the one that this merge made whole."""
    found, made = disk.identify(path), journal.position.working
    if found is None or not found.is_regular or found.bytes != journal.job.file_bytes:
        made = None
    # Its name was changed since, and with it the time of change; not its bytes, and not its time of writing.
    if found is None or made is None or (found.inode, found.modified_ns) != (made.inode, made.modified_ns):
        raise IntegrityError(
            f"{path} is not the file that this merge made; its journal and what is left of the shards are kept"
        )


def _why_no_undo(job: Job, journal: Journal, place: Place) -> str:
    position = journal.position
    if position.state is State.SEALED:
        return "nothing to restore: all bytes are in place, only names remain; run the same command to finish"
    moved = job.bytes_before(position.copy, position.done)
    gone = [job.sources[shard].name for shard in sorted({copy.shard for copy in job.copies[: position.copy + 1]})]
    return (
        f"cannot be undone: {format_bytes(moved)} of {', '.join(gone[:3])}{' and others' if len(gone) > 3 else ''} are "
        f"in {place.working} only. Nothing is lost: the same command without --abort finishes, and `dfqs split` makes "
        "shards again"
    )


@contextmanager
def _failures(job: Job, journal: Journal, place: Place) -> Iterator[None]:
    """Say what a full disk means for a merge that is under way."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        done = job.bytes_before(journal.position.copy, journal.position.done)
        raise SpaceError(
            f"the disk of {place.out.parent} is full ({format_bytes(done)} of {format_bytes(job.moved_bytes)} moved). "
            "Nothing is lost: free some space and run the same command again"
        ) from error
