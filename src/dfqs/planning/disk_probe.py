"""How fast a file's disk gives single experts: past the page cache by several threads, and by faults through a map.

Reads pieces of the model's own file at random places. Pieces are put out of the page cache first, with what is read
ahead around them and nothing else, so that the disk is asked and not memory.
"""

import contextlib
import mmap
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfqs.errors import UsageError
from dfqs.streaming.reader import THREADS, open_direct

LONGEST_S = 3.0
"""A disk behind shared processors is fast or slow for seconds, as they are."""
_WINDOWS = 10
_SEED = 5
_SYS = Path("/sys/dev/block")


@dataclass(frozen=True, slots=True)
class DiskRate:
    """Bytes a second of pieces that somebody wanted."""

    bytes_per_s: float
    low: float
    """Slowest of several windows."""
    high: float
    read_per_wanted: float
    """Bytes that the disk gave for each byte that was wanted: what read-ahead costs."""


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """A file's disk."""

    piece_bytes: int
    direct: DiskRate
    """By as many threads as streaming has, past the page cache (through it where the file system refuses that)."""
    paged: DiskRate
    """By threads that touch a map, as llama.cpp does."""
    read_ahead_bytes: int | None
    """`read_ahead_kb` of the device; None where it cannot be told (a network file system)."""


def measure_disk(path: Path, piece_bytes: int, threads: int, seconds: float = LONGEST_S) -> DiskSpeed:
    """Read random pieces of a file for a while.

    Args:
        piece_bytes: of one expert's matrix.
        threads: that touch the map.

    Raises:
        UsageError: the file is smaller than two pieces.
    """
    size, ahead = path.stat().st_size, read_ahead_bytes(path)
    piece = max(piece_bytes // mmap.PAGESIZE, 1) * mmap.PAGESIZE
    if size < 2 * piece:
        raise UsageError(f"{path} is too small to measure its disk with pieces of {piece:,} bytes")
    with contextlib.ExitStack() as stack:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, handle)
        direct = _measure(handle, size, piece, 0, THREADS, seconds, _direct_reader(path, handle, piece, stack))
        paged = _measure(handle, size, piece, ahead or 0, threads, seconds, _map_reader(handle, piece))
    return DiskSpeed(piece, direct, paged, ahead)


def read_ahead_bytes(path: Path) -> int | None:
    """How far the kernel reads ahead on a file's device."""
    device = path.stat().st_dev
    node = _SYS / f"{os.major(device)}:{os.minor(device)}"
    # A partition has the queue of its disk.
    for directory in (node, node / ".."):
        try:
            return int((directory / "queue/read_ahead_kb").read_text()) * 1024
        except (OSError, ValueError):
            continue
    return None


def _direct_reader(path: Path, handle: int, piece: int, stack: contextlib.ExitStack) -> Callable[[int], None]:
    own = threading.local()
    direct = open_direct(path)
    if direct is not None:
        stack.callback(os.close, direct)
        try:
            os.preadv(direct, [mmap.mmap(-1, mmap.PAGESIZE)], 0)
        except OSError:
            direct = None
    source = handle if direct is None else direct

    def read(offset: int) -> None:
        if not hasattr(own, "buffer"):
            own.buffer = mmap.mmap(-1, piece)
        os.preadv(source, [own.buffer], offset)

    return read


def _map_reader(handle: int, piece: int) -> Callable[[int], None]:
    # Unmapped with the last reference to it.
    view = np.frombuffer(mmap.mmap(handle, 0, mmap.MAP_SHARED, mmap.PROT_READ), np.uint8)

    def touch(offset: int) -> None:
        view[offset : offset + piece].view(np.int64).max()

    return touch


def _measure(
    handle: int, size: int, piece: int, around: int, threads: int, seconds: float, read: Callable[[int], None]
) -> DiskRate:
    """Random pieces, none twice, in windows of time; `around` bytes before and behind each are forgotten with it."""
    chosen = list(range(0, size - piece, piece))
    random.Random(_SEED).shuffle(chosen)
    places = iter(chosen)
    lock = threading.Lock()
    rates: list[float] = []
    wanted = 0
    before = _read_bytes()

    def work(until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            with lock:
                offset = next(places, None)
            if offset is None:
                break
            os.posix_fadvise(handle, max(0, offset - around), piece + 2 * around, os.POSIX_FADV_DONTNEED)
            read(offset)
            done += piece
        return done

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_WINDOWS):
            started = time.perf_counter()
            done = sum(pool.map(work, [started + seconds / _WINDOWS] * threads))
            if done:
                rates.append(done / (time.perf_counter() - started))
                wanted += done
    if not rates:
        raise UsageError("the disk gave nothing in the time that there was")
    middle = sorted(rates)[len(rates) // 2]
    return DiskRate(middle, min(rates), max(rates), max(1.0, (_read_bytes() - before) / wanted))


def _read_bytes() -> int:
    """That this process had the disk read."""
    try:
        text = Path("/proc/self/io").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("read_bytes:")), 0)
