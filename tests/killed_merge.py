"""A merge that kills its own process before a chosen I/O operation. Run by `kill_rounds.py`; imports little.

    python tests/killed_merge.py FIRST_SHARD OUT MODE OPERATION|never

With `never` it prints the journal's state before each operation.
"""

import json
import os
import signal
import sys
from pathlib import Path

from dfqs.inplace import is_unfinished, merge_inplace, plan_inplace, resume_merge
from dfqs.inplace import merge as inplace_module
from dfqs.inplace.journal import Journal, journal_path
from dfqs.shards import plan_merge
from dfqs.storage.disk import LocalDisk, LocalFile

WINDOW = 96 << 10


class CountingFile(LocalFile):
    def __init__(self, handle: int, disk: "CountingDisk") -> None:
        super().__init__(handle)
        self.disk = disk

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self.disk.count()
        super().write_at(offset, data)

    def copy_from(self, source: LocalFile, source_offset: int, offset: int, length: int) -> None:  # type: ignore[override]
        self.disk.count()
        super().copy_from(source, source_offset, offset, length)

    def truncate(self, size: int) -> None:
        self.disk.count()
        super().truncate(size)

    def sync(self) -> None:
        self.disk.count()
        super().sync()

    def punch(self, offset: int, length: int) -> None:
        self.disk.count()
        super().punch(offset, length)

    def set_modified(self, time_ns: int) -> None:
        self.disk.count()
        super().set_modified(time_ns)

    def insert_range(self, offset: int, length: int) -> None:
        self.disk.count()
        super().insert_range(offset, length)

    def collapse_range(self, offset: int, length: int) -> None:
        self.disk.count()
        super().collapse_range(offset, length)


class CountingDisk(LocalDisk):
    """Kills its own process before operation `kill_at`; notes the journal's state before every operation."""

    def __init__(self, kill_at: int | None, out: Path) -> None:
        self.kill_at = kill_at
        self.out = out
        self.states: list[str | None] = []

    def count(self) -> None:
        if self.kill_at is None:
            self.states.append(read_state(self.out))
        elif len(self.states) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            self.states.append(None)

    def open(self, path: Path) -> CountingFile:
        return CountingFile(os.open(path, os.O_RDWR | os.O_CLOEXEC), self)

    def create(self, path: Path) -> CountingFile:
        self.count()
        return CountingFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), self)

    def rename(self, source: Path, target: Path) -> None:
        self.count()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self.count()
        super().unlink(path)


class _Unlocked(LocalDisk):
    def open(self, path: Path) -> LocalFile:
        return _UnlockedFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


class _UnlockedFile(LocalFile):
    def lock(self) -> bool:
        return True


def read_state(out: Path) -> str | None:
    """The journal's state, looked at from outside; None when there is none, or it does not count yet."""
    if not journal_path(out).exists() or journal_path(out).read_bytes()[:1] in (b"", b"\0"):
        return None
    journal = Journal.open(_Unlocked(), out)
    if journal is None:
        return None
    journal.close()
    return journal.position.state.name.lower()


def run_merge(first: Path, out: Path, mode: str, disk: LocalDisk) -> None:
    """What the command does: resume what is unfinished, or begin."""
    plain_mode = "in-place" if mode.startswith("in-place") else "consume"
    if "deletion" in mode:
        setattr(inplace_module, "probe_punch", lambda directory: False)  # noqa: B010 - it is that module's import
    if is_unfinished(out) and resume_merge(first, out, plain_mode, window_bytes=WINDOW, disk=disk) is not None:  # type: ignore[arg-type]
        return
    plan = plan_inplace(plan_merge(first), out, plain_mode, window_bytes=WINDOW, disk=disk)  # type: ignore[arg-type]
    merge_inplace(plan, disk=disk)


if __name__ == "__main__":
    first, out, mode, kill_at = sys.argv[1:]
    disk = CountingDisk(int(kill_at) if kill_at != "never" else None, Path(out))
    run_merge(Path(first), Path(out), mode, disk)
    print(json.dumps(disk.states))
