"""The layout of a pull against the merge it must become, and the journal against every place it can be torn."""

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfqs.errors import UsageError
from dfqs.gguf import GGMLType, parse_header
from dfqs.pull.hub import Listing, RemoteFile
from dfqs.pull.journal import PullJournal
from dfqs.pull.output import PullOutput, part_path
from dfqs.pull.plan import PullPlan, plan_pull_of
from dfqs.pull.selection import Choice
from dfqs.shards import merge, plan_merge
from hub_server import COMMIT
from shard_inputs import string_entry, u32_entry, write_shards

ENTRIES = [string_entry("general.architecture", "llama")]


def plan_of(shards: list[Path], alignment: int | None = None) -> PullPlan:
    files = tuple(RemoteFile(path.name, path.stat().st_size, "0" * 64, None) for path in shards)
    listing = Listing("http://hub", "o/n", "main", COMMIT, files, ())
    choice = Choice("model.gguf", files, len(files))
    return plan_pull_of(listing, choice, [parse_header(path) for path in shards], alignment=alignment)


def test_aligned_it_becomes_the_aligned_merge_and_has_a_journal_of_its_own(tmp_path: Path) -> None:
    tensors = [(f"t{i}.weight", (length,), GGMLType.F32) for i, length in enumerate((5, 90, 2000, 7))]
    shards = write_shards(tmp_path / "s", ENTRIES, [tensors[:2], tensors[2:]])
    merge(plan_merge(shards[0], alignment=4096), tmp_path / "merged.gguf")
    plain, plan = plan_of(shards), plan_of(shards, 4096)

    output = PullOutput(plan, tmp_path / "out.gguf")
    for layout, shard in zip(plan.layouts, shards, strict=True):
        output.write(layout, 0, shard.read_bytes())
    output.publish()
    output.close()

    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "merged.gguf").read_bytes()
    assert parse_header(tmp_path / "out.gguf").alignment == 4096
    assert plan.identity() != plain.identity()
    assert plan_of(shards, 32).file_bytes == plain.file_bytes
    with pytest.raises(UsageError, match="--align 100: a power of two"):
        plan_of(shards, 100)
    with pytest.raises(UsageError, match="is one file, which is fetched as it is"):
        plan_of([tmp_path / "merged.gguf"], 4096)


@pytest.mark.thorough
@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=2, max_size=9),
    cuts=st.lists(st.integers(0, 9), max_size=3),
    alignment=st.sampled_from([32, 64, 256]),
    seed=st.integers(0, 1000),
)
def test_bytes_written_in_any_order_and_cut_anywhere_become_the_merge_and_can_be_read_back_as_shards(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], cuts: list[int], alignment: int, seed: int
) -> None:
    directory = tmp_path_factory.mktemp("layout")
    tensors = [(f"t{i}.weight", (length,), GGMLType.F32) for i, length in enumerate(lengths)]
    edges = sorted({0, len(tensors), *(cut for cut in cuts if 0 < cut < len(tensors))})
    groups = [tensors[a:b] for a, b in itertools.pairwise(edges)]
    entries = ENTRIES if alignment == 32 else [*ENTRIES, u32_entry("general.alignment", alignment)]
    # Later shards carry no alignment of their own: gguf-split writes 32 there, whatever the first one says.
    shards = write_shards(directory / "s", entries, groups if alignment == 32 else [tensors], alignment=alignment)
    merge(plan_merge(shards[0]), directory / "merged.gguf")
    plan = plan_of(shards)
    chance = random.Random(seed)
    writes = []
    for layout, shard in zip(plan.layouts, shards, strict=True):
        data, position = shard.read_bytes(), 0
        while position < len(data):
            step = chance.randint(1, 200)
            writes.append((layout, position, data[position : position + step]))
            position += step
    chance.shuffle(writes)
    out = directory / "out.gguf"

    target = PullOutput(plan, out)
    for layout, position, piece in writes:
        target.write(layout, position, piece)
    read_back = [b"".join(target.read(layout, 0, layout.file.size)) for layout in plan.layouts]
    target.publish()
    target.close()

    assert read_back == [shard.read_bytes() for shard in shards]
    assert out.read_bytes() == (directory / "merged.gguf").read_bytes()


def test_a_model_under_way_has_no_magic_so_that_nothing_loads_it(tmp_path: Path) -> None:
    tensors = [("a.weight", (64,), GGMLType.F32), ("b.weight", (64,), GGMLType.F32)]
    shards = write_shards(tmp_path / "s", ENTRIES, [tensors[:1], tensors[1:]])
    plan = plan_of(shards)
    target = PullOutput(plan, tmp_path / "out.gguf")
    for layout, shard in zip(plan.layouts, shards, strict=True):
        target.write(layout, 0, shard.read_bytes())
    target.close()

    assert part_path(tmp_path / "out.gguf").read_bytes()[:4] == bytes(4)


def write_journal(path: Path) -> None:
    journal = PullJournal(path)
    journal.start({"what": 1}, {"repo": "o/n"}, 65536)
    for chunk in range(3):
        journal.record_chunk(0, chunk, f"{chunk:064x}")
    journal.record_dropped(0, 1)
    journal.record_verified(0)
    journal.close()


@pytest.mark.thorough
def test_a_journal_torn_at_any_byte_claims_no_more_than_was_written_and_goes_on(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    write_journal(whole)
    data = whole.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    expected = {1: set(), 2: {0}, 3: {0, 1}, 4: {0, 1, 2}, 5: {0, 2}, 6: {0, 2}}
    torn = tmp_path / "torn"
    for cut in range(len(data) + 1):
        torn.write_bytes(data[:cut])
        lines = sum(end <= cut for end in ends)

        journal = PullJournal(torn)
        known = journal.start({"what": 1}, {"repo": "o/n"}, 65536)
        journal.record_chunk(7, 7, "f" * 64)
        journal.close()
        again = PullJournal(torn)
        after = again.start({"what": 1}, {"repo": "o/n"}, 65536)
        again.close()

        assert {chunk for _, chunk in known.chunks} == expected.get(lines, set()), cut
        assert known.verified == ({0} if lines == 6 else set())
        assert (7, 7) in after.chunks


def test_a_flipped_bit_in_the_journal_ends_it_there(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path)
    data = bytearray(path.read_bytes())
    third = [i for i, byte in enumerate(data) if byte == 10][1] + 20
    data[third] ^= 1
    path.write_bytes(bytes(data))

    journal = PullJournal(path)
    known = journal.start({"what": 1}, {"repo": "o/n"}, 65536)
    journal.close()

    assert set(known.chunks) == {(0, 0)}
    assert known.verified == set()


def test_a_journal_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path)
    before = path.read_bytes()
    journal = PullJournal(path)

    with pytest.raises(UsageError, match=r"another pull .*o/n.*--restart"):
        journal.start({"what": 2}, {"repo": "x/y"}, 65536)
    journal.close()

    assert path.read_bytes() == before
