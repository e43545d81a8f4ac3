"""A control group of its own for a process under test, where this machine lets us make one (version 1 or 2)."""

import contextlib
import errno
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_LEAVING_S = 10.0


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path | None]:
    """A group that may hold `limit_bytes`, its file cache included; None where none can be made."""
    version_1 = (_ROOT / "memory").is_dir()
    path = (_ROOT / "memory" if version_1 else _ROOT) / f"dfqs-test-{secrets.token_hex(4)}"
    try:
        path.mkdir()
    except OSError:
        yield None
        return
    try:
        name = "memory.limit_in_bytes" if version_1 else "memory.max"
        try:
            (path / name).write_text(str(limit_bytes))
        except OSError:
            yield None
            return
        yield path
    finally:
        _remove(path)


def _remove(group: Path) -> None:
    """A process that has ended is in its group until the kernel is done with it."""
    ends = time.monotonic() + _LEAVING_S
    while True:
        try:
            group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > ends:
                raise
            time.sleep(0.05)
        else:
            return


def run_in_group(group: Path, command: Sequence[str], seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command, all of its processes within the group."""

    def enter() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        preexec_fn=enter,
        stdin=subprocess.DEVNULL,
    )
