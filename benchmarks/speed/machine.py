"""What a measurement ran on, and beside what."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from dfqs.units import format_bytes


def machine() -> str:
    """Processor, cores, memory, system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    return f"{processor}, {cores} cores, {format_bytes(memory)} RAM, Linux {platform.release()}"


def load() -> float:
    """Processes that ran or waited to, over the last minute."""
    return os.getloadavg()[0]


def commit() -> str | None:
    """What was measured; None outside a clone."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def version_of(package: str) -> str:
    """Of an installed package."""
    return f"{package} {importlib.metadata.version(package)}"
