"""What every disk does, the one in memory and the machine's own: one suite, so that neither promises what the other
does not keep. What a loss of power leaves can be tried on the one in memory only."""

from pathlib import Path

import pytest

from dfqs.errors import ShardError, UsageError
from dfqs.storage.disk import Disk, LocalDisk, probe_insert_unit, probe_punch
from memory_disk import BLOCK, MemoryDisk


@pytest.fixture(params=["memory", "local"])
def disk(request: pytest.FixtureRequest) -> Disk:
    return MemoryDisk() if request.param == "memory" else LocalDisk()  # type: ignore[return-value]


@pytest.fixture
def unit(disk: Disk, tmp_path: Path) -> int:
    """The unit in which ranges are inserted and removed."""
    found = probe_insert_unit(tmp_path) if isinstance(disk, LocalDisk) else BLOCK
    if found is None or (isinstance(disk, LocalDisk) and not probe_punch(tmp_path)):
        pytest.skip("this file system cannot insert ranges, or free them")
    return found


def write(disk: Disk, path: Path, data: bytes) -> None:
    file = disk.create(path)
    file.write_at(0, data)
    file.close()


def read(disk: Disk, path: Path) -> bytes:
    file = disk.open(path)
    try:
        return file.read_at(0, file.size() + 1)
    finally:
        file.close()


def test_new_file_is_empty_regular_and_has_one_name(disk: Disk, tmp_path: Path) -> None:
    file = disk.create(tmp_path / "f")

    found = disk.identify(tmp_path / "f")

    assert found is not None and found == file.identify()
    assert (found.bytes, found.links, found.is_regular, found.is_symlink) == (0, 1, True, False)
    file.close()


def test_what_is_not_there_is_none_and_cannot_be_opened_or_renamed(disk: Disk, tmp_path: Path) -> None:
    assert disk.identify(tmp_path / "f") is None
    with pytest.raises(FileNotFoundError):
        disk.open(tmp_path / "f")
    with pytest.raises(FileNotFoundError):
        disk.rename(tmp_path / "f", tmp_path / "g")


def test_unlinking_twice_is_no_error_as_a_resumed_run_does_it(disk: Disk, tmp_path: Path) -> None:
    write(disk, tmp_path / "f", b"x")

    disk.unlink(tmp_path / "f")
    disk.unlink(tmp_path / "f")

    assert disk.identify(tmp_path / "f") is None


def test_creating_what_exists_is_refused_and_leaves_it(disk: Disk, tmp_path: Path) -> None:
    write(disk, tmp_path / "f", b"theirs")

    with pytest.raises(FileExistsError):
        disk.create(tmp_path / "f")

    assert read(disk, tmp_path / "f") == b"theirs"


def test_renaming_onto_what_exists_is_refused_and_leaves_both(disk: Disk, tmp_path: Path) -> None:
    write(disk, tmp_path / "f", b"ours")
    write(disk, tmp_path / "g", b"theirs")

    with pytest.raises(UsageError, match="appeared while it was being written"):
        disk.rename(tmp_path / "f", tmp_path / "g")

    assert (read(disk, tmp_path / "f"), read(disk, tmp_path / "g")) == (b"ours", b"theirs")


def test_open_file_is_the_same_file_whatever_becomes_of_its_name(disk: Disk, tmp_path: Path) -> None:
    write(disk, tmp_path / "f", b"old")
    file = disk.open(tmp_path / "f")
    inode = file.identify().inode
    disk.rename(tmp_path / "f", tmp_path / "g")
    write(disk, tmp_path / "f", b"another")

    other = disk.identify(tmp_path / "f")

    assert file.identify().inode == inode and other is not None and other.inode != inode
    disk.unlink(tmp_path / "g")
    assert file.read_at(0, 3) == b"old"
    file.close()


def test_reading_stops_where_the_file_ends(disk: Disk, tmp_path: Path) -> None:
    write(disk, tmp_path / "f", b"0123456789")
    file = disk.open(tmp_path / "f")

    assert file.read_at(8, 5) == b"89"
    assert file.read_at(10, 5) == file.read_at(99, 5) == b""
    file.close()


