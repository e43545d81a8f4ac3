"""Merges without a second copy on real file systems: what moves, and what is refused."""

import mmap
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf
from dfqs.errors import SpaceError, UsageError
from dfqs.inplace import is_unfinished, merge_inplace, plan_inplace
from dfqs.inplace.job import Mode
from dfqs.inplace.journal import working_path
from dfqs.inplace.plan_resident import plan_in_place
from dfqs.shards import merge, plan_merge
from dfqs.storage.disk import LocalDisk
from inplace_cases import assert_tensors, insertable_fixture, make_shards, mode_fixture, run_mode, shards_fixture  # noqa: F401 - fixtures
from shard_inputs import (
    array_entry,
    sha256,
    tiny_entries,
    tiny_tensors,
    write_shards,
)

SHM = Path("/dev/shm")


@pytest.mark.usefixtures("insertable")
@pytest.mark.parametrize("cuts", [(40, 45), (8, 42), (4, 9)])
def test_in_place_keeps_the_largest_shards_file_and_every_tensor(cuts: tuple[int, int], tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "in", cuts)
    largest = max(shards, key=lambda path: path.stat().st_size)
    inode = largest.stat().st_ino
    plan = plan_inplace(plan_merge(shards[0]), tmp_path / "out.gguf", "in-place")
    moved = sum(path.stat().st_size for path in shards if path != largest)

    result = merge_inplace(plan)

    assert (tmp_path / "out.gguf").stat().st_ino == inode
    assert result.moved_bytes <= moved + 40_000
    assert_tensors(tmp_path / "out.gguf")
    assert list((tmp_path / "in").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.gguf"]


@pytest.mark.usefixtures("insertable")
def test_set_of_one_shard_needs_no_gap_and_gives_the_canonical_bytes(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "in", tiny_entries(), [tiny_tensors()])
    merge(plan_merge(shards[0]), tmp_path / "plain.gguf")
    plan = plan_inplace(plan_merge(shards[0]), tmp_path / "out.gguf", "in-place")

    merge_inplace(plan)

    assert plan.job.job.resident is not None and plan.job.job.resident.gap == 0
    assert sha256(tmp_path / "out.gguf") == sha256(tmp_path / "plain.gguf")


@pytest.mark.usefixtures("insertable")
def test_vocabulary_of_the_first_shard_is_not_written_again(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "in", (40, 45))
    plan = plan_inplace(plan_merge(shards[0]), tmp_path / "out.gguf", "in-place")

    resident = plan.job.job.resident
    assert resident is not None
    assert resident.insert_at > 30_000
    assert plan.moved_bytes == sum(c.length for c in plan.job.job.copies) + len(plan.job.header) - resident.insert_at


@pytest.mark.thorough
@pytest.mark.usefixtures("insertable")
def test_file_merged_in_place_is_read_by_the_public_package_with_one_more_key(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "in")
    merge(plan_merge(shards[0]), tmp_path / "plain.gguf")

    run_mode(shards[0], tmp_path / "out.gguf", "in-place")

    plain, ours = gguf.GGUFReader(tmp_path / "plain.gguf"), gguf.GGUFReader(tmp_path / "out.gguf")
    assert set(ours.fields) - set(plain.fields) == {"dfqs.padding"}
    assert [tensor.name for tensor in ours.tensors] == [tensor.name for tensor in plain.tensors]
    for mine, theirs in zip(ours.tensors, plain.tensors, strict=True):
        assert mine.data.tobytes() == theirs.data.tobytes()


@pytest.mark.thorough
@pytest.mark.parametrize("window_bytes", [1 << 12, 100_000, 1 << 28])
def test_consume_gives_the_bytes_of_a_plain_merge(shards: list[Path], tmp_path: Path, window_bytes: int) -> None:
    merge(plan_merge(shards[0]), tmp_path / "plain.gguf")

    run_mode(shards[0], tmp_path / "out.gguf", "consume", window_bytes=window_bytes)

    assert sha256(tmp_path / "out.gguf") == sha256(tmp_path / "plain.gguf")
    assert list((tmp_path / "in").iterdir()) == []


def test_hashes_of_consumed_shards_are_those_of_the_files_that_are_gone(shards: list[Path], tmp_path: Path) -> None:
    expected = tuple(map(sha256, shards))

    result = merge_inplace(plan_inplace(plan_merge(shards[0]), tmp_path / "out.gguf", "consume"))

    assert result.shard_sha256 == expected


@pytest.mark.usefixtures("insertable")
def test_shard_that_stays_is_hashed_only_when_asked(tmp_path: Path) -> None:
    for hash_resident in (False, True):
        shards = make_shards(tmp_path / f"in{hash_resident}", (8, 42))
        expected = [sha256(path) for path in shards]
        if not hash_resident:
            expected[1] = None  # type: ignore[call-overload]
        plan = plan_inplace(plan_merge(shards[0]), tmp_path / f"out{hash_resident}.gguf", "in-place")

        assert list(merge_inplace(plan, hash_first=hash_resident).shard_sha256) == expected


@pytest.mark.thorough
@settings(max_examples=60)
@given(
    key_bytes=st.integers(0, 9000),
    cuts=st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted),
    unit=st.sampled_from([4096, 65536]),
)
def test_header_in_place_ends_where_the_data_lies_whatever_its_length(
    key_bytes: int, cuts: list[int], unit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors = tiny_tensors()
    entries = [*tiny_entries(), array_entry("k", 0, [b"\1"] * key_bytes)]
    groups = [tensors[: cuts[0]], tensors[cuts[0] : cuts[1]], tensors[cuts[1] :]]
    plan = plan_merge(write_shards(tmp_path_factory.mktemp("fit"), entries, groups)[0])

    job = plan_in_place(plan, unit, "punch")

    resident = job.job.resident
    assert resident is not None
    assert resident.gap % unit == 0 and resident.insert_at % unit == 0
    header = plan.shards[resident.shard].header
    before = plan.tensors[sum(len(shard.tensors) for shard in plan.shards[: resident.shard])].offset
    assert len(job.header) + before == header.data_offset + resident.gap
    assert job.header[24 : resident.insert_at] == resident_bytes(plan.shards[resident.shard].path, resident.insert_at)


def resident_bytes(path: Path, end: int) -> bytes:
    return path.read_bytes()[24:end]


# Refusals: bytes that are not only ours to free


def assert_refused(shards: list[Path], out: Path, mode: Mode, message: str) -> None:
    before = [sha256(path) for path in shards]

    with pytest.raises(UsageError, match=message):
        run_mode(shards[0], out, mode)

    assert [sha256(path) for path in shards] == before
    assert not out.exists() and not is_unfinished(out)


def test_symlinked_shard_is_refused_so_that_the_hubs_cache_stays_whole(
    shards: list[Path], tmp_path: Path, mode: Mode
) -> None:
    blob = shards[1].rename(tmp_path / "blob")
    shards[1].symlink_to(blob)
    assert_refused(shards, tmp_path / "out.gguf", mode, r"00002-of-00003\.gguf is a symlink .*Hub's cache")


def test_hard_linked_shard_is_refused(shards: list[Path], tmp_path: Path, mode: Mode) -> None:
    os.link(shards[2], tmp_path / "second-name")
    assert_refused(shards, tmp_path / "out.gguf", mode, r"00003-of-00003\.gguf has 2 hard links")


def test_shard_open_in_another_process_is_refused_with_its_name(shards: list[Path], tmp_path: Path, mode: Mode) -> None:
    with shards[1].open("rb") as file, subprocess.Popen(["sleep", "60"], stdin=file) as holder:
        try:
            file.close()
            assert_refused(shards, tmp_path / "out.gguf", mode, rf"in use by sleep \(process {holder.pid}\)")
        finally:
            holder.kill()


def test_shard_that_is_mapped_is_refused_though_its_descriptor_is_closed(
    shards: list[Path], tmp_path: Path, mode: Mode
) -> None:
    with shards[1].open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        assert_refused(
            shards, tmp_path / "out.gguf", mode, rf"in use by .*\(process {os.getpid()}\)|is open in another"
        )
    finally:
        mapped.close()


@pytest.mark.usefixtures("insertable")
def test_sparse_shard_is_not_merged_in_place_where_its_holes_could_be_taken_for_the_gap(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "in", (8, 42))
    # A copy with holes where zeroes are.
    data = shards[1].read_bytes()
    at = 100_000 // 4096 * 4096
    shards[1].write_bytes(data[:at])
    with shards[1].open("r+b") as file:
        file.seek(at + 65536)
        file.write(data[at + 65536 :])
    assert_refused(shards, tmp_path / "out.gguf", "in-place", r"is sparse \(1 holes\).*use --consume")


@pytest.mark.skipif(not SHM.is_dir(), reason="no tmpfs at /dev/shm")
def test_file_system_without_insertion_is_refused_and_consume_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = SHM / f"dfqs-test-{os.getpid()}"
    try:
        shards = make_shards(folder)
        assert_refused(shards, folder / "out.gguf", "in-place", r"cannot insert ranges .*use --consume")
        run_mode(shards[0], folder / "out.gguf", "consume")
        assert_tensors(folder / "out.gguf")
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@pytest.mark.skipif(not SHM.is_dir(), reason="no tmpfs at /dev/shm")
def test_output_on_another_file_system_is_refused_in_place(shards: list[Path]) -> None:
    assert_refused(shards, SHM / f"dfqs-test-{os.getpid()}.gguf", "in-place", "is on another file system")


def test_output_that_exists_is_refused(shards: list[Path], tmp_path: Path, mode: Mode) -> None:
    (tmp_path / "out.gguf").write_bytes(b"precious")

    with pytest.raises(UsageError, match="exists already"):
        run_mode(shards[0], tmp_path / "out.gguf", mode)

    assert (tmp_path / "out.gguf").read_bytes() == b"precious"


def test_foreign_file_with_the_working_name_is_not_touched(shards: list[Path], tmp_path: Path, mode: Mode) -> None:
    working_path(tmp_path / "out.gguf").write_bytes(b"precious")
    assert_refused(shards, tmp_path / "out.gguf", mode, "is in the way")


def test_without_hole_punching_shards_go_one_by_one_and_that_is_said_beforehand(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfqs.inplace.merge.probe_punch", lambda directory: False)
    merge(plan_merge(shards[0]), tmp_path / "plain.gguf")
    plan = plan_inplace(plan_merge(shards[0]), tmp_path / "out.gguf", "consume")

    assert "without hole punching: shards are deleted one by one" in plan.notes[0]
    assert plan.peak_bytes > max(path.stat().st_size for path in shards) - 100_000
    merge_inplace(plan)
    assert sha256(tmp_path / "out.gguf") == sha256(tmp_path / "plain.gguf")


def test_too_little_room_for_one_window_is_said_before_anything_is_touched(
    shards: list[Path], tmp_path: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalDisk, "free_bytes", lambda self, directory: 100_000)

    with pytest.raises(SpaceError, match=rf"has 100 kB free, \d+ kB are needed; a merge with --{mode} takes no less"):
        plan_inplace(plan_merge(shards[0]), tmp_path / "out.gguf", mode)

    assert not is_unfinished(tmp_path / "out.gguf")
