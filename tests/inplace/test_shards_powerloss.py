"""Power cut after every single operation of a merge that consumes its shards, with what was not synced lost or kept.

After each cut the same command is given again (and cut again, now and then); at the end every tensor must have its
bytes. At every instant each tensor must be durable somewhere; a cut that could not be recovered would show as an error.
"""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from dfqs.errors import DfqsError, IntegrityError, SpaceError
from dfqs.gguf import BytesSource, read_header
from dfqs.inplace.execute import Place, begin, carry_on, undo
from dfqs.inplace.job import State
from dfqs.inplace.journal import Journal, journal_path
from dfqs.inplace.plan_consume import plan_consume
from dfqs.inplace.plan_resident import JobPlan, plan_in_place
from dfqs.shards import plan_merge
from dfqs.shards.plan import MergePlan
from memory_disk import MemoryDisk, PowerLoss
from shard_inputs import array_entry, payload, text, tiny_entries, tiny_tensors, write_shards

WINDOW = 5000
"""Bytes; not a multiple of a block, so that windows end inside blocks and tensors."""
MODES = [
    "in-place-vocabulary",
    "in-place-first",
    "in-place-middle",
    "in-place-last",
    "in-place-single",
    "in-place-delete",
    "consume",
    "consume-delete",
    "consume-elsewhere",
]


@dataclass
class Case:
    """A merge of tiny shards on a disk in memory, in one mode."""

    plan: MergePlan
    job: JobPlan
    place: Place
    shards: dict[Path, bytes]

    def disk(self, power_fails_at: int | None = None, half: float | None = None) -> MemoryDisk:
        disk = MemoryDisk(power_fails_at, half)
        for path, data in self.shards.items():
            disk.add(path, data)
        return disk

    def run(self, disk: MemoryDisk) -> None:
        """What the command does: go on with what is unfinished, or begin."""
        journal = Journal.open(disk, self.place.out)  # type: ignore[arg-type]
        if journal is not None and journal.position.state < State.READY:
            undo(disk, journal, self.place)  # type: ignore[arg-type]
            self.assert_shards_whole(disk)
            journal = None
        if journal is None:
            if self.place.out in disk.paths():
                return
            self.assert_shards_whole(disk)
            journal = begin(disk, self.job, self.place)  # type: ignore[arg-type]
        carry_on(disk, journal, self.place, window_bytes=WINDOW)  # type: ignore[arg-type]

    def assert_shards_whole(self, disk: MemoryDisk) -> None:
        for path, data in self.shards.items():
            assert disk.contents(path) == data, f"{path.name} was not put back"

    def assert_merged(self, disk: MemoryDisk) -> None:
        assert disk.paths() == {self.place.out}
        data = disk.contents(self.place.out)
        header = read_header(BytesSource(data))
        assert [tensor.name for tensor in header.tensors] == [name for name, _, _ in tiny_tensors()]
        for name, shape, type_ in tiny_tensors():
            span = header.span(header.tensor(name))
            assert data[span.offset : span.end] == payload(name, shape, type_), name

    def assert_no_model_before_its_time(self, disk: MemoryDisk) -> None:
        """Whatever has the output's name is whole, and the working file is not taken for a model before it is."""
        if self.place.out in disk.paths():
            read_header(BytesSource(disk.contents(self.place.out)))


