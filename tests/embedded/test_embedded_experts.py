"""Experts out of a dense layer: on small layers whose right answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dfqs.embedded.dense import Float32, swiglu
from dfqs.embedded.experts import (
    ExpertLayer,
    balanced_assignment,
    balanced_k_means,
    cluster_neurons,
    expert_norms,
    fit_layer,
    fit_router,
    refit_down,
    top_k_mask,
)

TOKENS, WIDTH, EXPERTS, LENGTH = 400, 24, 4, 8


class Layer:
    """A dense layer whose neurons come in groups: the neurons of a group share a direction in the input, and a token
    points in one of these directions, so that one group answers it and the others hardly do."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        directions = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0][:EXPERTS]
        self.topic = rng.integers(EXPERTS, size=TOKENS)
        self.group = rng.permutation(np.repeat(np.arange(EXPERTS), LENGTH))
        noise = rng.standard_normal((3, EXPERTS * LENGTH, WIDTH)) * 0.05
        self.x = (directions[self.topic] * 4 + rng.standard_normal((TOKENS, WIDTH)) * 0.1).astype(np.float32)
        self.gate = (directions[self.group] + noise[0]).astype(np.float32)
        self.up = (directions[self.group] + noise[1]).astype(np.float32)
        self.down = rng.standard_normal((WIDTH, EXPERTS * LENGTH)).astype(np.float32)
        self.hidden = swiglu(self.x, self.gate, self.up)
        self.output: Float32 = self.hidden @ self.down.T

    def fit(self, used: int, seed: int = 0) -> tuple[ExpertLayer, Float32]:
        return fit_layer(self.x, self.hidden, self.output, self.down, EXPERTS, used, seed)


@pytest.fixture(scope="module")
def layer() -> Layer:
    return Layer()


def same_partition(a: NDArray[np.integer], b: NDArray[np.integer]) -> bool:
    """Whether two labellings group alike, whatever the groups are called."""
    return bool(((a[:, None] == a) == (b[:, None] == b)).all())


def test_all_experts_used_is_the_dense_layer_so_that_the_split_loses_nothing(layer: Layer) -> None:
    fitted, output = layer.fit(used=EXPERTS)

    np.testing.assert_allclose(output, layer.output, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fitted.down, layer.down, rtol=1e-4, atol=1e-4)
    assert fitted.relative_error < 1e-9


def test_neurons_that_answer_together_become_one_expert(layer: Layer) -> None:
    labels = cluster_neurons(layer.hidden, layer.down, np.ones(TOKENS, np.float32), EXPERTS, seed=3)

    assert same_partition(labels, layer.group)


def test_the_router_chooses_the_expert_that_answers(layer: Layer) -> None:
    fitted, output = layer.fit(used=1)

    chosen = (layer.x @ fitted.router.T).argmax(axis=1)
    assert same_partition(chosen, layer.topic)
    assert fitted.relative_error < 0.01
    assert np.linalg.norm(output - layer.output) < 0.1 * np.linalg.norm(layer.output)


def test_shares_say_how_often_each_expert_was_chosen(layer: Layer) -> None:
    fitted, _ = layer.fit(used=2)

    chosen = top_k_mask(layer.x @ fitted.router.T, 2)
    np.testing.assert_allclose(fitted.chosen_share, chosen.mean(axis=0) / 2)
    assert sum(fitted.chosen_share) == pytest.approx(1)


def test_fitting_twice_gives_the_same_bytes(layer: Layer) -> None:
    (first, first_output), (second, second_output) = layer.fit(2, seed=5), layer.fit(2, seed=5)

    assert first.labels.tobytes() == second.labels.tobytes()
    assert first.router.tobytes() == second.router.tobytes()
    assert first.down.tobytes() == second.down.tobytes()
    assert first_output.tobytes() == second_output.tobytes()


def test_refitting_comes_closer_to_the_dense_layer(layer: Layer) -> None:
    # A bad choice on purpose: neurons of every group in every expert, so that leaving one out loses something.
    labels = np.arange(EXPERTS * LENGTH) % EXPERTS
    mask = np.ones((TOKENS, EXPERTS), bool)
    mask[:, 0] = False
    weight = np.ones(TOKENS, np.float32)

    refitted = refit_down(layer.hidden, layer.down, labels, mask, weight, layer.output)

    routed = layer.hidden * mask[:, labels]
    before = np.linalg.norm(routed @ layer.down.T - layer.output)
    after = np.linalg.norm(routed @ refitted.T - layer.output)
    assert after < 0.5 * before


def test_the_router_is_the_ridge_regression_by_hand() -> None:
    # Orthogonal inputs of energy 4 and a ridge of 0.1 times the mean energy: weights shrink by 4 / (4 + 0.4).
    x = 2 * np.eye(3, dtype=np.float32)
    target = np.array([[1, 0], [0, 2], [-1, 1]], np.float32)

    np.testing.assert_allclose(fit_router(x, target), (2 * target / 4.4).T, rtol=1e-6)


def test_an_expert_s_contribution_is_the_length_of_what_it_adds() -> None:
    hidden = np.array([[3, 0, 1], [0, 2, 2]], np.float32)
    down = np.array([[1, 0, 0], [0, 1, 0]], np.float32)

    norms = expert_norms(hidden, down, np.array([0, 0, 1]), 2)

    np.testing.assert_allclose(norms, [[3, 0], [2, 0]])


@pytest.mark.thorough
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_experts_are_always_of_one_size(clusters: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    similarity = rng.integers(-2, 3, (clusters * size, clusters)).astype(np.float32)

    for labels in (balanced_assignment(similarity), balanced_k_means(similarity + 0.5, clusters, rng)):
        assert np.bincount(labels, minlength=clusters).tolist() == [size] * clusters


def test_whoever_would_lose_most_chooses_first() -> None:
    # Both prefer cluster 0; the second would lose 0.8 without it, the first 0.1.
    assert balanced_assignment(np.array([[0.9, 0.8], [0.9, 0.1]], np.float32)).tolist() == [1, 0]


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_exactly_k_are_chosen_and_none_that_scores_less_than_one_left_out(experts: int, k: int, seed: int) -> None:
    k = min(k, experts)
    scores = np.random.default_rng(seed).integers(-3, 4, (20, experts)).astype(np.float32)

    mask = top_k_mask(scores, k)

    assert (mask.sum(axis=1) == k).all()
    assert (np.where(mask, scores, np.inf).min(axis=1) >= np.where(mask, -np.inf, scores).max(axis=1)).all()


def test_ties_go_to_the_lower_index_so_that_a_fit_can_be_repeated() -> None:
    assert top_k_mask(np.zeros((1, 4), np.float32), 2).tolist() == [[True, True, False, False]]
