"""Lets llama.cpp map a file without reading it.

llama.cpp maps model files with MAP_POPULATE, which reads the whole file before the first token: a minute for 62 GB, and
everything else that the kernel had cached is gone. There is no setting against it. The library calls the C library's
`mmap` through a pointer in its global offset table; while a model loads, that pointer leads to a function here, which
leaves the flag away. Where the table is not as expected, nothing is exchanged and loading is merely slower.

Format of the tables: System V ABI, "Dynamic Linking"; ELF-64 as on x86-64 and AArch64.
"""

import contextlib
import ctypes
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

_POPULATE = 0x8000
_PT_DYNAMIC = 2
_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_JMPREL = 2, 5, 6, 7, 8, 23
_PROGRAM_HEADER, _DYNAMIC_ENTRY, _RELOCATION = struct.Struct("<IIQQQQQQ"), struct.Struct("<qQ"), struct.Struct("<QQq")
_SYMBOL_BYTES = 24
_NAMES = (b"mmap", b"mmap64")
_MMAP = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
)
_libc = ctypes.CDLL(None, use_errno=True)
_real_mmap = _MMAP(("mmap", _libc))


@contextlib.contextmanager
def lazy_mapping(library: Path) -> Iterator[bool]:
    """Inside the block, `mmap` called by the loaded `library` reads nothing ahead; gives whether that is so."""
    slots = _slots_of(library)
    function = _MMAP(_map_lazily)
    kept = [_exchange(slot, ctypes.cast(function, ctypes.c_void_p).value or 0) for slot in slots]
    try:
        yield bool(slots)
    finally:
        for slot, pointer in zip(slots, kept, strict=True):
            _exchange(slot, pointer)


def _map_lazily(address: int | None, length: int, protection: int, flags: int, handle: int, offset: int) -> int | None:
    result: int | None = _real_mmap(address, length, protection, flags & ~_POPULATE, handle, offset)
    return result


def _exchange(slot: int, pointer: int) -> int:
    """Put another pointer into a slot of the table, which may be read-only; returns the one that was there."""
    page = slot & -mmap.PAGESIZE
    _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE)
    place = ctypes.c_uint64.from_address(slot)
    before, place.value = place.value, pointer
    return before


def _slots_of(library: Path) -> list[int]:
    """Addresses of the pointers to `mmap` in the loaded library's global offset table."""
    base = _load_address(library)
    if base is None:
        return []
    dynamic = _dynamic_entries(base)
    symbols, strings = dynamic.get(_DT_SYMTAB), dynamic.get(_DT_STRTAB)
    if symbols is None or strings is None:
        return []
    slots = []
    tables = ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ))
    for start, size in ((dynamic[table], dynamic[length]) for table, length in tables if table in dynamic):
        for offset, info, _ in _RELOCATION.iter_unpack(ctypes.string_at(start, size - size % _RELOCATION.size)):
            symbol = info >> 32
            if not symbol:
                continue
            name = ctypes.c_uint32.from_address(symbols + symbol * _SYMBOL_BYTES).value
            if ctypes.string_at(strings + name) in _NAMES:
                slots.append(base + offset)
    real = ctypes.cast(_real_mmap, ctypes.c_void_p).value
    # A pointer that does not lead to the C library's function (not bound yet, or bound to another) is left alone.
    return [slot for slot in slots if ctypes.c_uint64.from_address(slot).value == real]


def _dynamic_entries(base: int) -> dict[int, int]:
    """The dynamic section: tag -> value; the loader has made addresses of those that are addresses."""
    entries: dict[int, int] = {}
    headers, (size, count) = (
        ctypes.c_uint64.from_address(base + 32).value,
        struct.unpack("<HH", ctypes.string_at(base + 54, 4)),
    )
    for index in range(count):
        kind, _, _, address, *_ = _PROGRAM_HEADER.unpack(
            ctypes.string_at(base + headers + index * size, _PROGRAM_HEADER.size)
        )
        if kind != _PT_DYNAMIC:
            continue
        place = base + address
        while True:
            tag, value = _DYNAMIC_ENTRY.unpack(ctypes.string_at(place, _DYNAMIC_ENTRY.size))
            if not tag:
                return entries
            entries[tag] = value
            place += _DYNAMIC_ENTRY.size
    return entries


def _load_address(library: Path) -> int | None:
    """Where the library's first segment, with its ELF header, lies."""
    inode = library.stat().st_ino
    with Path("/proc/self/maps").open("rb") as file:
        for line in file:
            place, _, offset, _, number, *_ = line.split(None, 5)
            if int(number) == inode and int(offset, 16) == 0:
                address = int(place.partition(b"-")[0], 16)
                # 64-bit, little-endian.
                return address if ctypes.string_at(address, 6) == b"\x7fELF\x02\x01" else None
    return None
