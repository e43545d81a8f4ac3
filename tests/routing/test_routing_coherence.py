"""Agreement between traces: hand-computed values, exact ones for equal traces, refusals that say what differs."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfqs.errors import UsageError
from dfqs.routing.coherence import (
    bin_start,
    chosen_weights,
    compare_headers,
    context_bins,
    diff_traces,
    divergence,
    jaccard,
    measure_coherence,
    router_distribution,
    uniform_chance_jaccard,
)
from dfqs.routing.trace import Trace, TraceChunk
from routing_traces import make_chunk, make_header, make_trace, write


def with_ids(chunk: TraceChunk, ids: Any) -> TraceChunk:
    return TraceChunk(chunk.prompt, chunk.position, chunk.tokens, ids, chunk.probabilities, chunk.selection)


def test_jaccard_by_hand() -> None:
    a = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2], [2, 1, 0]], np.uint8)
    b = np.array([[2, 0, 1], [0, 1, 9], [7, 8, 9], [3, 2, 4]], np.uint8)

    assert jaccard(a, b).tolist() == [1.0, 2 / 4, 0.0, 1 / 5]


@pytest.mark.parametrize(("experts", "used"), [(4, 1), (6, 2), (6, 5), (8, 8)])
def test_uniform_chance_is_the_mean_over_all_pairs_of_sets(experts: int, used: int) -> None:
    sets = [set(s) for s in itertools.combinations(range(experts), used)]
    mean = sum(len(a & b) / len(a | b) for a in sets for b in sets) / len(sets) ** 2

    assert math.isclose(uniform_chance_jaccard(experts, used), mean)


def test_a_trace_against_itself_gives_exactly_one(tmp_path: Path) -> None:
    header = make_header(4, 16, 4, scores=("probabilities",), hash_layers=(0,))
    path = write(tmp_path / "a.route", make_trace(header, 300, 70))

    diff = diff_traces(path, path)

    for found in (diff.overall, *diff.by_layer, *diff.by_context):
        assert (found.jaccard, found.same_set, found.top1, found.weight_overlap) == (1.0, 1.0, 1.0, 1.0)
        assert found.kl_nats == 0.0
        assert found.above_chance == 1.0
    assert diff.overall.decisions == 370 * 3, "the hash-routed layer does not count"
    assert diff.tokens == 370


def test_unrelated_routing_is_at_chance_on_the_corrected_scale(tmp_path: Path) -> None:
    header = make_header(3, 16, 4, scores=("probabilities",))
    a = make_trace(header, 3000, seed=1, skew=0.1)
    b = Trace(
        header,
        (TraceChunk(0, 0, a.chunks[0].tokens, make_chunk(header, 3000, 2, skew=0.1).ids, a.chunks[0].probabilities),),
    )

    diff = diff_traces(write(tmp_path / "a", a), write(tmp_path / "b", b))

    assert diff.overall.above_chance == pytest.approx(0, abs=0.01)
    assert diff.overall.jaccard > diff.uniform_chance_jaccard + 0.02, "unequal loads agree more often by chance"


def test_agreement_is_counted_where_it_is_by_layer_and_by_context(tmp_path: Path) -> None:
    header = make_header(2, 8, 2)
    chunk = make_chunk(header, 200)
    ids = chunk.ids.copy()
    ids[1, 128:] = (ids[1, 128:] + 4) % 8
    ids[1, 128:].sort(axis=-1)
    moved = with_ids(chunk, ids)
    same = jaccard(chunk.ids, ids)

    diff = diff_traces(write(tmp_path / "a", Trace(header, (chunk,))), write(tmp_path / "b", Trace(header, (moved,))))

    assert diff.by_layer[0].jaccard == 1.0
    assert diff.by_layer[1].jaccard == pytest.approx(same[1].mean())
    assert [(c.start, c.stop, c.decisions) for c in diff.by_context] == [(0, 64, 128), (64, 128, 128), (128, 256, 144)]
    assert [c.jaccard for c in diff.by_context[:2]] == [1.0, 1.0]
    assert diff.by_context[2].jaccard == pytest.approx(same[:, 128:].mean())


def test_context_bins_double() -> None:
    positions = np.array([0, 63, 64, 127, 128, 255, 256, 1_000_000])

    assert context_bins(positions).tolist() == [0, 0, 1, 1, 2, 2, 3, 14]
    assert all(
        bin_start(int(b)) <= p < bin_start(int(b) + 1) for p, b in zip(positions, context_bins(positions), strict=True)
    )


def test_weights_of_the_chosen_sum_to_one_and_divergence_is_kullback_and_leibler_s() -> None:
    p = np.array([0.5, 0.25, 0.125, 0.125], np.float32)
    q = np.array([0.25, 0.25, 0.25, 0.25], np.float32)

    assert chosen_weights(p[None], np.array([[0, 1]])).tolist() == [[2 / 3, 1 / 3, 0, 0]]
    assert divergence(p[None], q[None])[0] == pytest.approx(0.5 * math.log(2) - 2 * 0.125 * math.log(2))
    assert router_distribution(np.array([[-1.0, 0.0]], np.float32))[0].sum() == pytest.approx(1), "logits: a softmax"
    assert router_distribution(np.array([[3.0, 1.0]], np.float32)).tolist() == [[0.75, 0.25]], "sigmoids: a share"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"architecture": "qwen3moe"}}, "architectures differ"),
        ({"model": {"experts_used": 3}}, "numbers of experts used differ"),
        ({"experts": 16}, "numbers of experts differ"),
        ({"layers": 4}, "numbers of layers differ"),
        ({"hash_layers": (0,)}, "hash-routed layers differ"),
        ({"model": {"header_sha256": "d" * 64, "router_sha256": "e" * 64}}, "weights of their routers differ"),
        ({"model": {"header_sha256": "d" * 64, "tokenizer_sha256": "f" * 64}}, "different tokenizers"),
    ],
)
def test_traces_of_different_models_are_refused_by_what_differs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare_headers(make_header(), make_header(**changes))


def test_two_quantizations_of_one_model_are_accepted_and_an_unproved_one_is_said() -> None:
    assert compare_headers(make_header(), make_header(model={"header_sha256": "d" * 64})) == ()
    unproved = compare_headers(make_header(), make_header(model={"header_sha256": "d" * 64, "router_sha256": None}))
    assert "not proved" in unproved[0]


def test_different_tokens_are_refused_with_the_place(tmp_path: Path) -> None:
    header = make_header()
    a, b = write(tmp_path / "a", make_trace(header, 9, seed=1)), write(tmp_path / "b", make_trace(header, 9, seed=2))

    with pytest.raises(UsageError, match=r"different tokens: prompt 0, position 0 holds token"):
        diff_traces(a, b)


def test_coherence_falls_as_noise_on_the_router_grows() -> None:
    header = make_header(4, 16, 4, scores=("probabilities",))
    reference = make_chunk(header, 500)
    assert reference.probabilities is not None
    noise = np.random.default_rng(5).normal(size=reference.probabilities.shape)
    found = []
    for strength in (0.0, 0.05, 0.2, 0.8, 3.0):
        noisy = np.exp(np.log(reference.probabilities) + strength * noise)
        p = (noisy / noisy.sum(-1, keepdims=True)).astype(np.float32)
        ids = np.argsort(-p, axis=-1, kind="stable")[..., :4].astype(np.uint8)
        tally = measure_coherence(header, [(reference, TraceChunk(0, 0, reference.tokens, ids, p))])
        found.append(tally.over(list(range(4)), list(range(26))))

    for name in ("jaccard", "same_set", "top1", "weight_overlap"):
        values: list[Any] = [row[name] for row in found]
        assert values == sorted(values, reverse=True) and len(set(values)) == 5, name
    divergences: list[Any] = [row["kl_nats"] for row in found]
    assert divergences == sorted(divergences)
