"""Shards that somebody writes to or replaces while a merge uses shards up: never merged, and never deleted.

At every window the merge makes bytes durable, asks whether the shard is still what it was, and only then frees.
"""

import mmap
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dfqs.errors import DfqsError, IntegrityError, ShardError
from dfqs.inplace import merge_inplace, plan_inplace, resume_merge
from dfqs.inplace.job import Mode
from dfqs.inplace.journal import Journal, working_path
from dfqs.shards import merge, plan_merge
from dfqs.storage.disk import LocalDisk
from inplace_cases import assert_tensors, insertable_fixture, make_shards, mode_fixture, shards_fixture  # noqa: F401 - fixtures
from shard_inputs import sha256

WINDOW = 1 << 16
Change = Callable[[Path], None]


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xaa" * 1000)


def overwrite_and_put_the_time_back(path: Path) -> None:
    state = path.stat()
    overwrite(path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def replace(path: Path) -> None:
    state = path.stat()
    other = path.with_name("other")
    shutil.copyfile(path, other)
    overwrite(other)
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(path)


def overwrite_through_a_mapping(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[path.stat().st_size // 2] ^= 1


CHANGES = [overwrite, overwrite_and_put_the_time_back, replace, overwrite_through_a_mapping]
changes = pytest.mark.parametrize("change", CHANGES)


class Once:
    """A progress callback that does something once, behind the first window."""

    def __init__(self, do: Callable[[], None], after: int = WINDOW) -> None:
        self.do, self.after, self.done = do, after, False

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        if done > self.after and not self.done:
            self.done = True
            self.do()


def interrupt() -> None:
    raise KeyboardInterrupt


def left(shards: list[Path]) -> list[Path]:
    """Shards that still have a name, the one under way first."""
    return [path for path in shards if path.exists()]


@changes
@pytest.mark.parametrize("which", [0, -1])
def test_shard_changed_while_another_or_it_is_copied_is_neither_merged_nor_deleted(
    change: Change, which: int, shards: list[Path], tmp_path: Path, mode: Mode
) -> None:
    plan = plan_inplace(plan_merge(shards[0]), tmp_path / "out.gguf", mode, window_bytes=WINDOW)
    changed: list[tuple[Path, str]] = []

    def do() -> None:
        victim = left(shards)[which]
        change(victim)
        changed.append((victim, sha256(victim)))

    with pytest.raises(IntegrityError, match=r"changed while|moved or replaced|is not the file that this merge began"):
        merge_inplace(plan, progress=Once(do))

    assert sha256(changed[0][0]) == changed[0][1]
    assert not (tmp_path / "out.gguf").exists()


@changes
def test_shard_changed_between_a_kill_and_the_resume_is_neither_merged_nor_deleted(
    change: Change, shards: list[Path], tmp_path: Path, mode: Mode
) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(DfqsError, match="interrupted"):
        merge_inplace(plan_inplace(plan_merge(shards[0]), out, mode, window_bytes=WINDOW), progress=Once(interrupt))
    victim = left(shards)[-1]
    change(victim)
    before = sha256(victim)

    with pytest.raises(IntegrityError, match=r"is not the file that this merge began with.*--trust-shards"):
        resume_merge(shards[0], out, mode)

    assert sha256(victim) == before
    assert not out.exists()


def test_shard_put_back_from_a_copy_is_merged_when_its_user_says_so(
    shards: list[Path], tmp_path: Path, mode: Mode
) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(DfqsError, match="interrupted"):
        merge_inplace(plan_inplace(plan_merge(shards[0]), out, mode, window_bytes=WINDOW), progress=Once(interrupt))
    victim = left(shards)[-1]
    shutil.copyfile(victim, tmp_path / "copy")
    (tmp_path / "copy").replace(victim)

    with pytest.raises(IntegrityError, match="--trust-shards"):
        resume_merge(shards[0], out, mode)
    resume_merge(shards[0], out, mode, trust_shards=True)

    assert_tensors(out)


def test_trusted_shard_of_another_size_is_still_refused(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(DfqsError, match="interrupted"):
        merge_inplace(
            plan_inplace(plan_merge(shards[0]), out, "consume", window_bytes=WINDOW), progress=Once(interrupt)
        )
    os.truncate(shards[-1], shards[-1].stat().st_size - 1)

    with pytest.raises(IntegrityError, match="is not the file that this merge began with"):
        resume_merge(shards[0], out, "consume", trust_shards=True)

    assert shards[-1].exists()


def test_shard_whose_hash_is_known_is_looked_at_when_it_was_touched(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    plan = plan_inplace(plan_merge(shards[0]), out, "consume", window_bytes=WINDOW)
    with pytest.raises(DfqsError, match="interrupted"):
        merge_inplace(plan, hash_first=True, progress=Once(interrupt))
    shards[-1].chmod(0o600)

    resume_merge(shards[0], out, "consume")

    assert_tensors(out)


def test_file_put_where_a_used_up_shard_was_is_left_and_named(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    size = shards[0].stat().st_size

    def put_there() -> None:
        shards[0].unlink()
        shards[0].write_bytes(b"\1" * size)

    plan = plan_inplace(plan_merge(shards[0]), out, "consume", window_bytes=WINDOW)
    result = merge_inplace(plan, progress=Once(put_there, after=size + WINDOW))

    assert_tensors(out)
    assert result.left == (shards[0],)
    assert shards[0].read_bytes() == b"\1" * size


def test_working_file_put_in_place_of_ours_is_not_published(shards: list[Path], tmp_path: Path, mode: Mode) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(DfqsError, match="interrupted"):
        merge_inplace(plan_inplace(plan_merge(shards[0]), out, mode, window_bytes=WINDOW), progress=Once(interrupt))
    shutil.copyfile(working_path(out), tmp_path / "copy")
    (tmp_path / "copy").replace(working_path(out))

    with pytest.raises(IntegrityError, match="is not the file that this merge made"):
        resume_merge(shards[0], out, mode)

    assert left(shards)


@pytest.mark.parametrize("name", ["shard", "journal", "working"])
def test_second_name_for_a_file_of_an_unfinished_merge_is_refused(
    name: str, shards: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(DfqsError, match="interrupted"):
        merge_inplace(
            plan_inplace(plan_merge(shards[0]), out, "consume", window_bytes=WINDOW), progress=Once(interrupt)
        )
    target = {"shard": shards[-1], "journal": tmp_path / "out.gguf.merge-journal", "working": working_path(out)}[name]
    os.link(target, tmp_path / "second")
    before = sha256(target)

    with pytest.raises(DfqsError, match=r"names now|is a link|is not the file"):
        resume_merge(shards[0], out, "consume")

    assert sha256(target) == before


@pytest.mark.parametrize("change", [overwrite, overwrite_and_put_the_time_back, replace])
def test_shard_changed_between_planning_and_copying_is_refused_in_every_mode(
    change: Change, shards: list[Path], tmp_path: Path, mode: Mode
) -> None:
    plain = plan_merge(shards[0])
    inplace = plan_inplace(plain, tmp_path / "out.gguf", mode, window_bytes=WINDOW)
    change(shards[1])
    before = [sha256(path) for path in shards]

    with pytest.raises(ShardError, match=r"00002-of-00003.*(was written to|was changed|is another file)"):
        merge_inplace(inplace)
    with pytest.raises(ShardError, match=r"00002-of-00003.*(was written to|was changed|is another file)"):
        merge(plain, tmp_path / "out.gguf")

    assert [sha256(path) for path in shards] == before
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@changes
def test_shard_changed_while_a_plain_merge_copies_it_is_refused(
    change: Change, shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfqs.storage.copying.CHUNK_BYTES", WINDOW)
    plan = plan_merge(shards[0])

    with pytest.raises(ShardError, match=r"was written to|was changed|is another file"):
        merge(plan, tmp_path / "out.gguf", progress=Once(lambda: change(shards[-1])))

    assert not (tmp_path / "out.gguf").exists()


def test_bytes_that_differ_from_the_hash_known_of_them_stop_the_merge_until_its_user_says_so(
    shards: list[Path], tmp_path: Path
) -> None:
    record = shards[1].parent / ".cache/huggingface/download" / f"{shards[1].name}.metadata"
    record.parent.mkdir(parents=True)
    record.write_text(f"{'a' * 40}\n{'b' * 64}\n1.0\n")
    out = tmp_path / "out.gguf"

    with pytest.raises(IntegrityError, match="are not those with the SHA-256 that was known"):
        merge_inplace(plan_inplace(plan_merge(shards[0]), out, "consume"))
    before = sha256(shards[1])
    with pytest.raises(IntegrityError, match="are not those with the SHA-256 that was known"):
        resume_merge(shards[0], out, "consume")

    assert sha256(shards[1]) == before
    resume_merge(shards[0], out, "consume", trust_shards=True)
    assert_tensors(out)


def test_stamps_of_our_own_freeing_are_in_the_journal(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(DfqsError, match="interrupted"):
        merge_inplace(
            plan_inplace(plan_merge(shards[0]), out, "consume", window_bytes=WINDOW), progress=Once(interrupt)
        )
    journal = Journal.open(LocalDisk(), out)

    assert journal is not None
    state = shards[0].stat()
    assert journal.position.stamps[0][-1].changed_ns == state.st_ctime_ns
    assert journal.job.sources[0].stamp is not None
    assert journal.job.sources[0].stamp.modified_ns == state.st_mtime_ns
    journal.close()


@pytest.mark.parametrize("which", ["shard", "working file"])
def test_file_that_another_process_has_open_for_writing_stops_the_merge(
    which: str, shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfqs.inplace.unchanged.WAIT_FOR_OTHERS_S", 0.1)
    out = tmp_path / "out.gguf"
    holders: list[subprocess.Popen[bytes]] = []

    def hold() -> None:
        with (shards[-1] if which == "shard" else working_path(out)).open("r+b") as file:
            holders.append(subprocess.Popen(["sleep", "60"], stdin=file))

    plan = plan_inplace(plan_merge(shards[0]), out, "consume", window_bytes=WINDOW)
    with pytest.raises(IntegrityError, match="is open in another process"):
        merge_inplace(plan, progress=Once(hold))
    assert shards[-1].exists()
    holders[0].kill()
    holders[0].wait()

    resume_merge(shards[0], out, "consume")
    assert_tensors(out)
