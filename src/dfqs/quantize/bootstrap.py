"""Intervals for means of per-token numbers, whose neighbours are not independent.

Losses of neighbouring tokens go up and down together, so tokens are not resampled one by one but in blocks of
consecutive ones. Two models are compared on the same tokens, pair by pair: what makes a passage hard for both cancels.
Source: the block bootstrap (Kunsch 1989; Efron and Tibshirani 1993, chapter 8), percentile intervals.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_TOKENS = 64
RESAMPLES = 4000
SEED = 20240
COVERAGE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its interval."""

    mean: float
    low: float | None
    """None with fewer than two blocks: one observation has no interval."""
    high: float | None
    tokens: int
    blocks: int

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval: for a difference, whether the two are told apart."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def estimate_mean(values: NDArray[np.floating], block_tokens: int = BLOCK_TOKENS) -> Estimate:
    """Mean of `values` (in text order) with a 95 % block-bootstrap interval; the same for the same values.

    The last block is as long as the others: what is left over at the end joins the mean, not the resampling.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        raise ValueError("no values to take a mean of")
    blocks = len(values) // block_tokens
    if blocks < 2:
        return Estimate(float(values.mean()), None, None, len(values), blocks)
    means = values[: blocks * block_tokens].reshape(blocks, block_tokens).mean(axis=1)
    chosen = np.random.default_rng(SEED).integers(0, blocks, (RESAMPLES, blocks))
    resampled = means[chosen].mean(axis=1)
    low, high = np.quantile(resampled, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Estimate(float(values.mean()), float(low), float(high), len(values), blocks)


def estimate_difference(
    values: NDArray[np.floating], baseline: NDArray[np.floating], block_tokens: int = BLOCK_TOKENS
) -> Estimate:
    """Mean of `values - baseline`, token by token (paired), with its interval.

    Raises:
        ValueError: they are not of the same tokens.
    """
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} values cannot be paired with {len(baseline)}")
    return estimate_mean(np.asarray(values, np.float64) - np.asarray(baseline, np.float64), block_tokens)
