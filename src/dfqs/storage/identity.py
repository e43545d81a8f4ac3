"""What tells that a file is still the one it was, with the bytes it had.

Nobody can set a file's time of change (ctime) but the kernel, which does so at every write, rename, link, `chmod` and
`utime`. So a file whose stamp is the same has the same bytes, but for two gaps: file systems keep that time in ticks,
within which a second change does not show, and a writer with the file mapped shows at its first write to a page only.
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

_TICK_NS = 20_000_000
"""No kernel has a longer tick (100 Hz), with room."""
_WHOLE_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Which file it is, and when it last changed."""

    device: int
    inode: int
    bytes: int
    modified_ns: int
    """When its bytes last changed; anybody who owns it can set this."""
    changed_ns: int
    """When anything of it last changed."""

    @classmethod
    def of(cls, state: os.stat_result) -> "FileStamp":
        return cls(state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)

    def is_same_later(self, found: "FileStamp") -> bool:
        """Whether this may be the same file after a restart, when disks can have been numbered anew.

        Some file systems make inode numbers up; there the rest decides, where it is finer than a second.
        """
        here = replace(found, device=self.device)
        if self.changed_ns % _WHOLE_SECOND_NS:
            here = replace(here, inode=self.inode)
        return here == self


def describe_change(path: Path, before: FileStamp) -> str | None:
    """What became of the file that stood at `path`, in a few words; None where it is still what it was."""
    try:
        now = FileStamp.of(path.stat())
    except OSError:
        return "it was removed or renamed, or cannot be looked at any more"
    if (now.device, now.inode) != (before.device, before.inode):
        return "another file has taken its place"
    if now.bytes < before.bytes:
        return f"it became shorter ({now.bytes:,} bytes, and it had {before.bytes:,})"
    if (now.bytes, now.modified_ns) != (before.bytes, before.modified_ns):
        return "it was written to"
    return "its attributes changed" if now != before else None


def settled_stamp(handle: int) -> FileStamp:
    """The stamp of an open file, taken so late that every change after it shows in the next one."""
    while True:
        stamp = FileStamp.of(os.fstat(handle))
        age = time.time_ns() - stamp.changed_ns
        # Whole seconds in both times: a file system that keeps no finer ones (or, rarely, chance).
        coarse = stamp.changed_ns % _WHOLE_SECOND_NS == stamp.modified_ns % _WHOLE_SECOND_NS == 0
        tick = 2 * _WHOLE_SECOND_NS if coarse else _TICK_NS
        if not 0 <= age < tick:
            # Long ago, or by a clock that is not ours.
            return stamp
        time.sleep((tick - age) / 1e9)
