"""How much memory is free: control groups of both versions limit it, own or above, and file pages do not count."""

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from dfqs import control_groups, hardware

GB = 1_000_000_000


def make_groups(root: Path, monkeypatch: pytest.MonkeyPatch, own: str, groups: dict[str, dict[str, str]]) -> None:
    """A tree of control groups, and the file that says in which one this process is."""
    for name, files in groups.items():
        for file, text in files.items():
            path = root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    (root / "own").write_text(own)
    monkeypatch.setattr(control_groups, "_OWN_GROUPS", root / "own")
    monkeypatch.setattr(control_groups, "_GROUPS_DIRECTORY", root)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 64 * GB, "total": 64 * GB}))


def test_pages_of_files_are_not_taken_for_used_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A model that was just copied here fills the group with pages that the kernel gives up when asked.
    stat = f"anon {2 * GB}\nfile {14 * GB}\ninactive_file {9 * GB}\nactive_file {4 * GB}\n"
    files = {"memory.max": f"{16 * GB}\n", "memory.current": f"{16 * GB}\n", "memory.stat": stat}
    make_groups(tmp_path, monkeypatch, "0::/app\n", {"app": files})

    assert hardware.available_memory_bytes() == 13 * GB


def test_a_limit_above_ones_own_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {
        "pod": {"memory.max": str(8 * GB), "memory.current": str(5 * GB), "memory.stat": ""},
        "pod/app": {"memory.max": "max\n", "memory.high": "max\n", "memory.current": str(GB), "memory.stat": ""},
    }
    make_groups(tmp_path, monkeypatch, "0::/pod/app\n", groups)

    assert hardware.available_memory_bytes() == 3 * GB
    assert hardware.read_machine().memory_limit_bytes == 8 * GB


def test_the_limit_at_which_a_group_is_slowed_down_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": str(8 * GB), "memory.high": str(6 * GB), "memory.current": str(GB), "memory.stat": ""}
    make_groups(tmp_path, monkeypatch, "0::/app\n", {"app": files})

    assert hardware.available_memory_bytes() == 5 * GB


def test_version_1_and_a_path_that_only_the_host_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = f"inactive_file 0\ntotal_inactive_file {GB}\ntotal_active_file {GB}\n"
    files = {"memory.limit_in_bytes": str(4 * GB), "memory.usage_in_bytes": str(3 * GB), "memory.stat": stat}
    make_groups(tmp_path, monkeypatch, "3:cpu,cpuacct:/x\n4:memory:/docker/0123\n", {"memory": files})

    assert hardware.available_memory_bytes() == 3 * GB


@pytest.mark.parametrize("limit", ["max\n", str((1 << 63) - 4096), "", "no number"])
def test_no_limit_is_no_limit(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": limit, "memory.current": "nonsense", "memory.stat": "also nonsense"}
    make_groups(tmp_path, monkeypatch, "0::/app\n", {"app": files})

    assert hardware.available_memory_bytes() == 64 * GB
    assert hardware.read_machine().memory_limit_bytes is None


def test_measuring_the_bandwidth_takes_no_more_than_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def take(work: object, arrays: list[Any], bytes_each: int) -> float:
        # Pairs to be copied from and to, or arrays to be read.
        taken.append(sum(np.asarray(array).nbytes for array in arrays))
        return 1.0

    monkeypatch.setattr(hardware, "_best_rate", take)
    monkeypatch.setattr(hardware, "available_memory_bytes", lambda: 80 << 20)
    hardware.measure_copy_bandwidth(2)
    hardware.measure_read_bandwidth(2)

    assert taken == [40 << 20, 40 << 20]


@pytest.mark.parametrize(
    ("own", "groups", "hidden"),
    [
        ("0::/app\n", {}, "/app"),
        ("4:memory:/docker/0123\n3:cpu:/x\n", {}, "/docker/0123"),
        ("0::/app\n", {"app": {"memory.max": "max\n"}}, None),
        # Both versions at once: memory is with the first.
        ("4:memory:/\n0::/user.slice\n", {"memory": {"memory.stat": "cache 1\n"}}, None),
        ("0::/\n", {}, None),
        ("3:cpu:/x\n", {}, None),
        ("", {}, None),
    ],
)
def test_a_group_whose_limits_cannot_be_read_is_told_from_none(
    own: str,
    groups: dict[str, dict[str, str]],
    hidden: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_groups(tmp_path, monkeypatch, own, groups)

    assert control_groups.hidden_group() == hidden
