"""Exchanging pages under a memory map: anonymous memory laid over parts of a mapped file, and taken away again.

Whoever holds a pointer into the mapping notices nothing: where no anonymous page lies, the file's own is read.
Linux only; everything here acts on this process's own memory, which must be a worker's.
"""

import ctypes
import functools
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import RuntimeFailure
from dfqs.streaming.layout import PageRange

_MAPS = Path("/proc/self/maps")
_READ, _WRITE = mmap.PROT_READ, mmap.PROT_WRITE
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS, _NORESERVE, _POPULATE = 0x01, 0x02, 0x10, 0x20, 0x4000, 0x8000
_MAYMOVE, _MREMAP_FIXED, _DONTUNMAP = 1, 2, 4
_MAP_FAILED = ctypes.c_void_p(-1).value
_RANDOM, _WILLNEED, _DONTNEED = 1, 3, 4
_HINT_BYTES = 128 << 10
"""The kernel cuts a hint to what the disk reads ahead or takes at once, whichever is more; so much it always takes."""


class MappedFiles:
    """A model's files as llama.cpp has mapped them.

    Raises:
        RuntimeFailure: a file is not mapped (weights were copied, by repacking or on a file system without mmap).
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        mapped = [_find_maps(path) for path in paths]
        self.bases = tuple(maps[0].start - maps[0].offset for maps in mapped)
        self._handles = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
        for handle, maps in zip(self._handles, mapped, strict=True):
            # The kernel joins neighbours only where both come from one opened file: all of it is ours from here on,
            # so that what is uncovered becomes one piece with what was never covered.
            for part in maps:
                self._map_file(part.start, part.end - part.start, handle, part.offset)

    def address(self, pages: PageRange) -> int:
        return self.bases[pages.file] + pages.offset

    def lay_over(self, pages: PageRange) -> int:
        """Put fresh anonymous memory over `pages`; returns its address. Its contents are zero: fill it before use."""
        flags = _PRIVATE | _FIXED | _ANONYMOUS | _NORESERVE | _POPULATE
        return self._map(self.address(pages), pages.length, _READ | _WRITE, flags, -1, 0)

    def uncover(self, pages: PageRange) -> None:
        """Take the anonymous memory away: the file's own pages are there again, and the memory is free."""
        self._map_file(self.address(pages), pages.length, self._handles[pages.file], pages.offset)

    def move(self, source: PageRange, target: PageRange) -> int:
        """Move the anonymous memory over `source` to `target` of the same length; returns the target's address.

        Saves the kernel the zeroing of new pages. At no moment is there a hole, into which the kernel would put
        whatever another thread maps just then.
        """
        old, new = self.address(source), self.address(target)
        moved = self._moves(old, new, source.length)
        self.uncover(source)
        return new if moved else self.lay_over(target)

    def new_memory(self, length: int) -> int:
        """Anonymous memory that lies over no file; returns its address. It takes memory when it is first written."""
        return self._map(None, length, _READ | _WRITE, _PRIVATE | _ANONYMOUS | _NORESERVE, -1, 0)

    def move_in(self, memory: int, pages: PageRange, left: PageRange | None) -> None:
        """Move what lies at `memory` over `pages`, and the anonymous memory over `left` to where that was."""
        address = self.address(pages)
        if not self._moves(memory, address, pages.length):
            if left is None:
                self.lay_over(pages)
            else:
                self.move(left, pages)
            ctypes.memmove(address, memory, pages.length)
        elif left is not None:
            self._moves(self.address(left), memory, pages.length)
            self.uncover(left)

    def want_soon(self, pages: PageRange) -> None:
        """Let the kernel begin to read file pages; only a hint."""
        for piece in pages.pieces(_HINT_BYTES):
            _libc().madvise(self.address(piece), piece.length, _WILLNEED)

    def forget(self, pages: PageRange) -> None:
        """Drop this process's view of file pages, and the kernel's copy of them where nobody else has them."""
        _libc().madvise(self.address(pages), pages.length, _DONTNEED)
        os.posix_fadvise(self._handles[pages.file], pages.offset, pages.length, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the files; the mapping itself is llama.cpp's."""
        for handle in self._handles:
            os.close(handle)
        self._handles = []

    @classmethod
    def _map_file(cls, address: int, length: int, handle: int, offset: int) -> None:
        cls._map(address, length, _READ, _SHARED | _FIXED, handle, offset)
        # A page that is touched without a hint is read alone, whatever the disk's `read_ahead_kb`: the megabytes around
        # it are other experts.
        _libc().madvise(address, length, _RANDOM)

    @staticmethod
    def _moves(old: int, new: int, length: int) -> bool:
        """Move anonymous memory, zeros staying behind; False before Linux 5.7, where memory cannot be moved so."""
        moved: bool = _libc().mremap(old, length, length, _MAYMOVE | _MREMAP_FIXED | _DONTUNMAP, new) == new
        return moved

    @staticmethod
    def _map(address: int | None, length: int, protection: int, flags: int, handle: int, offset: int) -> int:
        found: int | None = _libc().mmap(address, length, protection, flags, handle, offset)
        if found in (None, _MAP_FAILED) or (address is not None and found != address):
            raise _failure("mapping pages")
        return found


@dataclass(frozen=True, slots=True)
class _Map:
    """A piece of this process's memory map."""

    start: int
    end: int
    offset: int
    """In the file."""


def _find_maps(path: Path) -> list[_Map]:
    """The pieces that a mapped file lies in."""
    status = path.stat()
    real = os.fsencode(path.resolve())
    found = []
    with _MAPS.open("rb") as file:
        for line in file:
            place, _, offset, _, inode, *name = line.rstrip(b"\n").split(None, 5)
            # Some file systems give other device numbers here than `stat` does: the inode, and the name as the kernel
            # writes it, tell enough within one process.
            if int(inode) == status.st_ino and name and _unescaped(name[0]) == real:
                start, _, end = place.partition(b"-")
                found.append(_Map(int(start, 16), int(end, 16), int(offset, 16)))
    if not found:
        raise RuntimeFailure(f"{path} is not mapped into memory, so its experts cannot be streamed")
    return found


def _unescaped(name: bytes) -> bytes:
    return name.replace(b"\\012", b"\n")


@functools.cache
def _libc() -> ctypes.CDLL:
    """The C library, looked up when first needed: not every system has these functions."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    library.mremap.restype = ctypes.c_void_p
    library.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


def _failure(what: str) -> RuntimeFailure:
    return RuntimeFailure(f"{what} of the model failed: {os.strerror(ctypes.get_errno())}")
