"""Whether what is left of a shard is still what was planned with; asked before it is copied and before it is freed.

A merge changes its shards itself: freeing a range moves a shard's times. After each freeing the old time of writing is
put back and the stamp is noted in the journal, so that any other change shows, also after a kill.
"""

import hashlib
import time
from pathlib import Path

from dfqs.errors import IntegrityError
from dfqs.inplace.job import TAIL_BYTES, Resident, Source, State
from dfqs.inplace.journal import Journal, PendingFreeing
from dfqs.storage.disk import Disk, DiskFile
from dfqs.storage.hashing import hash_range
from dfqs.storage.identity import FileStamp

WAIT_FOR_OTHERS_S = 2.0
_PROBE_BYTES = 4096
_EARLY_NS = 20_000_000
"""A file's time may lag behind the clock by a tick."""
_FREEING_NS = 2_000_000_000
"""A freeing that a kill cut off had begun within this time after it was announced."""


class ShardGuard:
    """The shards of one merge under way.

    Args:
        trusted: the user vouches for shards whose stamps are not known; their sizes and ends must still be right.
    """

    def __init__(self, disk: Disk, journal: Journal, directory: Path, *, trusted: bool) -> None:
        self._disk = disk
        self._journal = journal
        self._directory = directory
        self.trusted = trusted
        self._expected: dict[int, FileStamp] = {}

    def path(self, shard: int) -> Path:
        return self._directory / self._journal.job.sources[shard].name

    def open(self, shard: int) -> DiskFile:
        """Open a shard whose bytes are still needed.

        Raises:
            IntegrityError: it is gone, another file has its name, or it was changed.
        """
        path = self.path(shard)
        if self._disk.identify(path) is None:
            raise IntegrityError(f"{path} is gone, and bytes of it were not merged yet; put it back and run this again")
        file = self._disk.open(path)
        try:
            found = file.identify()
            if found.links != 1:
                raise IntegrityError(f"{path} has {found.links} names now; remove the others and run this again")
            if not self._is_noted(shard, found.stamp):
                if not self._is_freed_just_now(shard, found.stamp, file):
                    self._require_bytes(shard, found.stamp, file)
                self._journal.note_stamps(shard, found.stamp)
            self._expected[shard] = found.stamp
            self.require(shard, file)
        except BaseException:
            file.close()
            raise
        return file

    def require(self, shard: int, file: DiskFile) -> None:
        """Make sure that an open shard is as it was when it was opened, or when a range of it was last freed.

        Raises:
            IntegrityError: it was written to, or another file has its name; nothing more of it is freed.
        """
        path = self.path(shard)
        named = self._disk.identify(path)
        here = file.identify().stamp
        if named is None or (named.device, named.inode) != (here.device, here.inode) or named.is_symlink:
            raise IntegrityError(
                f"{path} was moved or replaced while it was merged; put the file back that was there and run this again"
            )
        if here != self._expected[shard]:
            raise IntegrityError(
                f"{path} was changed while it was merged; nothing more of it is used up. If its bytes are what they "
                "were, run this again with --trust-shards"
            )
        require_alone(file, path)

    def announce(self, shard: int, start: int, end: int) -> PendingFreeing:
        """What goes into the journal before a range is freed."""
        return PendingFreeing(shard, start, end, self._disk.now_ns())

    def free(self, shard: int, file: DiskFile, start: int, end: int) -> None:
        """Free a range, and know the shard again afterwards.

        Raises:
            IntegrityError: it is not what was copied; nothing is freed.
        """
        self.require(shard, file)
        file.punch(start, end - start)
        freed = file.identify().stamp
        if (old := self._journal.job.sources[shard].stamp) is not None:
            file.set_modified(old.modified_ns)
        self._expected[shard] = file.identify().stamp
        self._journal.note_stamps(shard, freed, self._expected[shard])

    def remove(self, shard: int) -> None:
        """Remove a shard that `require` or `may_remove` has just found to be itself."""
        self._disk.unlink(self.path(shard))

    def may_remove(self, shard: int) -> bool:
        """Whether what has a shard's name is that shard, all of whose bytes were merged."""
        path = self.path(shard)
        named = self._disk.identify(path)
        if named is None or not named.is_regular or named.links != 1:
            return False
        if self._expected.get(shard) == named.stamp:
            return True
        file = self._disk.open(path)
        try:
            found = file.identify().stamp
            return self._is_noted(shard, found) or self._is_freed_just_now(shard, found, file)
        finally:
            file.close()

    def require_resident(self, resident: Resident, found: FileStamp, path: Path) -> None:
        """Make sure that the shard that stays is the one that was planned with, whatever it is called now.

        Raises:
            IntegrityError: it is another file.
        """
        source = self._journal.job.sources[resident.shard]
        if self.trusted or source.stamp is None or source.stamp.inode == found.inode:
            return
        raise IntegrityError(
            f"{path} is not the file that this merge began with ({source.name}); nothing was changed. Put that back, "
            "or give --trust-shards if this one has its bytes"
        )

    def _is_noted(self, shard: int, found: FileStamp) -> bool:
        """Whether a file is the shard by its stamp, changed by nobody but this merge."""
        stamp = self._journal.job.sources[shard].stamp
        noted = self._journal.position.stamps.get(shard, [])
        return any(known.is_same_later(found) for known in (*noted, *([stamp] if stamp is not None else [])))

    def _is_freed_just_now(self, shard: int, found: FileStamp, file: DiskFile) -> bool:
        """Whether a kill came between a freeing and the note of it: it is ours by its time, and by what it did."""
        old, freeing = self._journal.job.sources[shard].stamp, self._journal.position.freeing
        if old is None or freeing is None or freeing.shard != shard:
            return False
        if (found.bytes, found.inode) != (old.bytes, old.inode):
            return False
        if not -_EARLY_NS <= found.changed_ns - freeing.time_ns <= _FREEING_NS:
            return False
        if found.modified_ns == old.modified_ns:
            return True
        probe = max(freeing.start, freeing.end - _PROBE_BYTES)
        return not any(file.read_at(probe, freeing.end - probe))

    def _require_bytes(self, shard: int, found: FileStamp, file: DiskFile) -> None:
        """Make sure that a shard with an unknown stamp is right, because its bytes are or because the user says so.

        Raises:
            IntegrityError: neither.
        """
        source, path = self._journal.job.sources[shard], self.path(shard)
        tail = file.read_at(max(source.bytes - TAIL_BYTES, 0), TAIL_BYTES)
        if found.bytes != source.bytes or hashlib.sha256(tail).hexdigest() != source.tail_sha256:
            raise IntegrityError(f"{path} is not the file that this merge began with; nothing was changed")
        if self.trusted or (not self._is_begun(shard) and _has_hash(file, source)):
            return
        raise IntegrityError(
            f"{path} is not the file that this merge began with, or was touched since; nothing was changed. Put that "
            "file back, or give --trust-shards if you know that this one has its bytes"
        )

    def _is_begun(self, shard: int) -> bool:
        """Whether bytes of a shard may have been freed already, so that no hash of the whole can be right."""
        job, position = self._journal.job, self._journal.position
        return position.state >= State.MOVING and shard <= job.copies[position.copy].shard


def require_alone(file: DiskFile, path: Path) -> None:
    """Make sure that nobody else can be writing to a file, by a handle or a mapping.

    Some kernels count readers too; who only looks in (an indexer, `dfqs inspect`) is waited for.

    Raises:
        IntegrityError: somebody has it open.
    """
    until = time.monotonic() + WAIT_FOR_OTHERS_S
    while file.has_other_writers():
        if time.monotonic() > until:
            raise IntegrityError(f"{path} is open in another process; stop it and run this again")
        time.sleep(0.05)


def _has_hash(file: DiskFile, source: Source) -> bool:
    """Whether a file has the hash that is known of the whole shard."""
    return source.sha256 is not None and hash_range(file.read_at, 0, source.bytes) == source.sha256
