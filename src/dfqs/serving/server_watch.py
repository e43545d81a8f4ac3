"""Looking at the graphs that the wheel's server computes, for which it has no setting.

llama.cpp's own parameters have one (`cb_eval`). The wheel's `CommonParams` object holds them whole and offers the
fields on both sides of it: those are set to values that occur nowhere else and looked for in the object's memory. Only
where they stand around exactly two empty pointers is anything written there.

The wheel's constructor keeps Python's lock while another thread loads the model, and that thread must be able to call
Python. It waits in a function of the C++ library that it calls through a pointer; a function of ours in its place waits
without the lock.
"""

import contextlib
import ctypes
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dfqs.errors import RuntimeFailure
from dfqs.runtime.call_slots import exchanged, find_slots, slot_target
from dfqs.runtime.choice import PACKAGE, PINNED_VERSION, installed_version

_BEFORE = 0x5EA1C0DE
"""For `cpuparams_batch.poll`, the last field before the callback."""
_AFTER = {
    "numa": 0x5EA1C0D1,
    "rope_scaling_type": 0x5EA1C0D2,
    "pooling_type": 0x5EA1C0D3,
    "attention_type": 0x5EA1C0D4,
    "flash_attn_type": 0x5EA1C0D5,
}
"""The fields that follow it, in their order."""
_POINTER_BYTES = 8
_FIELD_BYTES = 2 * _POINTER_BYTES
"""The callback and what it is given."""

_WAIT_NAME = (
    b"_ZNSt28__atomic_futex_unsigned_base19_M_futex_wait_untilEPjjb"
    b"NSt6chrono8durationIlSt5ratioILl1ELl1EEEENS2_IlS3_ILl1ELl1000000000EEEE"
)
"""Where a C++ `future` waits for its value."""
_WAIT = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_bool, ctypes.c_long, ctypes.c_long
)


def watch_graphs(parameters: Any, callback: int) -> None:
    """Have the server that is made of `parameters` call an evaluation callback (see `dfqs.runtime.observe`).

    Args:
        parameters: the wheel's `CommonParams`, whose fields stay as they are.
        callback: address of a function of `abi.EVAL_CALLBACK`'s type, which must live as long as the server.

    Raises:
        RuntimeFailure: this is not the wheel that was looked at; nothing was written.
    """
    if installed_version() != PINNED_VERSION:
        raise _unknown(f"it is {PACKAGE} {installed_version()}, not {PINNED_VERSION}")
    offset = _find_field(parameters)
    place = id(parameters) + offset
    if place % _POINTER_BYTES or ctypes.string_at(place, _FIELD_BYTES) != bytes(_FIELD_BYTES):
        raise _unknown("its place is not empty")
    ctypes.c_uint64.from_address(place).value = callback


def _find_field(parameters: Any) -> int:
    """Bytes from the start of the object to the callback."""
    batch = parameters.cpuparams_batch
    poll, kept = batch.poll, {name: getattr(parameters, name) for name in _AFTER}
    try:
        batch.poll = _BEFORE
        for name, value in _AFTER.items():
            setattr(parameters, name, value)
        memory = ctypes.string_at(id(parameters), type(parameters).__basicsize__)
    finally:
        batch.poll = poll
        for name, value in kept.items():
            setattr(parameters, name, value)
    before, after = struct.pack("=I", _BEFORE), struct.pack("=5I", *_AFTER.values())
    if (memory.count(before), memory.count(after)) != (1, 1):
        raise _unknown("its neighbours are not where they were")
    start = memory.index(before) + len(before)
    # The pointers begin at a multiple of their size.
    start += -(id(parameters) + start) % _POINTER_BYTES
    if memory.index(after) - start != _FIELD_BYTES:
        raise _unknown("its neighbours are not beside it")
    return start


@contextlib.contextmanager
def lock_left_while_waiting(module: Path) -> Iterator[None]:
    """Inside the block, threads of Python go on while the wheel's `Server` is made.

    Args:
        module: the wheel's shared object, loaded.

    Raises:
        RuntimeFailure: this is not the wheel that was looked at.
    """
    slots = find_slots(module, [_WAIT_NAME])
    if len(slots) != 1:
        raise _unknown("where it waits is not known")
    real = _WAIT(slot_target(slots[0]))

    def wait(*arguments: Any) -> bool:
        # The call leaves the lock while it lasts.
        return bool(real(*arguments))

    with exchanged(slots, _WAIT(wait)):
        yield


def _unknown(why: str) -> RuntimeFailure:
    return RuntimeFailure(
        f"this {PACKAGE} cannot be watched while it serves ({why}), so experts cannot be streamed; "
        f"reinstall it: pip install {PACKAGE}=={PINNED_VERSION}"
    )