@pytest.fixture(params=MODES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    tensors = tiny_tensors()
    groups = {
        "in-place-vocabulary": [tensors[:3], tensors[3:5], tensors[5:]],
        "in-place-first": [tensors[:3], tensors[3:5], tensors[5:]],
        "in-place-single": [tensors],
        "in-place-middle": [tensors[:1], tensors[1:5], tensors[5:]],
        "in-place-last": [tensors[:1], tensors[1:3], tensors[3:]],
    }.get(request.param, [tensors[:2], tensors[2:4], tensors[4:]])
    entries = tiny_entries()
    if request.param == "in-place-vocabulary":
        # A header of several blocks, so that the gap is inserted inside it and most of it stays.
        entries.append(array_entry("tokenizer.ggml.tokens", 8, [text(f"token {number}") for number in range(600)]))
    paths = write_shards(tmp_path, entries, groups)
    plan = plan_merge(paths[0])
    freeing: Literal["delete", "punch"] = "delete" if request.param.endswith("delete") else "punch"
    if request.param.startswith("in-place"):
        job = plan_in_place(plan, 4096, freeing)
        assert (job.job.resident is not None and job.job.resident.insert_at >= 8192) == (request.param == MODES[0])
        expected = {"vocabulary": 0, "first": 0, "middle": 1, "last": 2}.get(request.param.rpartition("-")[2])
        assert job.job.resident is not None
        assert expected is None or job.job.resident.shard == expected
    else:
        job = plan_consume(plan, freeing)
    out = tmp_path / ("elsewhere" if request.param.endswith("elsewhere") else "") / "out.gguf"
    return Case(plan, job, Place(out, tmp_path), {path: path.read_bytes() for path in paths})


def operations(case: Case) -> int:
    disk = case.disk()
    case.run(disk)
    case.assert_merged(disk)
    return len(disk.log)


def cut(case: Case, disk: MemoryDisk) -> bool:
    """Run until the power goes; False when it did not."""
    try:
        case.run(disk)
    except PowerLoss:
        return True
    return False


@pytest.mark.thorough
def test_every_cut_with_unsynced_writes_lost_ends_in_the_same_tensors(case: Case) -> None:
    for point in range(operations(case)):
        disk = case.disk(power_fails_at=point)
        assert cut(case, disk)
        after = disk.crash(None)
        case.assert_no_model_before_its_time(after)
        case.run(after)
        case.assert_merged(after)


@pytest.mark.thorough
def test_every_cut_with_all_writes_kept_ends_in_the_same_tensors_as_after_kill_9(case: Case) -> None:
    for point in range(operations(case)):
        disk = case.disk(power_fails_at=point)
        assert cut(case, disk)
        after = disk.crash(None, keep_all=True)
        case.assert_no_model_before_its_time(after)
        case.run(after)
        case.assert_merged(after)


@pytest.mark.thorough
def test_every_cut_with_some_unsynced_writes_on_disk_and_others_not(case: Case) -> None:
    for point in range(operations(case)):
        for seed in range(3):
            disk = case.disk(power_fails_at=point)
            assert cut(case, disk)
            after = disk.crash(random.Random(f"{point}/{seed}"))
            case.run(after)
            case.assert_merged(after)


class Forgetful(MemoryDisk):
    """Does not sync one directory."""

    forgotten: Path

    def sync_directory(self, directory: Path) -> None:
        if directory != self.forgotten:
            super().sync_directory(directory)


@pytest.mark.thorough
@pytest.mark.parametrize("case", ["consume-elsewhere"], indirect=True)
@pytest.mark.parametrize("which", ["shards", "output"])
def test_replay_sees_that_a_directory_was_not_synced(case: Case, which: str) -> None:
    def run(power_fails_at: int | None) -> None:
        disk = Forgetful(power_fails_at)
        disk.forgotten = case.place.shards if which == "shards" else case.place.out.parent
        for path, data in case.shards.items():
            disk.add(path, data)
        cut(case, disk)
        after = disk.crash(None)
        case.run(after)
        case.assert_merged(after)

    with pytest.raises((AssertionError, DfqsError, OSError)):
        for point in range(operations(case)):
            run(point)
        run(None)


@pytest.mark.thorough
def test_cut_again_while_recovering(case: Case) -> None:
    total = operations(case)
    generator = random.Random(17)
    for point in range(0, total, 2):
        disk = case.disk(power_fails_at=point)
        assert cut(case, disk)
        for _ in range(4):
            disk = disk.crash(random.Random(generator.random()))
            disk.power_fails_at = generator.randrange(1, max(total // 3, 2))
            disk.half = generator.random()
            if not cut(case, disk):
                break
        else:
            disk = disk.crash(None)
            case.run(disk)
        case.assert_merged(disk)


@pytest.mark.thorough
def test_gap_that_was_inserted_or_removed_half_way_is_found_and_taken_out(case: Case) -> None:
    if case.job.job.resident is None or case.job.job.resident.gap == 0:
        pytest.skip("only a merge in place of several shards has a gap")
    disk = case.disk()
    case.run(disk)
    insertion = next(index for index, what in enumerate(disk.log) if what.startswith("insert"))
    for part in range(11):
        disk = case.disk(power_fails_at=insertion, half=part / 10)
        assert cut(case, disk)
        # ... and the removal of the gap is cut half-way too.
        disk = disk.crash(None)
        collapse = 0
        for again in range(11):
            disk.power_fails_at, disk.half = collapse, again / 10
            cut(case, disk)
            disk = disk.crash(None)
        case.run(disk)
        case.assert_merged(disk)


@pytest.mark.thorough
def test_undo_before_anything_was_freed_gives_back_every_byte(case: Case) -> None:
    total = operations(case)
    undone = refused = 0
    for point in range(1, total):
        for keep_all in (False, True):
            disk = case.disk(power_fails_at=point)
            assert cut(case, disk)
            after = disk.crash(None, keep_all=keep_all)
            journal = Journal.open(after, case.place.out)  # type: ignore[arg-type]
            if journal is None:
                continue
            if journal.position.may_have_freed:
                with pytest.raises(DfqsError, match=r"cannot be undone: .* only\. Nothing is lost|only names remain"):
                    undo(after, journal, case.place)  # type: ignore[arg-type]
                refused += 1
                journal.close()
                case.run(after)
                case.assert_merged(after)
            else:
                undo(after, journal, case.place)  # type: ignore[arg-type]
                case.assert_shards_whole(after)
                assert after.paths() == set(case.shards)
                undone += 1
    assert undone > 5 and refused > 5


def test_undo_that_is_cut_itself_is_finished_by_the_next(case: Case) -> None:
    disk = case.disk()
    begin(disk, case.job, case.place)  # type: ignore[arg-type]
    ready = disk.crash(None)
    for point in range(40):
        after = ready.crash(None)
        after.power_fails_at, after.half = point, (point % 11) / 10
        journal = Journal.open(after, case.place.out)  # type: ignore[arg-type]
        assert journal is not None
        try:
            undo(after, journal, case.place)  # type: ignore[arg-type]
        except PowerLoss:
            after = after.crash(random.Random(point))
            if (journal := Journal.open(after, case.place.out)) is not None:  # type: ignore[arg-type]
                undo(after, journal, case.place)  # type: ignore[arg-type]
        case.assert_shards_whole(after)


@pytest.mark.thorough
def test_disk_that_is_full_at_any_write_loses_nothing_and_goes_on_when_there_is_room(case: Case) -> None:
    disk = case.disk()
    case.run(disk)
    shards_blocks = case.disk().used_blocks()
    full = 0
    for extra in range(1, 60, 3):
        disk = case.disk()
        disk.capacity_blocks = shards_blocks + extra
        try:
            case.run(disk)
        except SpaceError as error:
            assert "Nothing is lost" in str(error) or "run the same command again" in str(error)
            full += 1
        except OSError:
            # The journal itself found no room: nothing has begun.
            case.assert_shards_whole(disk)
            full += 1
        # The process that failed is gone, and its locks with it.
        disk = disk.crash(None, keep_all=True)
        case.run(disk)
        case.assert_merged(disk)
    assert full > 3


def test_shard_replaced_while_the_merge_was_unfinished_is_not_merged(case: Case) -> None:
    copies = case.job.job.copies
    if not copies:
        pytest.skip("nothing is moved")
    disk = case.disk()
    journal = begin(disk, case.job, case.place)  # type: ignore[arg-type]
    path = case.place.shards / case.job.job.sources[copies[-1].shard].name
    disk.unlink(path)
    disk.add(path, hashlib.shake_128(b"another").digest(len(case.shards[path])))

    with pytest.raises(IntegrityError, match=r"is not the file that this merge began with"):
        carry_on(disk, journal, case.place, window_bytes=WINDOW)  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["flip", "cut-first", "version"])
def test_damaged_journal_is_refused_and_nothing_is_changed(case: Case, damage: str) -> None:
    disk = case.disk(power_fails_at=operations(case) - 8)
    assert cut(case, disk)
    disk = disk.crash(None, keep_all=True)
    path = journal_path(case.place.out)
    data = bytearray(disk.contents(path))
    if damage == "flip":
        data[data.index(b"\n") + 30] ^= 1
    elif damage == "cut-first":
        data[3] ^= 1
    else:
        text = data.split(b"\n")[0].split(b" ", 1)[1].replace(b"journal/3", b"journal/9")
        data = bytearray(hashlib.sha256(text).hexdigest()[:16].encode() + b" " + text + b"\n")
    disk.unlink(path)
    disk.add(path, bytes(data))
    before = {name: disk.contents(name) for name in disk.paths()}

    with pytest.raises(IntegrityError, match=r"damaged|format"):
        case.run(disk)

    assert {name: disk.contents(name) for name in disk.paths()} == before
