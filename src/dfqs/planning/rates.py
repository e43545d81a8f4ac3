"""What one unit of each kind of work takes, from the times of probes that all do several kinds: least squares. Pure."""

from collections.abc import Mapping, Sequence

import numpy as np

from dfqs.planning.work import Terms

Observed = tuple[Terms, float]
"""How much of each kind of work, and the seconds that all of it took."""
_SWEEPS = 20_000
_SETTLED = 1e-10


def solve_rates(observed: Sequence[Observed]) -> dict[str, float]:
    """Nanoseconds a unit, none below zero, with which the sums come nearest to the times; errors count by their share.

    Method: coordinate descent on the normal equations, each rate kept at zero or above (Franc, Hlavac and Navara 2005).
    """
    names = sorted({name for terms, _ in observed for name, amount in terms.items() if amount})
    shares = np.array([[terms.get(name, 0.0) / seconds for name in names] for terms, seconds in observed])
    scale = np.linalg.norm(shares, axis=0)
    shares = shares / scale
    gram, target = shares.T @ shares, shares.T @ np.ones(len(observed))
    rates = np.zeros(len(names))
    for _ in range(_SWEEPS):
        before = rates.copy()
        for i in range(len(names)):
            rates[i] = max(0.0, rates[i] - (gram[i] @ rates - target[i]) / gram[i, i])
        if np.abs(rates - before).max() < _SETTLED:
            break
    return {name: float(rate * 1e9) for name, rate in zip(names, rates / scale, strict=True)}


def seconds_of(terms: Terms, rates_ns: Mapping[str, float]) -> float:
    """Of so much work; every kind of it must have a rate."""
    return sum(amount * rates_ns[name] for name, amount in terms.items() if amount) / 1e9
