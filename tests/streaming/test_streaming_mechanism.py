"""How streaming is chosen from what the machine is, and that the kernel's limit on maps is kept, not met."""

import ctypes
import mmap
import os
from dataclasses import replace
from pathlib import Path

import pytest

from dfqs.errors import SpaceError
from dfqs.gguf import read_header
from dfqs.runtime.loading import Mapped
from dfqs.runtime.memory import MemoryNeed
from dfqs.streaming import mechanism, surroundings
from dfqs.streaming.budget import Streamed
from dfqs.streaming.layout import PAGE_BYTES, PageRange, plan_layout
from dfqs.streaming.mechanism import Choice, Cuts, DirectReads, Mechanism, StreamFacts, choose_mechanism
from dfqs.streaming.pages import MappedFiles
from dfqs.streaming.surroundings import find_mount, is_cached, probe_direct_reads
from streaming_plans import plan_load
from v4_flash_stub import write_v4_flash_stub

GB = 1_000_000_000


def count_maps() -> int:
    """Mappings that this process has; the kernel allows `vm.max_map_count`."""
    return len(Path("/proc/self/maps").read_bytes().splitlines())


PLAIN = StreamFacts(
    system="linux",
    file_system="ext4",
    is_dax=False,
    direct=DirectReads.WORK,
    map_limit=65_530,
    cuts=Cuts(slices=3_072, parts=3_100, borders=3_024, files=1),
    expert_slices=3,
    least_experts=4,
)
MANY = Cuts(slices=33_024, parts=33_100, borders=32_895, files=1)


@pytest.mark.parametrize(
    ("facts", "chosen", "reason"),
    [
        (PLAIN, Choice(Mechanism.CACHE), None),
        (replace(PLAIN, map_limit=None, cuts=MANY), Choice(Mechanism.CACHE), None),
        (replace(PLAIN, file_system=None), Choice(Mechanism.CACHE), None),
        (replace(PLAIN, file_system="nfs4"), Mechanism.CACHE, "the file comes over a network (nfs4)"),
        (replace(PLAIN, file_system="fuse.sshfs"), Mechanism.CACHE, "over a network (fuse.sshfs)"),
        (replace(PLAIN, file_system="fuse.sshfs", direct=DirectReads.REFUSED), Mechanism.HINTS, "fuse.sshfs does not"),
        (replace(PLAIN, file_system="fuseblk"), Choice(Mechanism.CACHE), None),
        (replace(PLAIN, system="darwin"), Mechanism.WHOLE, "on Linux only, not on darwin"),
        (replace(PLAIN, file_system="tmpfs"), Mechanism.WHOLE, "in memory already (tmpfs)"),
        (replace(PLAIN, file_system="tmpfs", direct=DirectReads.REFUSED), Mechanism.WHOLE, "in memory already"),
        (replace(PLAIN, file_system="ramfs"), Mechanism.WHOLE, "in memory already (ramfs)"),
        (replace(PLAIN, is_dax=True), Mechanism.WHOLE, "(ext4, mounted with dax)"),
        (replace(PLAIN, file_system="ecryptfs", direct=DirectReads.REFUSED), Mechanism.HINTS, "ecryptfs does not"),
        (replace(PLAIN, file_system="btrfs", direct=DirectReads.IGNORED), Mechanism.HINTS, "btrfs puts into the page"),
        (replace(PLAIN, file_system=None, direct=DirectReads.REFUSED), Mechanism.HINTS, "this file system does not"),
        (
            replace(PLAIN, cuts=MANY),
            Mechanism.CACHE,
            "allows 10,186 experts at a time (sysctl -w vm.max_map_count=70124",
        ),
        (replace(PLAIN, map_limit=4_700), Mechanism.CACHE, "which allows 91 experts at a time"),
        (replace(PLAIN, map_limit=4_100), Mechanism.HINTS, "vm.max_map_count is 4,100, too few for a cache"),
        (replace(PLAIN, map_limit=100), Mechanism.HINTS, "vm.max_map_count is 100, too few"),
    ],
)
def test_what_the_machine_is_decides_how_experts_stream_and_the_reason_is_said(
    facts: StreamFacts, chosen: Choice | Mechanism, reason: str | None
) -> None:
    choice = choose_mechanism(facts)

    if isinstance(chosen, Choice):
        assert choice == chosen
    assert choice.mechanism is (chosen.mechanism if isinstance(chosen, Choice) else chosen)
    if reason is None:
        assert choice.reason is None
    else:
        assert choice.reason is not None
        assert reason in choice.reason
    if not choice.copies_borders:
        assert facts.cuts.most + mechanism.MAP_RESERVE > (facts.map_limit or 0)


@pytest.mark.thorough
def test_the_reference_model_streams_within_the_usual_limit_of_maps_and_says_what_that_costs(tmp_path: Path) -> None:
    stub = write_v4_flash_stub(tmp_path / "v4.gguf")
    header = read_header(stub)
    layout = plan_layout([header])
    cuts = Cuts.of(layout)
    # Slices of three matrices, 256 experts, 43 layers; none of them begins at a page.
    assert cuts.slices == 3 * 256 * 43
    assert 3 * 255 * 43 <= cuts.borders < cuts.parts
    assert cuts.most > 65_530
    weights = sum(tensor.length for tensor in header.tensors)
    need = MemoryNeed(8192, weights, 90 << 20, 300 << 20, 1 << 20)
    facts = replace(PLAIN, cuts=cuts, least_experts=6)

    def plan(ram: int) -> tuple[Streamed, str]:
        made = plan_load((header,), (stub,), need, 6, ram, lambda _: choose_mechanism(facts))
        assert isinstance(made.order, Streamed)
        return made.order, made.describe() or ""

    order, line = plan(16 * GB)
    assert not order.settings.copies_borders
    assert "16.0 GB in all; vm.max_map_count is 65,530, which allows 10," in line
    whole, _ = plan(62 * GB)
    held = whole.settings.cache_bytes // max(pages.length for pages in layout.experts.values())
    assert held < 10_300 < len(layout.experts) == 11_008
    assert 3 * held * 2 + 2 * (cuts.parts - cuts.borders) + 1 + mechanism.MAP_RESERVE <= 65_530


