"""Margins, noise and forecasts, on scores whose answer is known."""

import numpy as np
import pytest

from dfqs.routing.margins import (
    choose_experts,
    describe_margins,
    forecast_and_observe,
    forecast_flips,
    mask_groups,
    measure_margins,
    measure_noise,
    router_logits,
)


def test_margin_is_the_gap_between_the_last_chosen_and_the_first_left_out() -> None:
    rows = np.array([[[4.0, 1.0, 3.5, 0.0], [1.0, 1.0, 1.0, 0.0]]])

    assert measure_margins(rows, 2).tolist() == [[2.5, 0.0]]
    assert measure_margins(rows, 3).tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match="every expert is used"):
        measure_margins(rows, 4)


def test_equal_scores_choose_the_lower_number_as_llama_cpp_does_for_few_experts() -> None:
    assert choose_experts(np.array([1.0, 3.0, 3.0, 3.0]), 2).tolist() == [1, 2]


def test_softmax_scores_become_logits_and_others_stay() -> None:
    p = np.array([[0.5, 0.25, 0.25, 0.0]], np.float32)
    assert router_logits(p)[0, :3] == pytest.approx(np.log([0.5, 0.25, 0.25]))
    assert np.isfinite(router_logits(p)).all()
    assert router_logits(np.array([[0.9, 0.8]])).tolist() == [[0.9, 0.8]]


def test_noise_of_masked_experts_is_none_and_not_a_nan() -> None:
    a, b = np.array([[[1.0, -np.inf]]]), np.array([[[1.5, -np.inf]]])

    assert measure_noise(a, b).tolist() == [[[0.5, 0.0]]]


def test_no_noise_forecasts_no_flips_and_great_noise_forecasts_chance() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(2, 4000, 6))

    assert forecast_flips(rows, np.zeros((2, 100, 6)), 2).tolist() == [0.0, 0.0]
    assert forecast_flips(rows, rng.normal(size=(2, 4000, 6)) * 1e6, 2) == pytest.approx(14 / 15, abs=0.01)


def test_a_forecast_meets_what_happens_when_noise_is_independent_of_margins() -> None:
    rng = np.random.default_rng(2)

    def text() -> tuple[np.ndarray, np.ndarray]:
        rows = rng.normal(size=(3, 3000, 8))
        return rows, rows + rng.normal(size=rows.shape) * 0.05

    found = forecast_and_observe("noise", ("a", *text()), ("b", *text()), 2)

    assert found.observed_flips > 300
    assert found.ratio == pytest.approx(1, abs=0.1)


def test_experts_outside_of_the_best_groups_cannot_be_chosen() -> None:
    """Three groups of three: the first has the best expert, and the other two the better pairs."""
    rows = np.array([[9.0, 0.0, 1.0, 6.0, 5.0, 0.0, 7.0, 4.0, 8.0]])

    assert np.isfinite(mask_groups(rows, (3, 2))).tolist() == [[False] * 3 + [True] * 6]
    assert choose_experts(rows, 2, (3, 2)).tolist() == [[8, 6]]
    assert choose_experts(rows, 2).tolist() == [[0, 8]]


def test_a_forecast_sees_flips_of_groups() -> None:
    rng = np.random.default_rng(4)

    def text() -> tuple[np.ndarray, np.ndarray]:
        rows = rng.normal(size=(3, 3000, 8))
        return rows, rows + rng.normal(size=rows.shape) * 0.05

    fitted, tested = ("a", *text()), ("b", *text())
    found = forecast_and_observe("noise", fitted, tested, 2, (4, 2))
    blind = forecast_flips(mask_groups(tested[1], (4, 2)), fitted[2] - fitted[1], 2).mean()

    assert found.ratio == pytest.approx(1, abs=0.1)
    assert blind < 0.75 * found.observed, "as it was when only the experts of the best groups were looked at"


def test_a_forecast_is_the_same_twice() -> None:
    rng = np.random.default_rng(3)
    rows, noise = rng.normal(size=(2, 50, 6)), rng.normal(size=(2, 40, 6))

    assert forecast_flips(rows, noise, 2).tolist() == forecast_flips(rows, noise, 2).tolist()


def test_nothing_observed_has_no_ratio() -> None:
    rows = np.arange(24.0).reshape(1, 4, 6)

    assert forecast_and_observe("none", ("a", rows, rows), ("b", rows, rows), 2).ratio is None


def test_quantiles_belong_to_their_layers() -> None:
    layers = describe_margins(np.array([[1.0, 1.0, 1.0], [5.0, 5.0, 5.0]]), [3, 7])

    assert [(layer.layer, layer.quantiles[2]) for layer in layers] == [(3, 1.0), (7, 5.0)]
