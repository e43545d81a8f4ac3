"""Moves the bytes of shards to the working file, a window at a time, and frees what was moved.

The order: bytes durable in the working file, shard found unchanged, journal durable, shard found unchanged, freed.
"""

from pathlib import Path

from dfqs.errors import IntegrityError
from dfqs.inplace.job import TAIL_BYTES, State
from dfqs.inplace.journal import Journal
from dfqs.inplace.unchanged import ShardGuard
from dfqs.progress import Progress
from dfqs.storage.copying import CHUNK_BYTES
from dfqs.storage.disk import DiskFile
from dfqs.storage.hashing import HashingReader

_FREE_UNIT = 4096
_LEFT_BYTES = 4096
"""A file system may keep the last block of a file that was freed whole."""


class Mover:
    """Copies windows: bytes, then the journal, then the freeing.

    Args:
        path: of the working file, for messages.
        window_bytes: how much is copied before it is made durable and freed in the shard.
        progress: in bytes moved.
    """

    def __init__(
        self,
        guard: ShardGuard,
        journal: Journal,
        path: Path,
        working: DiskFile,
        window_bytes: int,
        hash_sources: bool,
        progress: Progress,
    ) -> None:
        self.guard = guard
        self.journal = journal
        self.job = journal.job
        self.path = path
        self.working = working
        self.window_bytes = window_bytes
        self.hash_sources = hash_sources
        self.progress = progress
        self.moved = self.job.bytes_before(journal.position.copy, journal.position.done)
        self.copied_bytes = self.job.bytes_before(len(self.job.copies), 0)

    def run(self) -> None:
        if self.working.size() != self.job.file_bytes:
            raise IntegrityError(f"{self.path} has not the size that its journal says; nothing was changed")
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
        shard = self.job.copies[start].shard
        source = self.job.sources[shard]
        file = self.guard.open(shard)
        whole = done == 0 and self.job.is_first_of_shard(start)
        reader = HashingReader(file.read_into) if self.hash_sources and whole else None
        window = 0
        freed = 0
        try:
            for index in range(start, len(self.job.copies)):
                copy = self.job.copies[index]
                while done < copy.length:
                    step = min(copy.length - done, self.window_bytes - window, CHUNK_BYTES)
                    self._transfer(file, reader, copy.source_offset + done, copy.output_offset + done, step)
                    done += step
                    window += step
                    if done == copy.length and self.job.is_last_of_shard(index):
                        self._commit(index, done, file, reader, freed, source.bytes)
                        return index + 1
                    if window == self.window_bytes:
                        end = min(copy.source_offset + done, source.bytes - TAIL_BYTES) // _FREE_UNIT * _FREE_UNIT
                        self._commit(index, done, file, None, freed, end)
                        freed = max(freed, end)
                        window = 0
                done = 0
        finally:
            if reader is not None:
                reader.close()
            file.close()
        raise AssertionError("the last copy of a shard ends the loop")

    def _transfer(
        self, file: DiskFile, reader: HashingReader | None, source_offset: int, output_offset: int, length: int
    ) -> None:
        if reader is None:
            self.working.copy_from(file, source_offset, output_offset, length)
        else:
            shift = output_offset - source_offset
            reader.read_through(source_offset, _ignore)
            reader.read_through(source_offset + length, lambda piece, at: self.working.write_at(at + shift, piece))
        self.working.begin_sync(output_offset, length)
        self.moved += length
        self.progress(self.moved, self.copied_bytes)

    def _commit(
        self, index: int, done: int, file: DiskFile, reader: HashingReader | None, freed: int, end: int
    ) -> None:
        """Make a window durable, write that down, and free the shard from `freed` to `end`.

        Nothing of it happens when the shard is not what it was: what was copied is then not what was planned.
        """
        shard = self.job.copies[index].shard
        self.working.sync()
        digest = None
        if reader is not None:
            reader.read_through(self.job.sources[shard].bytes, _ignore)
            digest = (shard, reader.hexdigest())
        self.guard.require(shard, file)
        if digest is not None and self.job.sources[shard].sha256 not in (None, digest[1]):
            self.journal.note_refused(shard)
            refuse_other_bytes(self.journal, self.path, trusted=self.guard.trusted)
        whole = end == self.job.sources[shard].bytes
        frees = whole or (self.job.freeing == "punch" and end > freed)
        freeing = self.guard.announce(shard, freed, end) if frees else None
        self.journal.record(State.MOVING, copy=index, done=done, sha256=digest, freeing=freeing)
        if frees:
            self._free(shard, file, freed, end)

    def _free(self, shard: int, file: DiskFile, start: int, end: int) -> None:
        if self.job.freeing == "punch":
            self.guard.free(shard, file, start, end)
        else:
            self.guard.require(shard, file)
            self.guard.remove(shard)

    def _free_what_was_moved(self) -> None:
        """Free again what the journal says is moved: the power may have gone between the journal and the freeing."""
        position = self.journal.position
        if position.state < State.MOVING:
            return
        if (pending := position.freeing) is not None and self.guard.may_remove(pending.shard):
            # Noted before another freeing is announced.
            self.guard.open(pending.shard).close()
        for index in range(position.copy + 1):
            if not self.job.is_last_of_shard(index):
                continue
            if index == position.copy and position.done < self.job.copies[index].length:
                continue
            shard = self.job.copies[index].shard
            if not self.guard.may_remove(shard):
                # Gone already, or a file that somebody put there since.
                continue
            file = self.guard.open(shard)
            try:
                size = self.job.sources[shard].bytes
                if self.job.freeing == "delete" or _held_bytes(file) > _LEFT_BYTES:
                    freeing = self.guard.announce(shard, 0, size)
                    self.journal.record(State.MOVING, copy=position.copy, done=position.done, freeing=freeing)
                    self._free(shard, file, 0, size)
            finally:
                file.close()


def _held_bytes(file: DiskFile) -> int:
    return file.size() - sum(end - start for start, end in file.holes())


def refuse_other_bytes(journal: Journal, path: Path, *, trusted: bool) -> None:
    """Raises IntegrityError when merged bytes were not those that were planned, and nobody vouches for them."""
    for shard in sorted(journal.position.refused):
        if not trusted:
            name = journal.job.sources[shard].name
            raise IntegrityError(
                f"the bytes that were merged of {name} are not those with the SHA-256 that was known of it; what is "
                f"left of the shards is kept. {path} can be finished as it is with --trust-shards"
            )


def _ignore(piece: memoryview, offset: int) -> None:
    """Header and padding: hashed, not copied."""
