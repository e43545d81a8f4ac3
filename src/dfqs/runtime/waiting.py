"""How OpenMP threads wait for each other, chosen by what else the machine does.

The environment variable is read when the OpenMP library loads, so this must be settled before llama.cpp is loaded.
Spinning is several times faster on idle CPUs, and several times slower beside another busy process.
"""

import os
import time
from dataclasses import dataclass, field

POLICY_VARIABLE = "OMP_WAIT_POLICY"
_MINIMUM_SAMPLE_S = 0.05
_BUSY_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class LoadSample:
    """A reading of the machine's idle time and this process's own CPU time."""

    at_s: float = field(default_factory=time.monotonic)
    idle_s: float = field(default_factory=lambda: _idle_seconds())
    own_s: float = field(default_factory=time.process_time)


def settle_wait_policy(threads: int, since: LoadSample) -> str:
    """Set OMP_WAIT_POLICY before the library loads, unless it is set; returns `active`, `passive` or `default`.

    `passive` when the CPUs left by other processes since `since` are fewer than the threads want; otherwise `default`
    (libgomp spins for milliseconds, then sleeps, so that an idle session costs nothing).
    """
    chosen = os.environ.get(POLICY_VARIABLE)
    if chosen:
        return chosen.lower()
    if free_cpus(since) < threads - _BUSY_SHARE * min(threads, 2):
        os.environ[POLICY_VARIABLE] = "passive"
        return "passive"
    return "default"


def free_cpus(since: LoadSample) -> float:
    """CPUs that other processes left idle, on average, between `since` and now (at least 50 ms)."""
    missing = _MINIMUM_SAMPLE_S - (time.monotonic() - since.at_s)
    if missing > 0:
        time.sleep(missing)
    now = LoadSample()
    elapsed = now.at_s - since.at_s
    return (now.idle_s - since.idle_s + now.own_s - since.own_s) / elapsed


def _idle_seconds() -> float:
    """Idle and I/O-wait time of all CPUs since boot, from /proc/stat."""
    with open("/proc/stat", "rb") as file:
        fields = file.readline().split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