@pytest.mark.thorough
def test_a_file_in_memory_is_used_where_it_lies_and_needs_no_room_for_itself(tmp_path: Path) -> None:
    stub = write_v4_flash_stub(tmp_path / "v4.gguf")
    header, need = read_header(stub), MemoryNeed(8192, 62 * GB, 90 << 20, 300 << 20, 1 << 20)

    def in_memory(_: object) -> Choice:
        return choose_mechanism(replace(PLAIN, file_system="tmpfs"))

    plan = plan_load((header,), (stub,), need, 6, 2 * GB, in_memory)
    assert plan.order == Mapped()
    assert plan.total_bytes < 1 * GB
    assert plan.describe() == "loading it where it lies; the file is in memory already (tmpfs)"
    with pytest.raises(
        SpaceError, match=r"it needs 6\d\d MB .* 500 MB may be used; it is not streamed, because the fi"
    ):
        plan_load((header,), (stub,), need, 6, 500_000_000, in_memory)


@pytest.mark.thorough
def test_on_another_system_a_model_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path) -> None:
    stub = write_v4_flash_stub(tmp_path / "v4.gguf")
    header, need = read_header(stub), MemoryNeed(8192, 62 * GB, 90 << 20, 300 << 20, 1 << 20)

    with pytest.raises(SpaceError, match=r"it needs 62\.\d GB .* because pages can be exchanged .* not on darwin"):
        plan_load((header,), (stub,), need, 6, 16 * GB, lambda _: choose_mechanism(replace(PLAIN, system="darwin")))


def test_reads_past_the_page_cache_are_tried_and_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.bin"
    with path.open("wb") as file:
        file.write(os.urandom(64 * PAGE_BYTES))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with path.open("rb") as file:
        assert not is_cached(file.fileno(), 5 * PAGE_BYTES)
        assert not is_cached(file.fileno(), 5 * PAGE_BYTES), "looking has read it"
        assert probe_direct_reads(path) is DirectReads.WORK
        file.read(64 * PAGE_BYTES)
        assert is_cached(file.fileno(), 5 * PAGE_BYTES)
    assert probe_direct_reads(Path("/proc/cpuinfo")) is DirectReads.REFUSED
    assert probe_direct_reads(tmp_path / "nothing") is DirectReads.REFUSED
    # A file system that takes the flag and reads through the page cache all the same, as ones that compress do.
    monkeypatch.setattr(os, "O_DIRECT", 0)
    assert probe_direct_reads(path) is DirectReads.IGNORED
    monkeypatch.delattr(os, "O_DIRECT")
    assert probe_direct_reads(path) is DirectReads.REFUSED


def test_the_mount_of_a_file_is_the_longest_one_above_it_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    models = tmp_path / "my models"
    models.mkdir()
    escaped = os.fsencode(models).replace(b" ", b"\\040")
    lines = [
        b"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw",
        b"28 27 0:44 / " + escaped + b" rw shared:4 master:2 - btrfs /dev/vdb rw,compress=zstd:3",
        b"29 27 0:45 / " + escaped + b"2 rw - tmpfs tmpfs rw",
    ]
    table.write_bytes(b"\n".join(lines) + b"\n")
    monkeypatch.setattr(surroundings, "_MOUNTS", table)

    found = find_mount(models / "m.gguf")
    assert found is not None
    assert (found.file_system, found.device) == ("btrfs", "0:44")
    assert "compress=zstd:3" in found.options
    other = find_mount(tmp_path / "m.gguf")
    assert other is not None
    assert other.file_system == "ext4"
    table.write_bytes(table.read_bytes() + b"30 28 0:50 / " + escaped + b" ro - fuse.sshfs user@host:/m ro,user_id=0\n")
    far = find_mount(models / "m.gguf")
    assert far is not None
    assert choose_mechanism(replace(PLAIN, file_system=far.file_system)).reason == (
        "the file comes over a network (fuse.sshfs)"
    )
    monkeypatch.setattr(surroundings, "_MOUNTS", tmp_path / "nothing")
    assert find_mount(models / "m.gguf") is None


def test_pieces_of_the_memory_map_are_joined_again_when_experts_are_given_up(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(os.urandom(400 * PAGE_BYTES))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    wanted = path.read_bytes()
    files = MappedFiles([path])
    before = count_maps()
    slices = [PageRange(0, start * PAGE_BYTES, 3 * PAGE_BYTES) for start in range(0, 400, 4)]
    for pages in slices:
        ctypes.memset(files.lay_over(pages), 0x33, pages.length)
    # Each slice, and the page behind it.
    assert before + 150 <= count_maps() <= before + 2 * len(slices) + 1
    assert mapped[: 3 * PAGE_BYTES] == b"\x33" * 3 * PAGE_BYTES
    assert mapped[3 * PAGE_BYTES : 4 * PAGE_BYTES] == wanted[3 * PAGE_BYTES : 4 * PAGE_BYTES]
    for source, target in zip(slices[::2], slices[1::2], strict=True):
        files.move(source, target)
    for pages in slices:
        files.uncover(pages)

    assert count_maps() <= before + 2
    assert mapped[:] == wanted
    files.close()
    mapped.close()
