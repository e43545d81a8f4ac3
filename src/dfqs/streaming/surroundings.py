"""What a file lies on and what the system allows, as far as streaming depends on it.

Nothing is guessed from names where it can be tried: whether reads go past the page cache is asked by reading a page so
that the page cache does not have, and looking whether it has it then (`mincore`).
Linux only in what it finds; elsewhere everything is "not known" and nothing fails.
"""

import ctypes
import mmap
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfqs.streaming.layout import PAGE_BYTES, StreamLayout
from dfqs.streaming.mechanism import IN_MEMORY, Cuts, DirectReads, StreamFacts

_MOUNTS = Path("/proc/self/mountinfo")
_MAP_LIMIT = Path("/proc/sys/vm/max_map_count")
_PROBES = 8
_CACHED_AT_ONCE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Mount:
    """What a file lies on."""

    file_system: str
    options: frozenset[str]
    device: str
    """`major:minor`."""

    @property
    def is_dax(self) -> bool:
        return bool(self.options & {"dax", "dax=always"})


def read_facts(paths: Sequence[Path], layout: StreamLayout, used: int) -> StreamFacts:
    """Look everything up that `choose_mechanism` asks for.

    Args:
        paths: a model's files.
        used: experts that a token uses in a layer.
    """
    mounts = [mount for path in paths if (mount := find_mount(path)) is not None]
    # A set of which a shard is in memory is streamed for the others' sake.
    mount = min(mounts, key=lambda mount: mount.file_system in IN_MEMORY, default=None)
    return StreamFacts(
        system=sys.platform,
        file_system=mount.file_system if mount is not None else None,
        is_dax=mount.is_dax if mount is not None else False,
        direct=worst_of(probe_direct_reads(path) for path in paths),
        map_limit=read_map_limit(),
        cuts=Cuts.of(layout),
        expert_slices=max((len(pages.ranges) for pages in layout.experts.values()), default=1),
        least_experts=used,
    )


def find_mount(path: Path) -> Mount | None:
    """The mount that a file is seen through: the longest mount point above it, and of equal ones the last."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return None
    real = path.resolve()
    found: tuple[int, Mount] | None = None
    for line in lines:
        fields, _, more = line.partition(b" - ")
        _, _, device, _, point, options, *_ = fields.split(b" ")
        kind, _, super_options, *_ = (*more.split(b" "), b"", b"")
        place = Path(os.fsdecode(_unescape(point)))
        depth = len(place.parts)
        if real.is_relative_to(place) and (found is None or depth >= found[0]):
            words = frozenset(os.fsdecode(options + b"," + super_options).split(","))
            found = depth, Mount(os.fsdecode(kind), words, os.fsdecode(device))
    return found[1] if found is not None else None


def probe_direct_reads(path: Path) -> DirectReads:
    """Try it: pages of the file that the page cache does not have are read past it, and then looked for there."""
    flag = getattr(os, "O_DIRECT", None)
    if flag is None:
        return DirectReads.REFUSED
    with ExitStack() as stack:
        try:
            plain = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, plain)
            direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flag)
            stack.callback(os.close, direct)
            return _probe(plain, direct, stack.enter_context(mmap.mmap(-1, PAGE_BYTES)))
        except OSError:
            return DirectReads.REFUSED


def worst_of(results: Iterable[DirectReads]) -> DirectReads:
    """Of several files: what the worst of them does."""
    order = (DirectReads.REFUSED, DirectReads.IGNORED, DirectReads.WORK)
    return min(results, key=order.index, default=DirectReads.REFUSED)


def read_map_limit() -> int | None:
    """`vm.max_map_count`; None where it cannot be read."""
    try:
        return int(_MAP_LIMIT.read_text())
    except (OSError, ValueError):
        return None


def _probe(plain: int, direct: int, memory: mmap.mmap) -> DirectReads:
    """
    Raises:
        OSError: the file system does not take a page at a page's place.
    """
    size = os.fstat(plain).st_size
    pages = size // PAGE_BYTES
    ignored = False
    for probe in range(_PROBES if pages else 0):
        # Odd pages: a file system that wants more than a page's alignment shows here.
        offset = (pages * (probe + 1) // (_PROBES + 1) | 1) % pages * PAGE_BYTES
        # The page cache may hold it as a part of something larger, which goes as a whole or not.
        start = offset // _CACHED_AT_ONCE_BYTES * _CACHED_AT_ONCE_BYTES
        os.posix_fadvise(plain, start, 2 * _CACHED_AT_ONCE_BYTES, os.POSIX_FADV_DONTNEED)
        was_cached = is_cached(plain, offset)
        if os.preadv(direct, [memory], offset) != PAGE_BYTES:
            return DirectReads.REFUSED
        if not was_cached:
            if not is_cached(plain, offset):
                return DirectReads.WORK
            # Or somebody else read it in this instant; hardly so at every place.
            ignored = True
    return DirectReads.IGNORED if ignored else DirectReads.WORK


def is_cached(handle: int, offset: int) -> bool:
    """Whether the page cache has the page of a file at `offset`; nothing is read. True where the kernel does not say.

    Raises:
        OSError: the file cannot be mapped.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(handle, PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset) as page:
        view = np.frombuffer(page, np.uint8)
        answer = ctypes.c_ubyte()
        result = libc.mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(PAGE_BYTES), ctypes.byref(answer))
        del view
    return bool(result or answer.value & 1)


def _unescape(point: bytes) -> bytes:
    """Mount points have spaces, tabs, line ends and backslashes as three octal digits."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), point)
