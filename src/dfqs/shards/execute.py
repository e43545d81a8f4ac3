"""Carries out a merge that consumes its shards, so that it can be cut off at any instant.

The order that makes it safe: the job is durable before anything is touched; bytes are durable in the working file
before the journal says so; the journal is durable before the same bytes are freed in a shard. The working file carries
no magic until it is whole, so that no program takes it for a model. Until the first byte has been freed everything can
be undone; from then on the merge can always be carried on.
"""

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import DfqsError, IntegrityError, SpaceError, UsageError
from dfqs.gguf.layout import MAGIC
from dfqs.progress import Progress, no_progress
from dfqs.shards.copying import CHUNK_BYTES, HashingReader
from dfqs.shards.disk import Disk, DiskFile
from dfqs.shards.gap import remove_gap
from dfqs.shards.inplace import HEAD_BYTES, JobPlan
from dfqs.shards.job import TAIL_BYTES, Job, Resident, Source, State
from dfqs.shards.journal import Journal, working_path
from dfqs.units import format_bytes

WINDOW_BYTES = 256 << 20
_FREE_UNIT = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """Where a merge happens."""

    out: Path
    shards: Path
    """Directory of the shards."""

    @property
    def working(self) -> Path:
        return working_path(self.out)


def begin(disk: Disk, plan: JobPlan, place: Place) -> Journal:
    """Write the journal, make the working file, and bring it to the state READY. A failure on the way is undone."""
    journal = Journal.create(disk, place.out, plan.job)
    try:
        with _failures(plan.job, journal, place):
            resident = plan.job.resident
            working = disk.create(place.working) if resident is None else _open_gap(disk, journal, place, resident)
            try:
                _write_header(working, plan, resident)
                working.truncate(plan.job.file_bytes)
                working.sync()
            finally:
                working.close()
            if resident is None:
                disk.sync_directory(place.out.parent)
            journal.record(State.READY)
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
    progress: Progress = no_progress,
) -> None:
    """Go on from wherever the journal says the merge is, to its end. Afterwards only the output is left.

    Args:
        window_bytes: how much is copied before it is made durable and freed in the shard.
        progress: in bytes moved.

    Raises:
        SpaceError: the disk is full; nothing is lost, the same call goes on later.
        IntegrityError: a shard or the working file is not the one that the journal speaks of.
    """
    with _failures(journal.job, journal, place):
        if journal.position.state < State.SEALED:
            if disk.identify(place.working) is None:
                raise IntegrityError(f"{place.working} is gone, and with it the bytes that were moved there")
            working = disk.open(place.working)
            try:
                _Mover(disk, journal, place, working, window_bytes, hash_sources, progress).run()
                _seal(working, journal, place)
            finally:
                working.close()
        _publish(disk, journal, place)


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
    elif disk.identify(place.working) is not None:
        _close_gap(disk, journal, place, job.resident)
        disk.rename(place.working, place.shards / job.sources[job.resident.shard].name)
        disk.sync_directory(place.shards)
    disk.sync_directory(place.out.parent)
    journal.remove(disk)


def _open_gap(disk: Disk, journal: Journal, place: Place, resident: Resident) -> DiskFile:
    disk.rename(place.shards / journal.job.sources[resident.shard].name, place.working)
    disk.sync_directory(place.out.parent)
    working = disk.open(place.working)
    try:
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


