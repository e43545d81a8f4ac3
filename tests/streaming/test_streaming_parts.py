"""The parts of streaming by themselves: where pages lie, which expert is given up, and reads that fail."""

import ctypes
import mmap
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfqs.errors import RuntimeFailure
from dfqs.gguf import GGMLType, TensorSource, read_header, string, u32, write_gguf
from dfqs.streaming.layout import PAGE_BYTES, PageRange, plan_layout
from dfqs.streaming.pages import MappedFiles
from dfqs.streaming.policy import DecayedFrequency, HeldKeys, simulate_cache
from dfqs.streaming.reader import Arrival, PageReader


@pytest.mark.thorough
@given(
    lengths=st.lists(st.integers(1, 9000), min_size=1, max_size=6),
    experts=st.integers(1, 5),
    alignment=st.sampled_from([32, 4096]),
    vocabulary=st.integers(1, 5000),
    tied=st.booleans(),
)
def test_every_page_of_the_data_either_stays_or_streams_with_one_expert_and_none_is_lost(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    experts: int,
    alignment: int,
    vocabulary: int,
    tied: bool,
) -> None:
    path = tmp_path_factory.mktemp("layout") / "m.gguf"
    heads = ["token_embd.weight", *([] if tied else ["output.weight"])]
    tensors = [TensorSource(name, (3, vocabulary), GGMLType.F32, partial(_zeroes, vocabulary * 12)) for name in heads]
    for index, length in enumerate(lengths):
        kind = ("gate", "up", "down")[index % 3]
        shape = (length, 1, experts)
        name = f"blk.{index // 3}.ffn_{kind}_exps.weight"
        tensors += [
            TensorSource(f"blk.{index}.attn_q.weight", (8, 3), GGMLType.F32, lambda: iter([bytes(96)])),
            TensorSource(name, shape, GGMLType.F32, partial(_zeroes, length * experts * 4)),
        ]
    keys = [string("general.architecture", "x"), u32("general.alignment", alignment)]
    write_gguf(path, keys, tensors, alignment=alignment)
    header = read_header(path)
    layout = plan_layout([header])

    streamed = [pages for expert in layout.experts.values() for pages in expert.ranges]
    pages = sorted([*streamed, *layout.resident, *layout.tables], key=lambda pages: pages.offset)
    position = header.data_offset // PAGE_BYTES * PAGE_BYTES
    for part in pages:
        assert part.offset == position
        assert part.offset % PAGE_BYTES == part.length % PAGE_BYTES == 0
        position += part.length
    assert 0 <= position - header.file_size < PAGE_BYTES
    # Embeddings that are the output too are multiplied with, all of them.
    embeddings = header.span(header.tensor("token_embd.weight"))
    assert not (tied and layout.tables)
    assert all(
        embeddings.offset <= part.offset and part.offset + part.length <= embeddings.offset + embeddings.length
        for part in layout.tables
    )
    assert tied or sum(part.length for part in layout.tables) > embeddings.length - 2 * PAGE_BYTES
    for tensor in layout.tensors:
        span = header.span(header.tensor(tensor.name))
        size = span.length // experts
        kinds = [layout.experts[(tensor.layer, e)].ranges for e in range(experts)]
        for expert, ranges in enumerate(kinds):
            start = span.offset + expert * size
            inside = [r for r in ranges if start <= r.offset and r.offset + r.length <= start + size]
            assert len(inside) == 1, tensor.name


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), min_size=1, max_size=80))
def test_the_victim_is_the_key_whose_decayed_frequency_is_lowest(touches: list[tuple[int, int]]) -> None:
    policy: DecayedFrequency[int] = DecayedFrequency(half_life=3.0)
    uses: dict[int, list[int]] = {}
    now = 0
    for key, step in touches:
        now += step
        policy.touch(key, now)
        uses.setdefault(key, []).append(now)

    def frequency(key: int) -> float:
        return float(sum(2.0 ** ((then - now) / 3.0) for then in uses[key]))

    keep = {touches[-1][0]}
    victim = policy.take_victim(keep)
    rest = {key: frequency(key) for key in uses if key not in keep}
    if not rest:
        assert victim is None
    else:
        assert victim is not None
        assert rest[victim] == pytest.approx(min(rest.values()))
        assert policy.take_victim({*uses} - {victim}) is None


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True), min_size=1, max_size=40),
    st.lists(st.integers(1, 9), min_size=10, max_size=10),
    st.integers(0, 40),
)
def test_what_is_held_is_never_more_than_the_budget_and_what_is_wanted_together_stays_together(
    wanted: list[list[int]], lengths: list[int], budget: int
) -> None:
    sizes = dict(enumerate(lengths))
    keys: HeldKeys[int] = HeldKeys(sizes, budget)
    held: set[int] = set()
    for now, together in enumerate(wanted):
        for placement in keys.place(together, now):
            assert (placement.key in held) == (placement.how == "held")
            assert not set(placement.victims) & set(together)
            assert held >= set(placement.victims)
            held -= set(placement.victims)
            if placement.how == "brought":
                held.add(placement.key)
        assert {key for key in sizes if key in keys} == held
        assert keys.used_bytes == sum(sizes[key] for key in held) <= budget
        without = [key for key in together if key not in held]
        kept = sum(sizes[key] for key in together if key in held)
        assert all(kept + sizes[key] > budget for key in without) or len(without) > 1


