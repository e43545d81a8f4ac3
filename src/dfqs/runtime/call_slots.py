"""The pointers through which a loaded library calls functions, and exchanging them for a while.

A library calls what others may provide through a table of pointers that the loader has filled (its global offset
table). Where something cannot be set in the library, a pointer there can lead to a function of ours.

Format of the tables: System V ABI, "Dynamic Linking"; ELF-64 as on x86-64 and AArch64.
"""

import contextlib
import ctypes
import mmap
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

_PT_DYNAMIC = 2
_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_JMPREL = 2, 5, 6, 7, 8, 23
_PROGRAM_HEADER, _DYNAMIC_ENTRY, _RELOCATION = struct.Struct("<IIQQQQQQ"), struct.Struct("<qQ"), struct.Struct("<QQq")
_SYMBOL_BYTES = 24

_libc = ctypes.CDLL(None, use_errno=True)
_kept: list[Any] = []
"""Functions that once stood in a table: a thread may still be inside when the pointer is back."""


def find_slots(library: Path, names: Collection[bytes]) -> list[int]:
    """Addresses of the pointers to functions of these names in a loaded library's tables; none where it is not loaded
    or has no such tables.

    Args:
        library: the shared object's file.
        names: as the symbol table has them.
    """
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
            if ctypes.string_at(strings + name) in names:
                slots.append(base + offset)
    return slots


def slot_target(slot: int) -> int:
    """The address that a slot leads to."""
    return ctypes.c_uint64.from_address(slot).value


@contextlib.contextmanager
def exchanged(slots: Sequence[int], function: Any) -> Iterator[None]:
    """Inside the block, what the library calls through `slots` is `function`, a callback made by `ctypes`."""
    _kept.append(function)
    address = ctypes.cast(function, ctypes.c_void_p).value or 0
    with contextlib.ExitStack() as stack:
        for slot in slots:
            stack.callback(_put(slot, address))
        yield


def _put(slot: int, pointer: int) -> Callable[[], None]:
    """Put another pointer into a slot, whose page may be read-only; returns what puts the old one back."""
    page = slot & -mmap.PAGESIZE
    _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE)
    place = ctypes.c_uint64.from_address(slot)
    before, place.value = place.value, pointer

    def put_back() -> None:
        place.value = before

    return put_back


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
