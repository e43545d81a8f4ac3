"""What this machine is: processor, memory, the limits that this process runs under, and how fast its memory is."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from dfqs.control_groups import memory_limit, memory_limits, read_group_file, read_system, used_bytes
from dfqs.records import Amount, AtLeastOne, Record, Whole
from dfqs.storage.linux import usable_cpus

FLAGS_THAT_MATTER = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512f", "avx512bw", "avx512vl"),
    *("avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)
"""Instruction sets that llama.cpp has kernels for."""

BANDWIDTH_ARRAY_BYTES = 256 << 20
_BANDWIDTH_REPEATS = 5
_CPU_DIRECTORY = Path("/sys/devices/system/cpu")


class Machine(Record):
    """A machine as a report describes it. What could not be read is None."""

    cpu_model: str | None
    architecture: str
    logical_cpus: AtLeastOne
    physical_cores: Whole | None
    allowed_cpus: AtLeastOne
    """CPUs that this process may run on."""
    cpu_quota: Amount | None
    """CPUs' worth of time that the control group grants; None: no quota."""
    cpu_flags: tuple[str, ...]
    memory_bytes: Whole
    memory_limit_bytes: Whole | None
    """Of the control group; None: no limit below the machine's memory."""
    swap_bytes: Whole
    system: str
    kernel: str
    python: str

    def speed_conditions(self) -> dict[str, Any]:
        """What of a machine a speed depends on: speeds are put together only where this is equal."""
        fields = {"cpu_model", "cpu_flags", "allowed_cpus", "cpu_quota", "memory_bytes", "memory_limit_bytes"}
        return self.model_dump(mode="json", include=fields)


def read_machine() -> Machine:
    """This machine, as this process sees it."""
    memory = psutil.virtual_memory().total
    limit = memory_limit()
    return Machine(
        cpu_model=_cpu_field("model name"),
        architecture=platform.machine(),
        logical_cpus=os.cpu_count() or 1,
        physical_cores=psutil.cpu_count(logical=False),
        allowed_cpus=usable_cpus(),
        cpu_quota=_cpu_quota(),
        cpu_flags=_cpu_flags(),
        memory_bytes=memory,
        memory_limit_bytes=limit if limit is not None and limit < memory else None,
        swap_bytes=psutil.swap_memory().total,
        system=_system_name(),
        kernel=platform.release(),
        python=platform.python_version(),
    )


def available_memory_bytes() -> int:
    """What could be taken now without swapping, within the limits of the control group and of those above it."""
    room = [limit - used_bytes(group) for group, limit in memory_limits()]
    return max(min([int(psutil.virtual_memory().available), *room]), 0)


def measure_copy_bandwidth(threads: int, array_bytes: int | None = None) -> float:
    """Bytes a second that `threads` threads move copying one large array: read plus written, best of five.

    The array is far larger than caches; the best counts because other processes only ever slow a copy down.

    Args:
        array_bytes: 256 MiB, or less where it and its copy would take more than half of the memory that is free.
    """
    array_bytes = array_bytes or _array_bytes(2)
    part = array_bytes // 8 // threads
    arrays = [(np.ones(part), np.zeros(part)) for _ in range(threads)]
    return _best_rate(lambda pair: np.copyto(pair[1], pair[0]), arrays, 2 * 8 * part)


def measure_read_bandwidth(threads: int, array_bytes: int | None = None) -> float:
    """Bytes a second that `threads` threads read of one large array each, best of five: what decoding does most.

    Args:
        array_bytes: 256 MiB, or less where all arrays would take more than half of the memory that is free.
    """
    array_bytes = array_bytes or _array_bytes(threads)
    arrays = [np.ones(array_bytes // 8, np.int64) for _ in range(threads)]
    return _best_rate(np.max, arrays, 8 * (array_bytes // 8))


def _array_bytes(arrays: int) -> int:
    """Of each of so many arrays that are measured with: half of what is free must do for them all."""
    return max(min(BANDWIDTH_ARRAY_BYTES, available_memory_bytes() // (2 * arrays)), 1 << 20)


def _best_rate(work: Callable[[Any], object], arrays: Sequence[Any], bytes_each: int) -> float:
    """Bytes a second of `work` on all arrays at once, a thread each: the best of five."""
    best = 0.0
    with ThreadPoolExecutor(len(arrays)) as pool:
        for _ in range(_BANDWIDTH_REPEATS):
            started = time.perf_counter()
            list(pool.map(work, arrays))
            best = max(best, bytes_each * len(arrays) / (time.perf_counter() - started))
    return best


def _cpu_field(name: str) -> str | None:
    for line in read_system("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip() or None
    return None


def _cpu_flags() -> tuple[str, ...]:
    present = set((_cpu_field("flags") or _cpu_field("Features") or "").split())
    return tuple(flag for flag in FLAGS_THAT_MATTER if flag in present)


def _cpu_quota() -> float | None:
    """From cgroup v2's cpu.max, or v1's pair of files."""
    quota, period, *_ = (*read_group_file("cpu", "cpu.max").split(), "", "")
    if not quota:
        quota = read_group_file("cpu", "cpu.cfs_quota_us").strip()
        period = read_group_file("cpu", "cpu.cfs_period_us").strip()
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def _system_name() -> str:
    for line in read_system("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()