class _Mover:
    """Copies windows: bytes, then the journal, then the freeing."""

    def __init__(
        self,
        disk: Disk,
        journal: Journal,
        place: Place,
        working: DiskFile,
        window_bytes: int,
        hash_sources: bool,
        progress: Progress,
    ) -> None:
        self.disk = disk
        self.journal = journal
        self.job = journal.job
        self.place = place
        self.working = working
        self.window_bytes = window_bytes
        self.hash_sources = hash_sources
        self.progress = progress
        self.moved = self.job.bytes_before(journal.position.copy, journal.position.done)
        self.copied_bytes = self.job.bytes_before(len(self.job.copies), 0)

    def run(self) -> None:
        if self.working.size() != self.job.file_bytes:
            raise IntegrityError(f"{self.place.working} has not the size that its journal says; nothing was changed")
        self._free_what_was_moved()
        position = self.journal.position
        start = position.copy
        if start < len(self.job.copies) and position.done == self.job.copies[start].length:
            start += 1
        done = position.done if start == position.copy else 0
        while start < len(self.job.copies):
            start = self._move_shard(start, done)
            done = 0

    def _move_shard(self, start: int, done: int) -> int:
        """Move what is left of one shard; returns the first copy of the next."""
        source = self.job.sources[self.job.copies[start].shard]
        file = _open_source(self.disk, self.place, source)
        whole = done == 0 and self.job.is_first_of_shard(start)
        reader = HashingReader(file.read_at) if self.hash_sources and whole else None
        window = 0
        freed = 0
        try:
            for index in range(start, len(self.job.copies)):
                copy = self.job.copies[index]
                while done < copy.length:
                    step = min(copy.length - done, self.window_bytes - window, CHUNK_BYTES)
                    self._transfer(file, reader, copy.source_offset + done, copy.target_offset + done, step)
                    done += step
                    window += step
                    last = done == copy.length and self.job.is_last_of_shard(index)
                    if last:
                        self._commit(index, done, source, file, reader)
                        self._free(file, source, freed, source.bytes)
                        return index + 1
                    if window == self.window_bytes:
                        self._commit(index, done, source, file, None)
                        end = min(copy.source_offset + done, source.bytes - TAIL_BYTES) // _FREE_UNIT * _FREE_UNIT
                        if self.job.freeing == "punch" and end > freed:
                            self._free(file, source, freed, end)
                            freed = end
                        window = 0
                done = 0
        finally:
            if reader is not None:
                reader.close()
            file.close()
        raise AssertionError("the last copy of a shard ends the loop")

    def _transfer(
        self, file: DiskFile, reader: HashingReader | None, source_offset: int, target_offset: int, length: int
    ) -> None:
        if reader is None:
            self.working.copy_from(file, source_offset, target_offset, length)
        else:
            shift = target_offset - source_offset
            reader.read_through(source_offset, _ignore)
            reader.read_through(source_offset + length, lambda piece, at: self.working.write_at(at + shift, piece))
        self.working.begin_sync(target_offset, length)
        self.moved += length
        self.progress(self.moved, self.copied_bytes)

    def _commit(self, index: int, done: int, source: Source, file: DiskFile, reader: HashingReader | None) -> None:
        self.working.sync()
        digest = None
        if reader is not None:
            reader.read_through(source.bytes, _ignore)
            digest = (self.job.copies[index].shard, reader.hexdigest())
        self.journal.record(State.MOVING, copy=index, done=done, sha256=digest)

    def _free(self, file: DiskFile, source: Source, start: int, end: int) -> None:
        if self.job.freeing == "punch":
            file.punch(start, end - start)
        else:
            self.disk.unlink(self.place.shards / source.name)

    def _free_what_was_moved(self) -> None:
        """Free again what the journal says is moved: the power may have gone between the journal and the freeing."""
        position = self.journal.position
        if position.state < State.MOVING:
            return
        for index in range(position.copy + 1):
            if not self.job.is_last_of_shard(index):
                continue
            if index == position.copy and position.done < self.job.copies[index].length:
                continue
            source = self.job.sources[self.job.copies[index].shard]
            path = self.place.shards / source.name
            if self.disk.identify(path) is None:
                continue
            file = self.disk.open(path)
            try:
                self._free(file, source, 0, source.bytes)
            finally:
                file.close()


def _open_source(disk: Disk, place: Place, source: Source) -> DiskFile:
    """Open a shard whose bytes are still needed.

    Raises:
        IntegrityError: it is gone, or another file has its name.
    """
    path = place.shards / source.name
    if disk.identify(path) is None:
        raise IntegrityError(f"{path} is gone, and bytes of it were not merged yet; put it back and run this again")
    file = disk.open(path)
    tail = file.read_at(max(source.bytes - TAIL_BYTES, 0), TAIL_BYTES)
    if file.size() != source.bytes or hashlib.sha256(tail).hexdigest() != source.tail_sha256:
        file.close()
        raise IntegrityError(f"{path} is not the file that this merge began with; nothing was changed")
    return file


def _seal(working: DiskFile, journal: Journal, place: Place) -> None:
    """Make sure that the header is what was planned, and write the magic: from here on it is a model."""
    header = MAGIC + working.read_at(len(MAGIC), journal.job.header_bytes - len(MAGIC))
    if hashlib.sha256(header).hexdigest() != journal.job.header_sha256:
        raise IntegrityError(f"{place.working} has a header that was not written by this merge; nothing was changed")
    working.write_at(0, MAGIC)
    working.sync()
    journal.record(State.SEALED, copy=journal.position.copy, done=journal.position.done)


def _publish(disk: Disk, journal: Journal, place: Place) -> None:
    """Give the output its name, then remove what is left of the shards, then the journal."""
    if disk.identify(place.working) is not None:
        disk.rename(place.working, place.out)
        disk.sync_directory(place.out.parent)
    found = disk.identify(place.out)
    if found is None or found.bytes != journal.job.file_bytes:
        raise IntegrityError(f"{place.out} is not the file that this merge made; its journal is left as it is")
    for source in journal.job.sources:
        path = place.shards / source.name
        left = disk.identify(path)
        if left is not None and left.bytes == source.bytes:
            disk.unlink(path)
    if place.shards.resolve() != place.out.parent.resolve():
        disk.sync_directory(place.shards)
    journal.remove(disk)


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


def _ignore(piece: bytes, offset: int) -> None:
    """Header and padding: hashed, not copied."""
