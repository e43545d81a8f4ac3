"""Lets llama.cpp map a file without reading it.

llama.cpp maps model files with MAP_POPULATE, which reads the whole file before the first token: a minute for 62 GB, and
everything else that the kernel had cached is gone. There is no setting against it. The library calls the C library's
`mmap` through a pointer (see `dfqs.runtime.call_slots`); while a model loads, that pointer leads to a function here,
which leaves the flag away. Where the table is not as expected, nothing is exchanged and loading is merely slower.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

from dfqs.runtime.call_slots import exchanged, find_slots, slot_target

_POPULATE = 0x8000
_NAMES = (b"mmap", b"mmap64")
_MMAP = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
)
_libc = ctypes.CDLL(None, use_errno=True)
_real_mmap = _MMAP(("mmap", _libc))


@contextlib.contextmanager
def lazy_mapping(library: Path) -> Iterator[bool]:
    """Inside the block, `mmap` called by the loaded `library` reads nothing ahead; gives whether that is so."""
    real = ctypes.cast(_real_mmap, ctypes.c_void_p).value
    # A pointer that does not lead to the C library's function (not bound yet, or bound to another) is left alone.
    slots = [slot for slot in find_slots(library, _NAMES) if slot_target(slot) == real]
    with exchanged(slots, _MMAP(_map_lazily)):
        yield bool(slots)


def _map_lazily(address: int | None, length: int, protection: int, flags: int, handle: int, offset: int) -> int | None:
    result: int | None = _real_mmap(address, length, protection, flags & ~_POPULATE, handle, offset)
    return result
