"""The energy that processors say they took: RAPL's counters, where the kernel shows them (Linux, mostly to root alone).

Source: Documentation/power/powercap/powercap.rst of the Linux kernel. A counter is in microjoules, of a whole processor
package with everything that runs on it, and begins anew after `max_energy_range_uj`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")
"""Of AMD's processors too. `intel-rapl-mmio` counts the same package a second time."""
_PACKAGE = re.compile(r"package-\d+")


@dataclass(frozen=True, slots=True)
class EnergySample:
    """Counters at one moment: microjoules, and the value at which each begins anew, by zone."""

    zones: Mapping[str, tuple[int, int]]


def read_energy(directory: Path = POWERCAP) -> EnergySample | None:
    """Packages, and memory that is counted apart from them; None where nothing can be read."""
    zones: dict[str, tuple[int, int]] = {}
    try:
        names = sorted(zone.name for zone in directory.iterdir() if _ZONE.fullmatch(zone.name))
        for name in names:
            what = (directory / name / "name").read_text().strip()
            # Cores and graphics are parts of their package; `psys` is the machine with its packages.
            if _PACKAGE.fullmatch(what) or what == "dram":
                zones[name] = _counter(directory / name)
    except (OSError, ValueError):
        return None
    return EnergySample(zones) if zones else None


def joules_between(before: EnergySample | None, after: EnergySample | None) -> float | None:
    """What was taken between two moments, of all zones together; None where that is not known."""
    if before is None or after is None or before.zones.keys() != after.zones.keys():
        return None
    taken = 0
    for name, (began, span) in before.zones.items():
        ended = after.zones[name][0]
        taken += ended - began if ended >= began else ended - began + span
    return taken / 1e6 if taken > 0 else None


def _counter(zone: Path) -> tuple[int, int]:
    return int((zone / "energy_uj").read_text()), int((zone / "max_energy_range_uj").read_text())
