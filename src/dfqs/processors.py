"""How many threads compute when nothing else is said; a worker process asks this before anything else is loaded."""

import os
from pathlib import Path

from dfqs.control_groups import read_system

_CPU_DIRECTORY = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """One thread for each physical core among the CPUs that this process may use, as llama.cpp's own programs do."""
    affinity = getattr(os, "sched_getaffinity", None)
    # Only Linux tells which CPUs are whose.
    return len({_core_of(cpu) for cpu in affinity(0)}) if affinity is not None else os.cpu_count() or 1


def _core_of(cpu: int) -> str:
    # Without a topology (some containers), every CPU counts.
    return read_system(_CPU_DIRECTORY / f"cpu{cpu}/topology/core_cpus_list") or str(cpu)
