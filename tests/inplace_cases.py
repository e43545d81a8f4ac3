"""Shards, modes and checks that the tests of merges without a second copy share."""

from pathlib import Path
from typing import Any

import pytest

from dfqs.gguf.file import GGUFFile
from dfqs.inplace import merge_inplace, plan_inplace
from dfqs.inplace.job import Mode
from dfqs.shards import plan_merge
from dfqs.storage.disk import probe_insert_unit
from shard_inputs import array_entry, model_entries, model_tensors, payload, text, write_shards


@pytest.fixture(name="shards")
def shards_fixture(tmp_path: Path) -> list[Path]:
    return make_shards(tmp_path / "in")


@pytest.fixture(name="insertable")
def insertable_fixture(tmp_path: Path) -> None:
    if probe_insert_unit(tmp_path) is None:
        pytest.skip("this file system cannot insert ranges; ext4 and XFS can")


def make_shards(folder: Path, cuts: tuple[int, int] = (14, 40)) -> list[Path]:
    tensors = model_tensors()
    entries = [array_entry("tokens", 8, [text(f"token {number}") for number in range(2000)]), *model_entries()]
    return write_shards(folder, entries, [tensors[: cuts[0]], tensors[cuts[0] : cuts[1]], tensors[cuts[1] :]])


def assert_tensors(path: Path) -> None:
    with GGUFFile(path) as model:
        assert [tensor.name for tensor in model.header.tensors] == [name for name, _, _ in model_tensors()]
        for name, shape, type_ in model_tensors():
            assert model.read_tensor(name) == payload(name, shape, type_), name


def run_mode(first: Path, out: Path, mode: Mode, **options: Any) -> None:
    merge_inplace(plan_inplace(plan_merge(first), out, mode, **options))


@pytest.fixture(name="mode", params=["in-place", "consume"])
def mode_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Mode:
    if request.param == "in-place" and probe_insert_unit(tmp_path) is None:
        pytest.skip("this file system cannot insert ranges; ext4 and XFS can")
    found: Mode = request.param
    return found
