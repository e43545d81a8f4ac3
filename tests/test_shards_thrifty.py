"""Merges without a second copy on real file systems: what moves, what is refused, full disks, and the command line."""

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfqs.cli.main import run
from dfqs.errors import DfqsError, IntegrityError, SpaceError, UsageError
from dfqs.gguf import GGMLType
from dfqs.gguf.file import GGUFFile
from dfqs.shards import abort_merge, is_unfinished, merge, merge_thrifty, plan_merge, plan_thrifty, resume_merge
from dfqs.shards.disk import LocalDisk, probe_insert_unit
from dfqs.shards.execute import Place, begin
from dfqs.shards.inplace import plan_in_place
from dfqs.shards.job import Job, Mode
from dfqs.shards.journal import Journal, journal_path, working_path
from shard_inputs import (
    array_entry,
    model_entries,
    model_tensors,
    payload,
    sha256,
    text,
    tiny_entries,
    tiny_tensors,
    write_shards,
)

SHM = Path("/dev/shm")


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return make_shards(tmp_path / "in")


@pytest.fixture
def insertable(tmp_path: Path) -> None:
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


def run_mode(first: Path, out: Path, mode: Mode, **options: int) -> None:
    merge_thrifty(plan_thrifty(plan_merge(first), out, mode, **options))


