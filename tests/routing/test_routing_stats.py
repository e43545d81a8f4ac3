"""Loads, pairs, working sets and stack distances, against counting by hand."""

import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dfqs.errors import UsageError
from dfqs.routing.reuse import StackDistances
from dfqs.routing.stats import StatsTally, aligned_blocks, entropy_bits, measure_stats
from dfqs.routing.trace import Trace, TraceChunk, join_chunks
from dfqs.routing.tracefile import write_trace
from routing_traces import make_chunk, make_header, make_trace, write


def lru_hits(ids: NDArray[np.generic], cache_blocks: int) -> int:
    """A cache played through, touch by touch."""
    cache: OrderedDict[tuple[int, int], None] = OrderedDict()
    hits = 0
    for token in range(ids.shape[1]):
        for layer in range(ids.shape[0]):
            for expert in ids[layer, token]:
                block = (layer, int(expert))
                hits += block in cache
                cache[block] = None
                cache.move_to_end(block)
                if len(cache) > cache_blocks:
                    cache.popitem(last=False)
    return hits


@given(st.integers(1, 4), st.integers(2, 9), st.integers(1, 3), st.integers(1, 200), st.integers(0, 99))
@settings(max_examples=40)
def test_stack_distances_predict_an_lru_cache_of_every_size(
    layers: int, experts: int, used: int, tokens: int, seed: int
) -> None:
    header = make_header(layers, experts, min(used, experts))
    ids = make_chunk(header, tokens, seed, skew=0.3).ids
    distances = StackDistances(layers, experts, min(used, experts))
    # In pieces, as a stream brings them.
    for start in range(0, tokens, 7):
        distances.add(ids[:, start : start + 7])

    for size in {1, 2, layers, layers * experts // 2 + 1, layers * experts}:
        assert distances.hits(size) == lru_hits(ids, size)
    assert distances.touches == ids.size
    assert distances.cold == len({(layer, int(e)) for layer in range(layers) for e in ids[layer].ravel()})
    assert distances.histogram.sum() + distances.cold == distances.touches


def test_distances_need_no_more_memory_for_a_longer_trace() -> None:
    header = make_header(2, 8, 2)
    distances = StackDistances(2, 8, 2)
    for seed in range(40):
        distances.add(make_chunk(header, 100, seed).ids)

    assert len(distances._order) == distances.blocks == 16


def test_loads_by_hand(tmp_path: Path) -> None:
    header = make_header(1, 4, 2, scores=("probabilities",))
    ids = np.array([[[0, 1], [0, 1], [0, 2], [0, 1]]], np.uint8)
    probabilities = np.full((1, 4, 4), 0.25, np.float32)
    trace = Trace(header, (TraceChunk(0, 0, np.arange(4, dtype=np.int32), ids, probabilities),))

    stats = measure_stats(write(tmp_path / "t.route", trace))

    layer = stats.layers[0]
    assert layer.counts == (4, 3, 1, 0)
    assert layer.entropy_bits == pytest.approx(0.5 * 1 + 3 / 8 * math.log2(8 / 3) + 1 / 8 * 3)
    assert layer.entropy_share == pytest.approx(layer.entropy_bits / 2)
    assert (layer.hot_experts, layer.unused_experts) == (1, 1)
    assert layer.unique_experts == (2.0, 3.0, None, None, None)
    assert stats.by_context[0].router_bits == 2.0
    assert stats.by_context[0].load_bits is None
    assert (stats.reuse.touches, stats.reuse.cold, stats.reuse.blocks) == (8, 3, 4)
    assert stats.reuse.hit_share[-1] == 5 / 8


def test_entropy_of_a_balanced_load_and_of_none() -> None:
    assert entropy_bits(np.full(8, 5)) == 3.0
    assert entropy_bits(np.array([9, 0, 0])) == 0.0
    assert entropy_bits(np.zeros(3, np.int64)) == 0.0


def test_pairs_that_go_together_are_found_with_their_lift() -> None:
    header = make_header(1, 6, 2)
    rng = np.random.default_rng(0)
    ids = np.array([[[0, 1] if rng.random() < 0.5 else sorted(rng.choice(range(2, 6), 2, False)) for _ in range(256)]])
    tally = StatsTally(header)
    tally.add(TraceChunk(0, 0, np.zeros(256, np.int32), ids.astype(np.uint8)))

    best = tally.describe_pairs()[0]

    both = int((ids[0] == [0, 1]).all(-1).sum())
    assert best.experts == (0, 1)
    assert best.tokens == both
    assert best.lift == pytest.approx(both / (both * both / 256))


def test_windows_do_not_depend_on_how_a_trace_was_cut(tmp_path: Path) -> None:
    header = make_header(2, 8, 2)
    whole = make_trace(header, 700, 300)
    parts = tuple(chunk.part(i, min(i + 37, len(chunk))) for chunk in whole.chunks for i in range(0, len(chunk), 37))

    a = measure_stats(write(tmp_path / "a", whole))
    b = measure_stats(write(tmp_path / "b", Trace(header, parts)))

    assert a.model_dump(exclude={"trace_sha256"}) == b.model_dump(exclude={"trace_sha256"})
    assert a.prompts == 2


def test_blocks_begin_at_multiples_of_256_of_each_prompt() -> None:
    trace = make_trace(make_header(), 600, 256, 3)

    blocks = list(aligned_blocks(trace.chunks))

    assert [(b.prompt, b.position, len(b)) for b in blocks] == [
        (0, 0, 256), (0, 256, 256), (0, 512, 88), (1, 0, 256), (2, 0, 3),
    ]  # fmt: skip
    assert np.array_equal(join_chunks([b for b in blocks if b.prompt == 0]).ids, trace.chunks[0].ids)


@pytest.mark.parametrize("layers, experts, used", [(2, 16_384, 1), (4096, 64, 32)])
def test_a_small_file_that_claims_a_huge_model_takes_no_huge_memory(
    layers: int, experts: int, used: int, tmp_path: Path
) -> None:
    header = make_header(layers, experts, used)
    ids = np.tile(np.arange(used, dtype=header.id_dtype), (layers, 1, 1))
    path = tmp_path / "t.route"
    write_trace(path, header, [TraceChunk(0, 0, np.zeros(1, np.int32), ids)])

    with pytest.raises(UsageError, match="more than can be counted in bounded memory"):
        measure_stats(path)
