"""How OpenMP threads wait for each other, chosen by what else the machine does.

A graph has a thousand barriers a token. Threads that spin at them are twice as fast as threads that sleep while the
CPUs are idle, and several times slower beside another busy process (docs/runtime.md has the measurements). The
OpenMP library reads its environment when it is loaded, so this is settled just before llama.cpp is.
"""

import os
import time
from dataclasses import dataclass, field

from dfqs.errors import UsageError

WAIT_POLICIES = ("active", "bounded", "passive", "default")
"""`active` spins for minutes, `bounded` for some tens of milliseconds, `passive` not at all; `default` leaves it to
the OpenMP library and the environment."""

_POLICY_VARIABLE, _SPIN_VARIABLE = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
_BOUNDED_SPINS = 3_000_000
"""Longer than any pause between two tokens, so as fast as `active`; but a session that waits for a person is idle."""
_MINIMUM_SAMPLE_S = 0.05
BUSY_CPUS = 0.3
"""Less than this share of a CPU taken by others counts as an idle machine."""


@dataclass(frozen=True, slots=True)
class LoadSample:
    """A reading of the machine's idle time and of this process's own CPU time."""

    at_s: float = field(default_factory=time.monotonic)
    idle_s: float = field(default_factory=lambda: read_idle_seconds())
    own_s: float = field(default_factory=time.process_time)


def check_wait_policy(policy: str) -> str:
    """
    Raises:
        UsageError: there is no such policy.
    """
    if policy not in WAIT_POLICIES:
        raise UsageError(f"'{policy}' is no way to wait; choose from {', '.join(WAIT_POLICIES)}")
    return policy


def settle_wait_policy(requested: str | None, threads: int, since: LoadSample) -> str:
    """Set the environment for the library about to be loaded; returns the policy that holds.

    Without a request the environment's own setting stands; without that, `passive` when other processes left fewer
    CPUs idle since `since` than `threads` need, else `bounded`.
    """
    if requested is None:
        if _POLICY_VARIABLE in os.environ or _SPIN_VARIABLE in os.environ:
            return os.environ.get(_POLICY_VARIABLE, "default").lower()
        requested = "bounded" if free_cpus(since) >= threads - BUSY_CPUS else "passive"
    if requested in ("active", "passive"):
        os.environ[_POLICY_VARIABLE] = requested
    elif requested == "bounded":
        os.environ[_SPIN_VARIABLE] = str(_BOUNDED_SPINS)
    return requested


def free_cpus(since: LoadSample) -> float:
    """CPUs that other processes left idle, on average, between `since` and now (at least 50 ms)."""
    missing = _MINIMUM_SAMPLE_S - (time.monotonic() - since.at_s)
    if missing > 0:
        time.sleep(missing)
    now = LoadSample()
    elapsed = now.at_s - since.at_s
    return (now.idle_s - since.idle_s + now.own_s - since.own_s) / elapsed


def other_cpus(since: LoadSample) -> float:
    """CPUs that other processes kept busy, on average, between `since` and now."""
    return max(0.0, (os.cpu_count() or 1) - free_cpus(since))


def read_idle_seconds() -> float:
    """Idle and I/O-wait time of all CPUs since boot, from /proc/stat."""
    with open("/proc/stat", "rb") as file:
        fields = file.readline().split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
