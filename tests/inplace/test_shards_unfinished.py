"""Merges without a second copy that are unfinished: resumed, undone, on a full disk, and on the command line."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.errors import DfqsError, IntegrityError, SpaceError, UsageError
from dfqs.gguf import GGMLType
from dfqs.inplace import abort_merge, is_unfinished, merge_inplace, plan_inplace, resume_merge
from dfqs.inplace.execute import Place, begin
from dfqs.inplace.job import Job, Mode
from dfqs.inplace.journal import Journal, journal_path, working_path
from dfqs.shards import merge, plan_merge
from dfqs.storage.disk import LocalDisk, LocalFile
from inplace_cases import assert_tensors, insertable_fixture, make_shards, mode_fixture, shards_fixture  # noqa: F401 - fixtures
from shard_inputs import (
    sha256,
    tiny_entries,
    write_shards,
)

# Unfinished merges


def unfinished(shards: list[Path], out: Path, mode: Mode) -> None:
    """A merge that was cut off right after its working file was made ready."""
    plan = plan_inplace(plan_merge(shards[0]), out, mode)
    begin(LocalDisk(), plan.job, Place(out, shards[0].parent)).close()


def test_abort_gives_back_every_byte(shards: list[Path], tmp_path: Path, mode: Mode) -> None:
    before = [sha256(path) for path in shards]
    unfinished(shards, tmp_path / "out.gguf", mode)

    abort_merge(shards[0], tmp_path / "out.gguf")

    assert [sha256(path) for path in shards] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.usefixtures("insertable")
@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 1.0])
def test_gap_left_half_way_by_a_loss_of_power_is_taken_out_by_the_real_file_system(part: float, tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "in", (8, 42))
    before = [sha256(path) for path in shards]
    out = tmp_path / "out.gguf"
    plan = plan_inplace(plan_merge(shards[0]), out, "in-place")
    resident = plan.job.job.resident
    assert resident is not None
    # As the power leaves it: journal durable, shard renamed, and the gap on its way from the end to the front.
    Journal.create(LocalDisk(), out, plan.job.job).close()
    shards[resident.shard].rename(working_path(out))
    file = LocalDisk().open(working_path(out))
    blocks = resident.old_bytes // 4096
    file.insert_range(round(part * blocks) * 4096, resident.gap)
    file.close()

    abort_merge(shards[0], out)

    assert [sha256(path) for path in shards] == before


@pytest.mark.usefixtures("insertable")
def test_file_that_takes_no_insertion_after_all_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: LocalFile, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    shards = make_shards(tmp_path / "in")
    before = [sha256(path) for path in shards]
    plan = plan_inplace(plan_merge(shards[0]), tmp_path / "out.gguf", "in-place")
    monkeypatch.setattr(LocalFile, "insert_range", refuse)

    with pytest.raises(UsageError, match=r"would not insert into this shard .* all was put back, use --consume"):
        merge_inplace(plan)

    assert [sha256(path) for path in shards] == before
    assert not is_unfinished(tmp_path / "out.gguf")


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
    job = plan_inplace(plan_merge(shards[0]), tmp_path / "out.gguf", "consume").job.job.to_json()
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
        patch.setattr(sys.modules["dfqs.shards.plain_merge"], "require_space", lambda *arguments: None)
        merge(plan, small_tmpfs / "out.gguf")

    assert not list(small_tmpfs.glob("*out*"))


def test_disk_that_fills_up_under_consume_loses_nothing_and_goes_on_when_there_is_room(small_tmpfs: Path) -> None:
    shards = make_shards(small_tmpfs)
    out = small_tmpfs / "out.gguf"
    plan = plan_inplace(plan_merge(shards[0]), out, "consume", window_bytes=200_000, disk=Roomy())
    filler = leave(small_tmpfs, 500_000)

    def fill_up(done: int, total: int | None = None, note: str = "") -> None:
        state = os.statvfs(small_tmpfs)
        with filler.open("ab") as file:
            file.write(bytes(max(state.f_bavail - 2, 0) * state.f_frsize))

    with pytest.raises(SpaceError, match=r"is full .*Nothing is lost: free some space and run the same command again"):
        merge_inplace(plan, progress=fill_up)
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


def test_other_output_than_the_unfinished_merges_is_told_where_the_bytes_are(
    shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shards[0].with_name("out.gguf")
    plan = plan_inplace(plan_merge(shards[0]), out, "consume", window_bytes=1 << 16)

    def interrupt(done: int, total: int | None = None, note: str = "") -> None:
        if done > 1 << 17:
            raise KeyboardInterrupt

    with pytest.raises(DfqsError):
        merge_inplace(plan, progress=interrupt)

    assert run(["merge", str(shards[0]), "-o", str(tmp_path / "other.gguf")]) == 2
    assert f"A merge of these shards to {out} is unfinished" in capsys.readouterr().err
    assert run(["merge", str(shards[0]), "-o", str(out), "--consume"]) == 0
    assert_tensors(out)


def test_abort_on_the_command_line_says_what_was_put_back(
    shards: list[Path], tmp_path: Path, mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished(shards, tmp_path / "out.gguf", mode)

    assert run(["merge", str(shards[0]), "-o", str(tmp_path / "out.gguf"), "--abort"]) == 0
    assert "all shards are as they were before the merge" in capsys.readouterr().out
    assert run(["merge", str(shards[0]), "-o", str(tmp_path / "out.gguf"), "--abort"]) == 2


def test_both_modes_at_once_are_a_usage_error(shards: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["merge", str(shards[0]), "--in-place", "--consume"]) == 2


def test_window_so_small_that_every_byte_would_wait_for_the_disk_is_refused(
    shards: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["merge", str(shards[0]), "--consume", "--window", "1"]) == 2
    assert "at least 1MiB" in capsys.readouterr().err
    assert all(path.exists() for path in shards)


def test_ctrl_c_during_consume_says_how_to_go_on(shards: list[Path], tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None = None, note: str = "") -> None:
        raise KeyboardInterrupt

    plan = plan_inplace(plan_merge(shards[0]), tmp_path / "out.gguf", "consume", window_bytes=100_000)
    with pytest.raises(DfqsError, match=r"interrupted; nothing is lost\. The same command goes on") as caught:
        merge_inplace(plan, progress=interrupt)
    assert caught.value.exit_code == 130

    resume_merge(shards[0], tmp_path / "out.gguf", "consume")
    assert_tensors(tmp_path / "out.gguf")


@pytest.mark.thorough
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
