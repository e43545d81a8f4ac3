"""Keeps merges of the same shards away from each other, and from shards that changed since they were looked at.

Two merges that use up the same shards, or one that does and a plain one that only reads, would take each other's freed
bytes for data. The first shard stands for the set: a merge holds a lock on it from before its first change to its end,
exclusive where shards are used up, shared where they stay. Locks go with their process, however it ends.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dfqs.errors import ShardError, UsageError
from dfqs.gguf import FileSource
from dfqs.gguf.shard import Shard
from dfqs.storage.disk import Disk
from dfqs.storage.identity import FileStamp
from dfqs.storage.locks import NoLocks, try_lock


@contextlib.contextmanager
def locked_for_use(disk: Disk, candidates: Sequence[Path]) -> Iterator[None]:
    """Hold the first shard under the first of these names that is there. With none there, nothing is left to protect.

    Raises:
        UsageError: another merge holds it.
    """
    path = next((path for path in candidates if disk.identify(path) is not None), None)
    if path is None:
        yield
        return
    file = disk.open(path)
    try:
        if not file.lock():
            raise UsageError(f"another merge is at work on these shards ({path} is locked); wait for it or stop it")
        yield
    finally:
        file.close()


@contextlib.contextmanager
def locked_for_reading(first: Shard) -> Iterator[None]:
    """Keep merges that use shards up away while these are read.

    Raises:
        UsageError: such a merge is under way.
    """
    with FileSource(first.path) as source:
        # Where nothing can be locked, comparing each shard with what it was has to do.
        with contextlib.suppress(NoLocks):
            if not try_lock(source.fileno(), shared=True):
                raise UsageError(f"a merge is using up these shards ({first.path} is locked); wait for it")
        yield


def require_unchanged(shard: Shard, source: FileSource) -> None:
    """Compare an open file with what it was when its header was read.

    Raises:
        ShardError: it is another file, or was changed.
    """
    require_stamp(shard, FileStamp.of(os.fstat(source.fileno())))


def require_stamp(shard: Shard, found: FileStamp) -> None:
    """Raises ShardError when `found` is not the stamp that a shard had when its header was read."""
    stamp = shard.stamp
    if stamp is None or found == stamp:
        return
    if found.bytes != stamp.bytes:
        what = f"had {stamp.bytes:,} bytes when it was planned, now {found.bytes:,}"
    elif (found.device, found.inode) != (stamp.device, stamp.inode):
        what = "is another file than the one whose header was read"
    else:
        what = "was written to since its header was read"
        if found.modified_ns == stamp.modified_ns:
            what = "was changed since its header was read, though its time of writing is the same"
    raise ShardError(f"{what}; wait until nothing changes it, and run this again", path=shard.source)
