"""Exchanging pages under a memory map: anonymous memory laid over parts of a mapped file, and taken away again.

Whoever holds a pointer into the mapping notices nothing: where no anonymous page lies, the file's own is read.
Linux only; everything here acts on this process's own memory, which must be a worker's.
"""

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from dfqs.errors import RuntimeFailure
from dfqs.streaming.layout import PageRange

_MAPS = Path("/proc/self/maps")
_READ, _WRITE = mmap.PROT_READ, mmap.PROT_WRITE
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS, _NORESERVE, _POPULATE = 0x01, 0x02, 0x10, 0x20, 0x4000, 0x8000
_MAYMOVE, _MREMAP_FIXED = 1, 2
_DONTNEED, _WILLNEED = 4, 3

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class MappedFiles:
    """A model's files as llama.cpp has mapped them.

    Raises:
        RuntimeFailure: a file is not mapped (weights were copied, by repacking or on a file system without mmap).
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.bases = tuple(_base_of(path) for path in paths)
        self._handles = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]

    def address(self, pages: PageRange) -> int:
        return self.bases[pages.file] + pages.offset

    def lay_over(self, pages: PageRange) -> int:
        """Put fresh anonymous memory over `pages`; returns its address. Its contents are zero: fill it before use."""
        flags = _PRIVATE | _FIXED | _ANONYMOUS | _NORESERVE | _POPULATE
        return self._map(self.address(pages), pages.length, _READ | _WRITE, flags, -1, 0)

    def uncover(self, pages: PageRange) -> None:
        """Take the anonymous memory away: the file's own pages are there again, and the memory is free."""
        handle = self._handles[pages.file]
        self._map(self.address(pages), pages.length, _READ, _SHARED | _FIXED, handle, pages.offset)

    def move(self, source: PageRange, target: PageRange) -> int:
        """Move the anonymous memory over `source` to `target` of the same length; returns the target's address.

        Saves the kernel the zeroing of new pages.
        """
        old, new = self.address(source), self.address(target)
        if _libc.mremap(old, source.length, target.length, _MAYMOVE | _MREMAP_FIXED, new) != new:
            raise _failure("moving pages")
        self.uncover(source)
        return new

    def want_soon(self, pages: PageRange) -> None:
        """Let the kernel begin to read file pages; only a hint."""
        _libc.madvise(self.address(pages), pages.length, _WILLNEED)

    def forget(self, pages: PageRange) -> None:
        """Drop this process's view of file pages, and the kernel's copy of them where nobody else has them."""
        _libc.madvise(self.address(pages), pages.length, _DONTNEED)
        os.posix_fadvise(self._handles[pages.file], pages.offset, pages.length, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the files; the mapping itself is llama.cpp's."""
        for handle in self._handles:
            os.close(handle)
        self._handles = []

    @staticmethod
    def _map(address: int, length: int, protection: int, flags: int, handle: int, offset: int) -> int:
        if _libc.mmap(address, length, protection, flags, handle, offset) != address:
            raise _failure("mapping pages")
        return address


def count_maps() -> int:
    """Mappings that this process has; the kernel allows `vm.max_map_count`."""
    with _MAPS.open("rb") as file:
        return sum(1 for _ in file)


def _base_of(path: Path) -> int:
    """Where the first byte of a mapped file would be."""
    status = path.stat()
    real = os.fsencode(path.resolve())
    with _MAPS.open("rb") as file:
        for line in file:
            place, _, offset, _, inode, *name = line.rstrip(b"\n").split(None, 5)
            # Some file systems give other device numbers here than `stat` does: the inode, and the name as the kernel
            # writes it, tell enough within one process.
            if int(inode) == status.st_ino and name and _unescaped(name[0]) == real:
                return int(place.partition(b"-")[0], 16) - int(offset, 16)
    raise RuntimeFailure(f"{path} is not mapped into memory, so its experts cannot be streamed")


def _unescaped(name: bytes) -> bytes:
    return name.replace(b"\\012", b"\n")


def _failure(what: str) -> RuntimeFailure:
    return RuntimeFailure(f"{what} of the model failed: {os.strerror(ctypes.get_errno())}")