def test_a_simulated_cache_counts_by_hand() -> None:
    sizes = {(0, 0): 10, (0, 1): 10, (0, 2): 10, (1, 0): 10}
    passes = [[(0, [0, 1]), (1, [0])], [(0, [0, 2]), (1, [0, 7])], [(0, [0, 2]), (1, [0])]]

    # Room for three: 0:1, used once and longest ago, makes room for 0:2. Expert 7 of layer 1 does not stream.
    three = simulate_cache(sizes, 30, passes)
    assert (three.passes, three.hits, three.misses, three.uncached, three.read_bytes) == (3, 5, 4, 0, 40)
    assert three.hit_rate == 5 / 9
    assert simulate_cache(sizes, 30, passes, warm_passes=2).read_bytes == 0
    none = simulate_cache(sizes, 0, passes)
    assert (none.hits, none.misses, none.uncached, none.read_bytes) == (0, 9, 9, 90)
    assert simulate_cache(sizes, 0, []).bytes_per_pass is None


def test_a_read_behind_the_end_of_a_file_fails_in_a_sentence_and_is_no_zeroes(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"\x11" * (4 * PAGE_BYTES))
    memory = mmap.mmap(-1, 4 * PAGE_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    reader = PageReader([path], threads=2)
    try:
        whole = Arrival(1)
        reader.start(PageRange(0, 0, 4 * PAGE_BYTES), address, whole)
        whole.wait()
        assert memory[:] == b"\x11" * (4 * PAGE_BYTES)

        path.write_bytes(b"\x11" * PAGE_BYTES)
        cut = Arrival(1)
        reader.start(PageRange(0, 2 * PAGE_BYTES, PAGE_BYTES), address, cut)
        with pytest.raises(RuntimeFailure, match=r"m\.bin cannot be read at byte 8,192: it became shorter \(4,096"):
            cut.wait()
        with pytest.raises(RuntimeFailure, match="it became shorter"):
            reader.require_unchanged()
    finally:
        reader.close()


def test_memory_is_moved_with_its_contents_and_leaves_no_hole_in_the_map(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"\x11" * (8 * PAGE_BYTES))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    files = MappedFiles([path])
    source, target = PageRange(0, PAGE_BYTES, 2 * PAGE_BYTES), PageRange(0, 4 * PAGE_BYTES, 2 * PAGE_BYTES)
    ctypes.memset(files.lay_over(source), 0x22, source.length)

    for moved in (partial(files.move, source, target), partial(files.move, target, source)):
        address = moved()
        assert ctypes.string_at(address, source.length) == b"\x22" * source.length
        assert mapped[:].count(b"\x11") == 6 * PAGE_BYTES
    files.uncover(source)
    assert mapped[:] == b"\x11" * (8 * PAGE_BYTES)
    files.close()


def _zeroes(count: int) -> Iterator[bytes]:
    return iter([bytes(count)])
