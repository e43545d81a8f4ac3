"""What may come of an input: a value, or one of the project's own errors, soon, in bounded memory, and nothing else."""

import contextlib
import os
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dfqs.errors import DfqsError

CPU_LIMIT_S = 10.0
MEMORY_BYTES = 500 << 20
"""Beyond what the process has already."""
_CHANGING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "os.chmod",
             "shutil.rmtree", "shutil.move", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")  # fmt: skip


_STARTING = ("subprocess.Popen", "os.posix_spawn")
"""Of Python itself is what the renderer of templates does."""


class Find(AssertionError):
    """An input that something is wrong with."""


class _Watch:
    """Notes what is written outside of one directory. A hook cannot be taken away again, so there is one."""

    def __init__(self) -> None:
        self.scratch: str | None = None
        self.outside: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.scratch is None:
            return
        paths: tuple[Any, ...] = ()
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                paths = arguments[:1]
        elif event in _CHANGING:
            if event in _STARTING and os.fsdecode(arguments[0] or "") == sys.executable:
                return
            paths = arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]
        # The directory that a relative name counts from (`shutil.rmtree` works so).
        handle = arguments[1] if event in ("os.remove", "os.rmdir") and isinstance(arguments[1], int) else -1
        base = Path(f"/proc/self/fd/{handle}").readlink() if handle >= 0 else Path()
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike) and not self._is_inside(str(base / os.fsdecode(path))):
                self.outside.append(f"{event} {os.fsdecode(path)}")

    def _is_inside(self, path: str) -> bool:
        # Not `resolve`: what a link leads to counts where the link is made.
        return os.path.abspath(path).startswith((str(self.scratch), "/dev/", "/proc/self/"))  # noqa: PTH100


_watch = _Watch()


@contextlib.contextmanager
def bounded_memory(extra_bytes: int = MEMORY_BYTES) -> Iterator[None]:
    """A block in which this process gets a MemoryError beyond so many bytes more than it has."""
    with open("/proc/self/status", encoding="utf-8") as file:
        now = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData:"))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (now + extra_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextlib.contextmanager
def judged(scratch: Path) -> Iterator[None]:
    """A block that reads one input; raises `Find` when it does what no input may make it do.

    Does not nest, and limits the process's memory only where the caller does (`bounded_memory`).
    """
    _watch.scratch, _watch.outside = str(scratch.resolve()), []
    # What is imported for the first time meanwhile would be compiled, and written beside its source.
    compiles, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    began = time.process_time()
    try:
        yield
    except DfqsError as error:
        _require_plain(str(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | Find):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind = type(error).__name__
        raise Find(f"{kind} at {Path(place.filename).name}:{place.lineno}: {str(error)[:200]!r}") from error
    finally:
        _watch.scratch = None
        sys.dont_write_bytecode = compiles
    if _watch.outside:
        raise Find(f"written outside: {_watch.outside[:3]}")
    if (took := time.process_time() - began) > CPU_LIMIT_S:
        raise Find(f"took {took:.0f} s of CPU time")


def _require_plain(text: str) -> None:
    bad = [character for character in text if not character.isprintable() and character != "\n"]
    if bad:
        raise Find(f"an error that a terminal would obey: {text[:300]!r}")
