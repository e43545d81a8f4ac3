"""Why a worker died, as far as its caller can find out: from the files that it had mapped, and the kernel's counts.

A signal alone says little. SIGBUS is what a process gets that touches mapped bytes of a file which became shorter, or
which the disk could not give; SIGKILL comes from the kernel when memory runs out, or from somebody.
"""

import signal
from collections.abc import Sequence
from pathlib import Path

from dfqs.control_groups import count_oom_kills
from dfqs.storage.identity import FileStamp, describe_change


class Witness:
    """What was known of a worker's surroundings while it was alive."""

    def __init__(self) -> None:
        self._kills = count_oom_kills()
        self._stamps: dict[Path, FileStamp] = {}

    def watch(self, paths: Sequence[Path]) -> None:
        """Remember files that the worker is going to map."""
        for path in paths:
            try:
                self._stamps[path] = FileStamp.of(path.stat())
            except OSError:
                continue

    def explain(self, number: int) -> str | None:
        """The cause of a death by signal `number`, as the end of a sentence; None where nothing speaks for one."""
        for path, stamp in self._stamps.items():
            if (what := describe_change(path, stamp)) is not None:
                return f"{path} is not what it was when it was loaded: {what}; load it again"
        if number == signal.SIGBUS and self._stamps:
            names = ", ".join(str(path) for path in list(self._stamps)[:3])
            return f"the disk or the file system could not give bytes of {names}, which it had mapped; see `dmesg`"
        if number == signal.SIGKILL:
            return self._who_killed()
        return None

    def _who_killed(self) -> str | None:
        before, now = self._kills, count_oom_kills()
        if before.group is not None and now.group is not None and now.group > before.group:
            return (
                "the kernel ended it because its control group's processes together reached their memory limit; allow "
                "the group more, end what else runs in it, or give a smaller --ram"
            )
        if before.machine is not None and now.machine is not None and now.machine > before.machine:
            return "the kernel ended it because memory ran out; end what else runs here, or give a smaller --ram"
        if before.machine is not None and now.machine is not None:
            return "memory had not run out, so somebody ended it (kill -9)"
        return None
