"""Two merges at the same shards, and shards that change under a merge: nobody's freed bytes are taken for data."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dfqs.errors import DfqsError, ShardError, UsageError
from dfqs.inplace import abort_merge, is_unfinished, merge_inplace, plan_inplace
from dfqs.inplace.execute import Place, begin
from dfqs.inplace.job import Mode
from dfqs.inplace.journal import journal_path
from dfqs.shards import MergeResult, merge, plan_merge
from dfqs.storage.disk import LocalDisk
from inplace_cases import assert_tensors, insertable_fixture, make_shards, mode_fixture, shards_fixture  # noqa: F401 - fixtures
from shard_inputs import sha256

Merge = Callable[[], MergeResult]


class Meanwhile:
    """A progress callback that tries another merge once, in the middle of the first."""

    def __init__(self, other: Merge) -> None:
        self.other = other
        self.refusal: DfqsError | None = None

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        if self.refusal is None:
            with pytest.raises(UsageError) as refusal:
                self.other()
            self.refusal = refusal.value


def test_second_merge_that_uses_the_same_shards_up_is_refused(shards: list[Path], tmp_path: Path, mode: Mode) -> None:
    # Both looked at the shards before either began.
    first = plan_inplace(plan_merge(shards[0]), tmp_path / "a.gguf", mode, window_bytes=1 << 16)
    second = plan_inplace(plan_merge(shards[0]), tmp_path / "b.gguf", "consume", window_bytes=1 << 16)
    meanwhile = Meanwhile(lambda: merge_inplace(second))

    merge_inplace(first, progress=meanwhile)

    assert "another merge is at work on these shards" in str(meanwhile.refusal)
    assert_tensors(tmp_path / "a.gguf")
    assert not (tmp_path / "b.gguf").exists() and not is_unfinished(tmp_path / "b.gguf")


def test_plain_merge_does_not_read_shards_that_are_being_used_up(shards: list[Path], tmp_path: Path) -> None:
    first = plan_inplace(plan_merge(shards[0]), tmp_path / "a.gguf", "consume", window_bytes=1 << 16)
    second = plan_merge(shards[0])
    meanwhile = Meanwhile(lambda: merge(second, tmp_path / "b.gguf"))

    merge_inplace(first, progress=meanwhile)

    assert "a merge is using up these shards" in str(meanwhile.refusal)
    assert_tensors(tmp_path / "a.gguf")
    assert not (tmp_path / "b.gguf").exists()


def test_shards_that_a_plain_merge_reads_are_not_used_up(shards: list[Path], tmp_path: Path, mode: Mode) -> None:
    before = [sha256(path) for path in shards]
    second = plan_inplace(plan_merge(shards[0]), tmp_path / "b.gguf", mode)
    meanwhile = Meanwhile(lambda: merge_inplace(second))

    merge(plan_merge(shards[0]), tmp_path / "a.gguf", progress=meanwhile)

    assert "another merge is at work on these shards" in str(meanwhile.refusal)
    assert [sha256(path) for path in shards] == before
    assert_tensors(tmp_path / "a.gguf")


def test_two_plain_merges_read_the_same_shards(shards: list[Path], tmp_path: Path) -> None:
    plan = plan_merge(shards[0])

    def other(done: int, total: int | None = None, note: str = "") -> None:
        if not (tmp_path / "b.gguf").exists():
            merge(plan, tmp_path / "b.gguf")

    merge(plan, tmp_path / "a.gguf", progress=other)

    assert sha256(tmp_path / "a.gguf") == sha256(tmp_path / "b.gguf")


def overwrite_with_the_same_length(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    # Two writes can fall into one tick of the file system's clock.
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1_000_000_000))


def test_shard_written_to_after_it_was_planned_is_refused_and_nothing_is_begun(
    shards: list[Path], tmp_path: Path, mode: Mode
) -> None:
    plan = plan_inplace(plan_merge(shards[0]), tmp_path / "out.gguf", mode)
    overwrite_with_the_same_length(shards[1])
    before = [sha256(path) for path in shards]

    with pytest.raises(ShardError, match=r"00002-of-00003\.gguf.*was written to since"):
        merge_inplace(plan)

    assert [sha256(path) for path in shards] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_plain_merge_refuses_a_shard_written_to_after_it_was_planned(shards: list[Path], tmp_path: Path) -> None:
    plan = plan_merge(shards[0])
    overwrite_with_the_same_length(shards[2])

    with pytest.raises(ShardError, match=r"00003-of-00003\.gguf.*was written to since"):
        merge(plan, tmp_path / "out.gguf")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_unfinished_merge_is_not_undone_in_the_name_of_other_shards(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    plan = plan_inplace(plan_merge(shards[0]), out, "consume")
    begin(LocalDisk(), plan.job, Place(out, shards[0].parent)).close()
    other = shards[0].with_name("other-00001-of-00003.gguf")

    with pytest.raises(UsageError, match=rf"is of {shards[0].name}; give that"):
        abort_merge(other, out)

    assert is_unfinished(out)


def test_journal_that_another_process_is_about_to_write_is_not_written_over(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    plan = plan_inplace(plan_merge(shards[0]), out, "consume")
    journal_path(out).write_bytes(b"")

    with pytest.raises(UsageError, match=r"another merge to .* has begun"):
        merge_inplace(plan)

    assert journal_path(out).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.gguf.merge-journal"]
