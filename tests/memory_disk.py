"""A file system in memory that keeps a log of every operation, so that a test can cut the power after any of them.

Contents are blocks; a block that is not there is a hole. What an operation does is applied to the *current* state; the
*durable* state of a file follows at its `sync`, that of a name at the sync of its directory. After a cut, three things
can be true of what was not synced: it is lost, it is all there (kill -9: the page cache survives), or some of it is.
"""

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dfqs.errors import ShardError, UsageError
from dfqs.storage.disk import FileIdentity

BLOCK = 4096


class PowerLoss(BaseException):
    """The power went. Not an Exception: nothing may catch it and tidy up."""


@dataclass
class Content:
    """A file's bytes and holes."""

    size: int = 0
    blocks: dict[int, bytes] = field(default_factory=dict)
    modified_ns: int = 0
    changed_ns: int = 0

    def copy(self) -> "Content":
        return Content(self.size, dict(self.blocks), self.modified_ns, self.changed_ns)

    def read(self, offset: int, length: int) -> bytes:
        length = max(min(length, self.size - offset), 0)
        first, last = offset // BLOCK, (offset + length + BLOCK - 1) // BLOCK
        data = b"".join(self.blocks.get(index, bytes(BLOCK)) for index in range(first, last))
        return data[offset - first * BLOCK :][:length]

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        for index in range(offset // BLOCK, (end + BLOCK - 1) // BLOCK):
            start = index * BLOCK
            block = bytearray(self.blocks.get(index, bytes(BLOCK)))
            low, high = max(start, offset), min(start + BLOCK, end)
            block[low - start : high - start] = data[low - offset : high - offset]
            self.blocks[index] = bytes(block)
        self.size = max(self.size, end)

    def truncate(self, size: int) -> None:
        if size < self.size:
            keep = (size + BLOCK - 1) // BLOCK
            self.blocks = {index: data for index, data in self.blocks.items() if index < keep}
            if size % BLOCK and size // BLOCK in self.blocks:
                tail = self.blocks[size // BLOCK][: size % BLOCK]
                self.blocks[size // BLOCK] = tail + bytes(BLOCK - len(tail))
        self.size = size

    def punch(self, offset: int, length: int) -> None:
        end = min(offset + length, self.size)
        for index in list(self.blocks):
            start = index * BLOCK
            low, high = max(start, offset), min(start + BLOCK, end)
            if low >= high:
                continue
            if low == start and (high == start + BLOCK or high == self.size):
                del self.blocks[index]
            else:
                block = bytearray(self.blocks[index])
                block[low - start : high - start] = bytes(high - low)
                self.blocks[index] = bytes(block)

    def shift(self, offset: int, length: int, reach: int) -> None:
        """Open a gap at `offset`, half-way: only blocks from `reach` on have moved, the size is the new one."""
        assert offset % BLOCK == 0 and length % BLOCK == 0 and 0 <= offset < self.size
        first, by = max(offset // BLOCK, reach), length // BLOCK
        self.blocks = {index + by if index >= first else index: data for index, data in self.blocks.items()}
        self.size += length

    def unshift(self, offset: int, length: int, reach: int) -> None:
        """Remove a range, half-way: blocks before `reach` have moved, the size is the old one unless all have."""
        assert offset % BLOCK == 0 and length % BLOCK == 0 and offset + length < self.size
        first, by = offset // BLOCK, length // BLOCK
        moved = {}
        for index, data in self.blocks.items():
            if index < first:
                moved[index] = data
            elif index >= first + by:
                moved[index - by if index - by < reach else index] = data
        whole = reach * BLOCK >= self.size - length
        self.blocks = moved
        self.size -= length if whole else 0

    def holes(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for index in range((self.size + BLOCK - 1) // BLOCK):
            if index in self.blocks:
                continue
            start, end = index * BLOCK, min((index + 1) * BLOCK, self.size)
            if found and found[-1][1] == start:
                found[-1] = (found[-1][0], end)
            else:
                found.append((start, end))
        return found

    @property
    def last_block(self) -> int:
        return max(self.blocks, default=0)


Change = Callable[[Content], None]


@dataclass
class Inode:
    number: int
    durable: Content
    pending: list[Change] = field(default_factory=list)
    live: Content = field(init=False)
    """`durable` with all that is pending."""

    def __post_init__(self) -> None:
        self.live = self.durable.copy()

    def apply(self, change: Change) -> None:
        self.pending.append(change)
        change(self.live)

    def take_back(self) -> None:
        """Forget the last change."""
        self.pending.pop()
        self.live = self.durable.copy()
        for change in self.pending:
            change(self.live)

    def sync(self) -> None:
        self.durable = self.live.copy()
        self.pending.clear()


class MemoryDisk:
    """`dfqs.storage.disk.Disk`, in memory. A name is durable when its own directory has been synced."""

    def __init__(self, power_fails_at: int | None = None, half: float | None = None) -> None:
        self.inodes: dict[int, Inode] = {}
        self.names: dict[Path, int] = {}
        self.durable_names: dict[Path, int] = {}
        self.log: list[str] = []
        self.power_fails_at = power_fails_at
        self.half = half
        """How far a shift of extents gets when the power fails in it: 0 to 1."""
        self.dead = False
        self.clock_ns = 1_000_000_001
        self.capacity_blocks: int | None = None
        self.locked: dict[int, MemoryFile] = {}
        """By number of inode, who holds its lock."""

    def add(self, path: Path, data: bytes) -> None:
        """A durable file, before the log begins."""
        content = Content()
        content.write(0, data)
        self.clock_ns += 1_000_000
        content.modified_ns = content.changed_ns = self.clock_ns
        self._new_inode(path, content)
        self.durable_names = dict(self.names)

    def contents(self, path: Path) -> bytes:
        assert path in self.names, f"{path.name} is lost"
        content = self.inodes[self.names[path]].live
        return content.read(0, content.size)

    def paths(self) -> set[Path]:
        return set(self.names)

    def crash(self, choose: random.Random | None, *, keep_all: bool = False) -> "MemoryDisk":
        """The disk as the next start finds it.

        Args:
            choose: decides for each change that was not synced whether it got to disk; None: none did.
            keep_all: all did (a killed process; the page cache survives).
        """
        after = MemoryDisk()
        after.clock_ns = self.clock_ns
        for number, inode in self.inodes.items():
            content = inode.durable.copy()
            for change in inode.pending:
                if keep_all or (choose is not None and choose.random() < 0.5):
                    change(content)
            after.inodes[number] = Inode(number, content)
        for directory in sorted({path.parent for path in (*self.names, *self.durable_names)}):
            kept = keep_all or (choose is not None and choose.random() < 0.5)
            after.names |= _in_directory(self.names if kept else self.durable_names, directory)
        after.durable_names = dict(after.names)
        return after

    def step(self, what: str) -> None:
        """Log an operation, or lose power before it."""
        if self.dead or (self.power_fails_at is not None and len(self.log) >= self.power_fails_at):
            self.dead = True
            raise PowerLoss
        self.log.append(what)
        self.clock_ns += 1_000_000

    def used_blocks(self) -> int:
        return sum(len(self.inodes[number].live.blocks) for number in set(self.names.values()))

    # Disk

    def identify(self, path: Path) -> FileIdentity | None:
        number = self.names.get(path)
        if number is None:
            return None
        return identity_of(self.inodes[number])

    def now_ns(self) -> int:
        return self.clock_ns

    def open(self, path: Path) -> "MemoryFile":
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return MemoryFile(self, self.inodes[self.names[path]])

    def create(self, path: Path) -> "MemoryFile":
        self.step(f"create {path.name}")
        if path in self.names:
            raise FileExistsError(errno.EEXIST, "it exists", str(path))
        return MemoryFile(self, self._new_inode(path, Content()))

    def rename(self, source: Path, target: Path) -> None:
        self.step(f"rename {source.name} -> {target.name}")
        if source not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
        if target in self.names:
            raise UsageError(f"{target} appeared while it was being written; it is left as it is")
        self.names[target] = self.names.pop(source)

    def unlink(self, path: Path) -> None:
        self.step(f"unlink {path.name}")
        self.names.pop(path, None)

    def sync_directory(self, directory: Path) -> None:
        self.step("sync directory")
        elsewhere = {path: number for path, number in self.durable_names.items() if path.parent != directory}
        self.durable_names = elsewhere | _in_directory(self.names, directory)

    def free_bytes(self, directory: Path) -> int:
        return 1 << 40 if self.capacity_blocks is None else (self.capacity_blocks - self.used_blocks()) * BLOCK

    def _new_inode(self, path: Path, content: Content) -> Inode:
        number = len(self.inodes) + 1
        self.inodes[number] = Inode(number, content)
        self.names[path] = number
        return self.inodes[number]


def _in_directory(names: dict[Path, int], directory: Path) -> dict[Path, int]:
    return {path: number for path, number in names.items() if path.parent == directory}


def identity_of(inode: Inode) -> FileIdentity:
    return FileIdentity(
        inode=inode.number,
        bytes=inode.live.size,
        device=1,
        links=1,
        is_symlink=False,
        is_regular=True,
        owner=os.geteuid(),
        modified_ns=inode.live.modified_ns,
        changed_ns=inode.live.changed_ns,
    )


class MemoryFile:
    """`dfqs.storage.disk.DiskFile`, in memory."""

    def __init__(self, disk: MemoryDisk, inode: Inode) -> None:
        self.disk = disk
        self.inode = inode

    def _change(self, what: str, change: Change) -> None:
        self.disk.step(what)
        now = self.disk.clock_ns

        def timed(content: Content) -> None:
            content.modified_ns = content.changed_ns = now
            change(content)

        self.inode.apply(timed)
        if self.disk.capacity_blocks is not None and self.disk.used_blocks() > self.disk.capacity_blocks:
            self.inode.take_back()
            raise OSError(errno.ENOSPC, "No space left on device")

    def _shift(self, what: str, half: Change, whole: Change) -> None:
        """A change of several transactions; the power can fail inside it, and then a part of it is durable."""
        fails = self.disk.power_fails_at
        if not self.disk.dead and len(self.disk.log) == fails and self.disk.half is not None:
            self.disk.dead = True
            self.inode.sync()
            half(self.inode.durable)
            raise PowerLoss
        self._change(what, whole)

    def size(self) -> int:
        return self.inode.live.size

    def identify(self) -> FileIdentity:
        return identity_of(self.inode)

    def set_modified(self, time_ns: int) -> None:
        def change(content: Content) -> None:
            content.modified_ns = time_ns

        self._change("set time", change)

    def has_other_writers(self) -> bool:
        return False

    def read_at(self, offset: int, length: int) -> bytes:
        return self.inode.live.read(offset, length)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        data = self.read_at(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        data = bytes(data)
        self._change(f"write {offset}+{len(data)}", lambda content: content.write(offset, data))

    def copy_from(self, source: "MemoryFile", source_offset: int, offset: int, length: int) -> None:
        data = source.read_at(source_offset, length)
        if len(data) != length:
            raise ShardError("a source was cut short while it was read", offset=source_offset + len(data))
        self._change(f"copy {offset}+{length}", lambda content: content.write(offset, data))

    def truncate(self, size: int) -> None:
        self._change(f"truncate {size}", lambda content: content.truncate(size))

    def sync(self) -> None:
        self.disk.step("sync")
        self.inode.sync()

    def begin_sync(self, offset: int, length: int) -> None:
        """No promise."""

    def punch(self, offset: int, length: int) -> None:
        self._change(f"punch {offset}+{length}", lambda content: content.punch(offset, length))

    def insert_range(self, offset: int, length: int) -> None:
        def half(content: Content) -> None:
            last = content.last_block + 1
            content.shift(offset, length, round(offset // BLOCK + (self.disk.half or 0) * (last - offset // BLOCK)))

        self._shift(f"insert {offset}+{length}", half, lambda content: content.shift(offset, length, 0))

    def collapse_range(self, offset: int, length: int) -> None:
        def half(content: Content) -> None:
            span = content.last_block + 1 - (offset + length) // BLOCK
            content.unshift(offset, length, round(offset // BLOCK + (self.disk.half or 0) * max(span - 1, 0)))

        self._shift(f"collapse {offset}+{length}", half, lambda content: content.unshift(offset, length, 1 << 60))

    def holes(self) -> list[tuple[int, int]]:
        return self.inode.live.holes()

    def lock(self) -> bool:
        return self.disk.locked.setdefault(self.inode.number, self) is self

    def close(self) -> None:
        if self.disk.locked.get(self.inode.number) is self:
            del self.disk.locked[self.inode.number]