@pytest.mark.usefixtures("insertable")
@pytest.mark.parametrize("cuts", [(40, 45), (8, 42), (4, 9)])
def test_in_place_keeps_the_largest_shards_file_and_every_tensor(cuts: tuple[int, int], tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "in", cuts)
    largest = max(shards, key=lambda path: path.stat().st_size)
    inode = largest.stat().st_ino
    plan = plan_thrifty(plan_merge(shards[0]), tmp_path / "out.gguf", "in-place")
    moved = sum(path.stat().st_size for path in shards if path != largest)

    result = merge_thrifty(plan)

    assert (tmp_path / "out.gguf").stat().st_ino == inode
    assert result.moved_bytes <= moved + 40_000
    assert_tensors(tmp_path / "out.gguf")
    assert list((tmp_path / "in").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.gguf"]


@pytest.mark.usefixtures("insertable")
def test_vocabulary_of_the_first_shard_is_not_written_again(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "in", (40, 45))
    plan = plan_thrifty(plan_merge(shards[0]), tmp_path / "out.gguf", "in-place")

    resident = plan.job.job.resident
    assert resident is not None
    assert resident.insert_at > 30_000
    assert plan.moved_bytes == sum(c.length for c in plan.job.job.copies) + len(plan.job.header) - resident.insert_at


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


@pytest.mark.parametrize("window_bytes", [1 << 12, 100_000, 1 << 28])
def test_consume_gives_the_bytes_of_a_plain_merge(shards: list[Path], tmp_path: Path, window_bytes: int) -> None:
    merge(plan_merge(shards[0]), tmp_path / "plain.gguf")

    run_mode(shards[0], tmp_path / "out.gguf", "consume", window_bytes=window_bytes)

    assert sha256(tmp_path / "out.gguf") == sha256(tmp_path / "plain.gguf")
    assert list((tmp_path / "in").iterdir()) == []


def test_hashes_of_consumed_shards_are_those_of_the_files_that_are_gone(shards: list[Path], tmp_path: Path) -> None:
    expected = tuple(map(sha256, shards))

    result = merge_thrifty(plan_thrifty(plan_merge(shards[0]), tmp_path / "out.gguf", "consume"))

    assert result.shard_sha256 == expected


@pytest.mark.usefixtures("insertable")
def test_shard_that_stays_is_hashed_only_when_asked(tmp_path: Path) -> None:
    for hash_resident in (False, True):
        shards = make_shards(tmp_path / f"in{hash_resident}", (8, 42))
        expected = [sha256(path) for path in shards]
        if not hash_resident:
            expected[1] = None  # type: ignore[call-overload]
        plan = plan_thrifty(plan_merge(shards[0]), tmp_path / f"out{hash_resident}.gguf", "in-place")

        assert list(merge_thrifty(plan, hash_resident=hash_resident).shard_sha256) == expected


@settings(max_examples=60, deadline=None)
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


@pytest.fixture(params=["in-place", "consume"])
def mode(request: pytest.FixtureRequest, tmp_path: Path) -> Mode:
    if request.param == "in-place" and probe_insert_unit(tmp_path) is None:
        pytest.skip("this file system cannot insert ranges; ext4 and XFS can")
    found: Mode = request.param
    return found


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
    monkeypatch.setattr("dfqs.shards.thrifty.probe_punch", lambda directory: False)
    merge(plan_merge(shards[0]), tmp_path / "plain.gguf")
    plan = plan_thrifty(plan_merge(shards[0]), tmp_path / "out.gguf", "consume")

    assert "without hole punching: shards are deleted one by one" in plan.notes[0]
    assert plan.peak_bytes > max(path.stat().st_size for path in shards) - 100_000
    merge_thrifty(plan)
    assert sha256(tmp_path / "out.gguf") == sha256(tmp_path / "plain.gguf")


def test_too_little_room_for_one_window_is_said_before_anything_is_touched(
    shards: list[Path], tmp_path: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalDisk, "free_bytes", lambda self, directory: 100_000)

    with pytest.raises(SpaceError, match=rf"has 100 kB free; a merge with --{mode} needs"):
        plan_thrifty(plan_merge(shards[0]), tmp_path / "out.gguf", mode)

    assert not is_unfinished(tmp_path / "out.gguf")


# Unfinished merges


def unfinished(shards: list[Path], out: Path, mode: Mode) -> None:
    """A merge that was cut off right after its working file was made ready."""
    plan = plan_thrifty(plan_merge(shards[0]), out, mode)
    begin(LocalDisk(), plan.job, Place(out, shards[0].parent)).close()


def test_abort_gives_back_every_byte(shards: list[Path], tmp_path: Path, mode: Mode) -> None:
    before = [sha256(path) for path in shards]
    unfinished(shards, tmp_path / "out.gguf", mode)

    abort_merge(shards[0], tmp_path / "out.gguf")

    assert [sha256(path) for path in shards] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_abort_without_a_merge_says_so(shards: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no unfinished merge"):
        abort_merge(shards[0], tmp_path / "out.gguf")


def test_merge_goes_on_from_its_journal(shards: list[Path], tmp_path: Path, mode: Mode) -> None:
    unfinished(shards, tmp_path / "out.gguf", mode)

    resume_merge(shards[0], tmp_path / "out.gguf", mode)

    assert_tensors(tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.gguf"]


def test_working_file_is_taken_for_no_model(shards: list[Path], tmp_path: Path, mode: Mode) -> None:
    unfinished(shards, tmp_path / "out.gguf", mode)

    assert working_path(tmp_path / "out.gguf").read_bytes()[:4] == bytes(4)


def test_two_processes_do_not_work_on_one_merge(shards: list[Path], tmp_path: Path) -> None:
    unfinished(shards, tmp_path / "out.gguf", "consume")
    held = Journal.open(LocalDisk(), tmp_path / "out.gguf")
    assert held is not None
    try:
        with pytest.raises(UsageError, match="another dfqs is working on this merge"):
            resume_merge(shards[0], tmp_path / "out.gguf", "consume")
    finally:
        held.close()


def test_other_mode_does_not_take_over(shards: list[Path], tmp_path: Path) -> None:
    unfinished(shards, tmp_path / "out.gguf", "consume")

    with pytest.raises(UsageError, match="was begun with --consume"):
        resume_merge(shards[0], tmp_path / "out.gguf", "in-place")


@pytest.mark.parametrize("name", ["../precious", "/etc/passwd", "", ".."])
def test_journal_that_names_files_elsewhere_is_refused(shards: list[Path], tmp_path: Path, name: str) -> None:
    job = plan_thrifty(plan_merge(shards[0]), tmp_path / "out.gguf", "consume").job.job.to_json()
    job["sources"][0]["name"] = name
    with pytest.raises(ValueError, match="a directory in it"):
        Job.from_json(job)


def test_journal_that_is_another_file_is_refused(shards: list[Path], tmp_path: Path) -> None:
    working_path(tmp_path / "out.gguf").write_bytes(b"x")
    journal_path(tmp_path / "out.gguf").write_bytes(b"not a journal\n")

    with pytest.raises(IntegrityError, match="is damaged"):
        resume_merge(shards[0], tmp_path / "out.gguf", "consume")


# A disk that is full


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_plain_merge_on_a_full_disk_says_so_and_leaves_nothing(small_tmpfs: Path) -> None:
    shards = make_shards(small_tmpfs)
    leave(small_tmpfs, 300_000)

    with pytest.raises(SpaceError, match=r"free, .* are needed"):
        merge(plan_merge(shards[0]), small_tmpfs / "out.gguf")

    assert not list(small_tmpfs.glob("*out*"))


def test_disk_that_fills_up_under_a_plain_merge_leaves_nothing(small_tmpfs: Path) -> None:
    shards = make_shards(small_tmpfs)
    plan = plan_merge(shards[0])
    leave(small_tmpfs, 300_000)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SpaceError, match="the disk is full"):
        # As when another process fills the disk after the check.
        patch.setattr(sys.modules["dfqs.shards.merge"], "require_space", lambda *arguments: None)
        merge(plan, small_tmpfs / "out.gguf")

    assert not list(small_tmpfs.glob("*out*"))


def test_disk_that_fills_up_under_consume_loses_nothing_and_goes_on_when_there_is_room(small_tmpfs: Path) -> None:
    shards = make_shards(small_tmpfs)
    out = small_tmpfs / "out.gguf"
    plan = plan_thrifty(plan_merge(shards[0]), out, "consume", window_bytes=200_000, disk=Roomy())
    filler = leave(small_tmpfs, 500_000)

    def fill_up(done: int, total: int | None = None, note: str = "") -> None:
        state = os.statvfs(small_tmpfs)
        with filler.open("ab") as file:
            file.write(bytes(max(state.f_bavail - 2, 0) * state.f_frsize))

    with pytest.raises(SpaceError, match=r"is full .*Nothing is lost: free some space and run the same command again"):
        merge_thrifty(plan, progress=fill_up)
    assert is_unfinished(out)
    with pytest.raises(DfqsError):
        resume_merge(shards[0], out, "consume", window_bytes=200_000, progress=fill_up)
    filler.unlink()
    resume_merge(shards[0], out, "consume", window_bytes=200_000)

    assert_tensors(out)
    assert [path.name for path in small_tmpfs.iterdir()] == ["out.gguf"]


def leave(folder: Path, free_bytes: int) -> Path:
    """Fill a file system up to `free_bytes`."""
    state = os.statvfs(folder)
    filler = folder / "filler"
    filler.write_bytes(bytes(state.f_bavail * state.f_frsize - free_bytes))
    return filler


class Roomy(LocalDisk):
    """Believes that there is room, as there was when others had not filled the disk yet."""

    def free_bytes(self, directory: Path) -> int:
        return 1 << 40


# The command line


def test_dry_run_says_bytes_moved_and_peak_disk_and_changes_nothing(
    shards: list[Path], tmp_path: Path, mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [sha256(path) for path in shards]

    code = run(["merge", str(shards[0]), "-o", str(tmp_path / "out.gguf"), f"--{mode}", "--dry-run", "--json"])

    plan = json.loads(capsys.readouterr().out)
    assert code == 0
    assert plan["mode"] == mode and plan["dry_run"] is True and plan["wall_s"] is None
    assert plan["moved_bytes"] <= plan["file_bytes"]
    assert plan["peak_extra_bytes"] > 0
    assert [sha256(path) for path in shards] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_command_goes_on_with_what_is_unfinished(
    shards: list[Path], tmp_path: Path, mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished(shards, tmp_path / "out.gguf", mode)
    command = ["merge", str(shards[0]), "-o", str(tmp_path / "out.gguf")]

    assert run(command) == 2
    assert "is unfinished; go on with --in-place or --consume, or --abort it" in capsys.readouterr().err
    assert run([*command, f"--{mode}"]) == 0
    assert_tensors(tmp_path / "out.gguf")


def test_abort_on_the_command_line_says_what_was_put_back(
    shards: list[Path], tmp_path: Path, mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished(shards, tmp_path / "out.gguf", mode)

    assert run(["merge", str(shards[0]), "-o", str(tmp_path / "out.gguf"), "--abort"]) == 0
    assert "all shards are as they were before the merge" in capsys.readouterr().out
    assert run(["merge", str(shards[0]), "-o", str(tmp_path / "out.gguf"), "--abort"]) == 2


def test_both_modes_at_once_are_a_usage_error(shards: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["merge", str(shards[0]), "--in-place", "--consume"]) == 2


def test_ctrl_c_during_consume_says_how_to_go_on(shards: list[Path], tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None = None, note: str = "") -> None:
        raise KeyboardInterrupt

    plan = plan_thrifty(plan_merge(shards[0]), tmp_path / "out.gguf", "consume", window_bytes=100_000)
    with pytest.raises(DfqsError, match=r"interrupted; nothing is lost\. The same command goes on") as caught:
        merge_thrifty(plan, progress=interrupt)
    assert caught.value.exit_code == 130

    resume_merge(shards[0], tmp_path / "out.gguf", "consume")
    assert_tensors(tmp_path / "out.gguf")


def test_memory_stays_small_however_large_a_shard_is(tmp_path: Path) -> None:
    tensors = [(f"blk.{n}.ffn_up_exps.weight", (4096, 500, 8), GGMLType.Q8_0) for n in range(6)]
    shards = write_shards(tmp_path, tiny_entries()[:1], [tensors[:3], tensors[3:]])
    program = (
        "import resource, sys; from dfqs.cli.main import run; code = run(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    )
    # Through a shell, so that the peak is not inherited from this process.
    command = f'{sys.executable} -c "$0" "$@"'
    done = subprocess.run(
        ["sh", "-c", command, program, "merge", str(shards[0]), "-o", str(tmp_path / "out.gguf"), "--consume"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout.split()[-1]) < 150_000
