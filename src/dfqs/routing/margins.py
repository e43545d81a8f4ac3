"""Router margins: by how little the last chosen expert was chosen, and what that says about flips.

A perturbation moves every router score a little; the set of experts changes where that is enough to carry an expert
over the edge. So the flip rate of a text can be forecast from its own scores and from noise measured on another text,
without running the text under the perturbation.

Scores are compared as the router's logits, where noise adds: the logarithm for softmax routers, the scores themselves
for others, and wherever experts are chosen in groups, whose scores add up.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dfqs.records import Record
from dfqs.routing.runs import same_sets

Rows = NDArray[np.float64]
"""[layers, tokens, experts]"""
Groups = tuple[int, int] | None
"""Groups of experts, and how many of them may be chosen from; None: all experts may."""
WORTH_EXPERTS = 2
"""A group counts by the sum of so many best experts."""

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
DRAWS = 8
HISTOGRAM_BINS = 60
_DISTRIBUTION_TOLERANCE = 1e-3


class MarginLayer(Record):
    """Margins of one layer: quantiles over tokens, in logits (or in scores, for routers that are not softmax)."""

    layer: int
    quantiles: tuple[float, ...]
    """At `QUANTILES`."""


class FlipForecast(Record):
    """Flip rate under one perturbation: forecast for a text from noise fitted on another, and observed on it."""

    perturbation: str
    fitted_on: str
    tested_on: str
    decisions: int
    """Layers x tokens of the tested text; hash-routed layers left out."""
    predicted: float
    observed: float
    observed_flips: int

    @property
    def ratio(self) -> float | None:
        return self.predicted / self.observed if self.observed else None


def router_logits(scores: NDArray[np.floating]) -> Rows:
    """Scores as numbers to which noise adds: log-probabilities where each row sums to one, else the scores."""
    rows = np.asarray(scores, np.float64)
    if rows.min(initial=0.0) >= 0 and np.abs(rows.sum(-1) - 1).max(initial=0.0) < _DISTRIBUTION_TOLERANCE:
        # An expert whose probability underflowed to 0 is far from being chosen, by whatever amount.
        return np.log(np.maximum(rows, np.finfo(np.float32).tiny))
    return rows


def mask_groups(rows: Rows, groups: Groups) -> Rows:
    """Scores with -inf for every expert that does not belong to its token's best groups."""
    if groups is None:
        return rows
    grouped = rows.reshape(*rows.shape[:-1], groups[0], -1)
    worth = np.sort(grouped, axis=-1)[..., -WORTH_EXPERTS:].sum(-1)
    best = np.argsort(-worth, axis=-1, kind="stable")[..., : groups[1]]
    kept = np.zeros(worth.shape, np.bool_)
    np.put_along_axis(kept, best, True, axis=-1)
    return np.where(kept[..., None], grouped, -np.inf).reshape(rows.shape)


def choose_experts(rows: Rows, used: int, groups: Groups = None) -> NDArray[np.int64]:
    """The `used` experts of the highest scores, best first; of equal scores the lower number. [..., used]"""
    rows = mask_groups(rows, groups)
    return np.argsort(-rows, axis=-1, kind="stable")[..., :used]


def measure_margins(rows: Rows, used: int) -> NDArray[np.float64]:
    """Score of the last expert chosen less that of the first not chosen. [layers, tokens]

    Raises:
        ValueError: every expert is used, so there is no choice.
    """
    experts = rows.shape[-1]
    if used >= experts:
        raise ValueError("every expert is used: there is no choice and no margin")
    ordered = np.partition(rows, (experts - used - 1, experts - used), axis=-1)
    return np.asarray(ordered[..., experts - used] - ordered[..., experts - used - 1])


def describe_margins(margins: NDArray[np.float64], layers: Sequence[int]) -> tuple[MarginLayer, ...]:
    """Quantiles of each layer's margins."""
    table = np.quantile(margins, QUANTILES, axis=1)
    return tuple(
        MarginLayer(layer=layer, quantiles=tuple(float(q) for q in table[:, row])) for row, layer in enumerate(layers)
    )


def histogram_of_margins(margins: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Counts and edges of all margins, edges evenly spaced in the logarithm; zeros count in the first."""
    finite = margins[np.isfinite(margins)]
    positive = finite[finite > 0]
    low, high = (positive.min(), positive.max()) if positive.size else (1.0, 2.0)
    edges = np.geomspace(low, max(high, low * 2) * (1 + 1e-9), HISTOGRAM_BINS + 1)
    counts, edges = np.histogram(np.maximum(finite, edges[0]), edges)
    return counts.astype(np.int64), edges


def measure_noise(reference: Rows, perturbed: Rows) -> Rows:
    """What a perturbation added to every score."""
    with np.errstate(invalid="ignore"):
        noise = perturbed - reference
    # Both -inf: an expert masked out in both runs.
    return np.where(np.isfinite(noise), noise, 0.0)


def forecast_flips(
    rows: Rows, noise: Rows, used: int, *, groups: Groups = None, draws: int = DRAWS, seed: int = 0
) -> NDArray[np.float64]:
    """Share of decisions that would fall differently, for each layer, if noise like this were added.

    Noise vectors (all experts of one token together) are drawn from the same layer of the text they were measured on.
    Assumes that noise does not depend on the margin it meets.
    """
    rng = np.random.default_rng(seed)
    layers, tokens = rows.shape[:2]
    chosen = choose_experts(rows, used, groups)
    flips = np.zeros(layers)
    for _ in range(draws):
        picks = rng.integers(0, noise.shape[1], (layers, tokens))
        moved = rows + np.take_along_axis(noise, picks[..., None], axis=1)
        flips += (~same_sets(chosen, choose_experts(moved, used, groups))).mean(axis=1)
    return flips / draws


def forecast_and_observe(
    name: str,
    fitted_on: tuple[str, Rows, Rows],
    tested_on: tuple[str, Rows, Rows],
    used: int,
    groups: Groups = None,
) -> FlipForecast:
    """Forecast flips on one text from noise on another, and count them.

    Args:
        fitted_on, tested_on: a text's name, its scores under the reference, and its scores under the perturbation.
    """
    noise = measure_noise(fitted_on[1], fitted_on[2])
    _, rows, perturbed = tested_on
    flipped = ~same_sets(choose_experts(rows, used, groups), choose_experts(perturbed, used, groups))
    return FlipForecast(
        perturbation=name,
        fitted_on=fitted_on[0],
        tested_on=tested_on[0],
        decisions=flipped.size,
        predicted=float(forecast_flips(rows, noise, used, groups=groups).mean()),
        observed=float(flipped.mean()),
        observed_flips=int(flipped.sum()),
    )