def test_space_that_was_never_written_reads_as_zeroes(disk: Disk, tmp_path: Path) -> None:
    write(disk, tmp_path / "f", b"ab")
    file = disk.open(tmp_path / "f")
    file.write_at(5, b"c")
    file.truncate(7)
    file.truncate(1)
    file.truncate(3)

    assert read(disk, tmp_path / "f") == b"a\0\0"
    file.close()


def test_bytes_are_copied_from_one_open_file_to_another(disk: Disk, tmp_path: Path) -> None:
    write(disk, tmp_path / "f", bytes(range(250)) * 100)
    source, target = disk.open(tmp_path / "f"), disk.create(tmp_path / "g")

    target.copy_from(source, 1000, 3, 20_000)
    with pytest.raises(ShardError, match="cut short"):
        target.copy_from(source, 24_999, 0, 2)

    assert target.read_at(3, 20_000) == (bytes(range(250)) * 100)[1000:21_000]
    source.close()
    target.close()


def test_lock_keeps_a_second_handle_away_until_it_is_closed(disk: Disk, tmp_path: Path) -> None:
    write(disk, tmp_path / "f", b"")
    first, second = disk.open(tmp_path / "f"), disk.open(tmp_path / "f")

    assert first.lock() and first.lock()
    assert not second.lock()
    first.close()
    assert second.lock()
    second.close()


def test_any_change_shows_in_the_stamp(disk: Disk, tmp_path: Path) -> None:
    write(disk, tmp_path / "f", b"x")
    file = disk.open(tmp_path / "f")
    before = file.identify().stamp
    file.write_at(0, b"longer")

    assert file.identify().stamp != before
    assert abs(file.identify().changed_ns - disk.now_ns()) < 10 * 10**9
    file.set_modified(1_000_000_007)
    assert file.identify().modified_ns == 1_000_000_007
    file.close()


def test_freed_range_reads_as_zeroes_and_the_size_stays(disk: Disk, tmp_path: Path, unit: int) -> None:
    write(disk, tmp_path / "f", b"a" * 4 * unit)
    file = disk.open(tmp_path / "f")
    file.sync()
    file.punch(unit, 2 * unit)
    file.sync()

    assert read(disk, tmp_path / "f") == b"a" * unit + bytes(2 * unit) + b"a" * unit
    assert file.holes() == [(unit, 3 * unit)]
    file.close()


def test_range_inserted_and_removed_moves_what_is_behind_it(disk: Disk, tmp_path: Path, unit: int) -> None:
    write(disk, tmp_path / "f", b"a" * unit + b"b" * unit)
    file = disk.open(tmp_path / "f")

    file.insert_range(unit, unit)
    assert read(disk, tmp_path / "f") == b"a" * unit + bytes(unit) + b"b" * unit
    file.collapse_range(unit, unit)
    assert read(disk, tmp_path / "f") == b"a" * unit + b"b" * unit
    file.close()


def test_syncing_and_asking_for_space_work_on_any_directory(disk: Disk, tmp_path: Path) -> None:
    write(disk, tmp_path / "f", b"x")
    disk.sync_directory(tmp_path)

    assert disk.free_bytes(tmp_path) > 0


A, B = Path("/a/f"), Path("/b/f")


def test_name_is_lost_with_the_power_unless_its_own_directory_was_synced() -> None:
    disk = MemoryDisk()
    for path in (A, B):
        file = disk.create(path)
        file.write_at(0, b"x")
        file.sync()
    disk.sync_directory(A.parent)

    assert disk.crash(None).paths() == {A}
    assert disk.crash(None, keep_all=True).paths() == {A, B}


def test_file_renamed_to_another_directory_is_lost_when_only_the_old_one_was_synced() -> None:
    disk = MemoryDisk()
    disk.add(A, b"x")
    disk.rename(A, B)
    disk.sync_directory(A.parent)

    assert disk.crash(None).paths() == set()


def test_contents_that_were_not_synced_are_lost_though_the_name_is_durable() -> None:
    disk = MemoryDisk()
    disk.create(A).write_at(0, b"x")
    disk.sync_directory(A.parent)

    assert disk.crash(None).contents(A) == b""
