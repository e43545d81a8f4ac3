"""Comparing runs, telling a batch's sequences apart, and putting batches together as the server does."""

from collections.abc import Sequence

import numpy as np
import pytest

from dfqs.errors import RuntimeFailure
from dfqs.routing.load import _Slot, next_batch
from dfqs.routing.runs import Divergence, RoutingRun, compare_runs, join_runs
from dfqs.routing.tap import BatchToken, batch_order


def run(
    ids: Sequence[Sequence[Sequence[int]]], tokens: Sequence[int], logits: Sequence[int] | None = None
) -> RoutingRun:
    hashes = np.zeros((len(tokens), 16), np.uint8)
    hashes[:, 0] = logits if logits is not None else 1
    return RoutingRun((2, 5), np.array(tokens, np.int32), np.array(ids), hashes, hashes[:, 0].astype(np.int32))


A = [[[0, 1], [1, 2], [3, 0]], [[0, 1], [1, 2], [3, 0]]]


def test_order_within_a_set_does_not_count_and_the_first_divergence_is_the_earliest_token() -> None:
    b = [[[1, 0], [1, 2], [3, 1]], [[0, 1], [1, 3], [3, 0]]]

    found = compare_runs(run(A, [7, 8, 9]), run(b, [7, 8, 9], [1, 2, 1]))

    assert found.first_divergence == Divergence(token=1, layer=5)
    assert found.same_set_share == 4 / 6
    assert found.same_set_share_by_layer == (2 / 3, 2 / 3)
    assert not found.logits_identical
    assert found.argmax_share == 2 / 3
    assert not found.routing_identical


def test_what_a_layer_did_not_compute_is_neither_same_nor_different() -> None:
    a = [A[0], [[-1, -1], [-1, -1], [3, 0]]]

    found = compare_runs(run(a, [7, 8, 9]), run(a, [7, 8, 9]))

    assert found.same_set_share_by_layer == (1.0, 1.0)
    assert found.routing_identical


def test_answers_that_part_are_compared_up_to_there_and_are_not_identical() -> None:
    found = compare_runs(run(A, [7, 8, 9]), run(A, [7, 8, 5]))

    assert (found.tokens, found.same_tokens, found.first_divergence) == (2, False, None)
    assert not found.routing_identical


def test_parts_of_a_run_join_in_order() -> None:
    joined = join_runs([run(A, [7, 8, 9]), run(A, [1, 2, 3])])

    assert joined.tokens.tolist() == [7, 8, 9, 1, 2, 3]
    assert joined.ids.shape == (2, 6, 2)


def batch(*sequences: Sequence[int]) -> list[BatchToken]:
    return [BatchToken(token, i, s) for s, tokens in enumerate(sequences) for i, token in enumerate(tokens)]


def test_a_batch_cut_as_it_stands_keeps_its_order() -> None:
    assert batch_order(batch([5, 6, 7], [5, 8]), [[5, 6], [7, 5], [8]]).tolist() == [0, 1, 2, 3, 4]


def test_a_batch_cut_equally_is_put_back_in_order() -> None:
    # Two tokens of each sequence, then the rest of the longer one.
    assert batch_order(batch([5, 6, 7], [1, 8]), [[5, 6, 1, 8], [7]]).tolist() == [0, 1, 3, 4, 2]


def test_an_order_that_nothing_explains_is_refused_and_not_guessed() -> None:
    with pytest.raises(RuntimeFailure, match="not known"):
        batch_order(batch([5, 6, 7]), [[7, 6, 5]])
    with pytest.raises(RuntimeFailure, match="2 of 3 tokens"):
        batch_order(batch([5, 6, 7]), [[5, 6]])


def test_batches_are_the_server_s_newest_tokens_first_then_prompts_in_slot_order() -> None:
    talking = _Slot(2, 0, [1, 2], fed=2, answer=[77])
    waiting = [_Slot(0, 1, [10, 11, 12]), _Slot(1, 2, [20, 21])]

    first = next_batch([waiting[0], waiting[1], talking], 5, ())
    waiting[0].answer.append(50)
    second = next_batch([waiting[0], waiting[1]], 5, ())

    assert [(t.token, t.position, t.sequence, t.wants_logits) for t in first] == [
        (77, 2, 2, True), (10, 0, 0, False), (11, 1, 0, False), (12, 2, 0, True), (20, 0, 1, False),
    ]  # fmt: skip
    assert [(t.token, t.position, t.sequence, t.wants_logits) for t in second] == [(50, 3, 0, True), (21, 1, 1, True)]
    assert talking.fed == 3


def test_a_prompt_is_broken_before_its_end_where_the_server_keeps_a_checkpoint() -> None:
    slot = _Slot(0, 0, list(range(10)))

    lengths = [len(next_batch([slot], 2048, (516, 4))) for _ in range(2)]

    assert lengths == [6, 4]
