"""The control groups that this process runs in (version 2 or 1): limits, what they hold, and what the kernel ended.

Nothing heavy is imported here: small processes look at their group too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED_BYTES = 1 << 60
_OWN_GROUPS, _GROUPS_DIRECTORY = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class OomKills:
    """How many processes the kernel has ended because memory ran out; None where it does not say."""

    group: int | None
    """In this process's control group."""
    machine: int | None


def count_oom_kills() -> OomKills:
    """The kernel's counts, to be compared with a later call's."""
    group = read_group_file("memory", "memory.events") or read_group_file("memory", "memory.oom_control")
    return OomKills(_count_of("oom_kill", group), _count_of("oom_kill", read_system("/proc/vmstat")))


def _count_of(name: str, lines: str) -> int | None:
    for line in lines.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None


def memory_limit() -> int | None:
    """The lowest limit of this process's control group and of those above it."""
    return min((limit for _, limit in memory_limits()), default=None)


def memory_limits() -> Iterator[tuple[Path, int]]:
    """Control groups that limit this process's memory, each with its limit in bytes."""
    for group in control_groups("memory"):
        # memory.high is no wall, but a process beyond it is slowed down until it stands still.
        texts = [read_system(group / name).strip() for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        limits = [int(text) for text in texts if text.isdigit() and int(text) < _UNLIMITED_BYTES]
        if limits:
            yield group, min(limits)


def used_bytes(group: Path) -> int:
    """What a control group holds and cannot give up: file pages are dropped when another needs their place."""
    text = (read_system(group / "memory.current") or read_system(group / "memory.usage_in_bytes")).strip()
    counts = dict(line.split(maxsplit=1) for line in read_system(group / "memory.stat").splitlines() if " " in line)
    # Of version 1 those with a prefix count the groups below as well, as the usage does.
    files = sum(int(counts.get(f"total_{name}") or counts.get(name) or 0) for name in ("active_file", "inactive_file"))
    return max(int(text) - files, 0) if text.isdigit() else 0


def control_groups(controller: str) -> Iterator[Path]:
    """Directories of this process's group (version 2 or 1) and of those above it, the nearest first."""
    for line in read_system(_OWN_GROUPS).splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            root = _GROUPS_DIRECTORY
        elif controller in controllers.split(","):
            root = _GROUPS_DIRECTORY / controller
        else:
            continue
        # In a container the path is often as the host sees it, and the group is mounted at the root.
        group = root / path.lstrip("/")
        while group != root and root in group.parents:
            yield group
            group = group.parent
        yield root


def hidden_group() -> str | None:
    """The control group that this process is in where nothing of it can be read: whether its memory is limited is not
    known. None: it can be, or there is none but the root."""
    for line in read_system(_OWN_GROUPS).splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if path.strip("/") and (controllers == "" or "memory" in controllers.split(",")):
            groups = [*control_groups("memory")]
            names = ("memory.max", "memory.stat", "memory.limit_in_bytes")
            if not any(read_system(group / name) for group in groups for name in names):
                return path
    return None


def read_group_file(controller: str, name: str) -> str:
    """Text of a control file of this process's group, or of the nearest above it that has one; empty without any."""
    return next((text for group in control_groups(controller) if (text := read_system(group / name))), "")


def read_system(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
