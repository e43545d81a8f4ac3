"""Log-probabilities of tokens, from logits: what scoring a text comes down to. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

ROWS = 16
"""Rows of logits worked on at a time: a vocabulary of 129,280 in float64 is a megabyte a row."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """How probable one token was, given all before it."""

    token: int
    logprob: float
    """Natural logarithm; minus infinity of a token that the model rules out."""
    is_greedy: bool
    """Whether it is the most probable one (of equal ones the first): what greedy decoding chooses."""
    top: tuple[tuple[int, float], ...] = ()
    """`(token, log-probability)` of the most probable ones, as many as were asked for, most probable first."""


def score_rows(logits: Float32, targets: Sequence[int], top: int = 0) -> Iterator[TokenScore]:
    """Scores of `targets`, each by its row of `logits` [targets, vocabulary].

    log p(t) = logit(t) - log(sum over the vocabulary of exp(logit)), in float64 from float32 logits.

    Args:
        top: how many of the most probable tokens to tell of each row.
    """
    for first in range(0, len(targets), ROWS):
        rows = logits[first : first + ROWS]
        best = rows.argmax(axis=1)
        normalizers = log_normalizers(rows)
        for row, token, greedy, normalizer in zip(rows, targets[first : first + ROWS], best, normalizers, strict=True):
            chosen = most_probable(row, min(top, len(row))) if top else ()
            alternatives = tuple((int(other), float(row[other]) - float(normalizer)) for other in chosen)
            yield TokenScore(token, float(row[token]) - float(normalizer), bool(token == greedy), alternatives)


def log_normalizers(rows: Float32) -> Float64:
    """log(sum(exp(row))) of rows [rows, vocabulary], in float64."""
    wide = rows.astype(np.float64)
    largest = wide.max(axis=1)
    total: Float64 = np.exp(wide - largest[:, None]).sum(axis=1)
    return np.asarray(largest + np.log(total))


@dataclass(frozen=True, slots=True)
class LogProbabilities:
    """Log-probabilities of a vocabulary of which few are looked at; the sum over all of it is taken in float64."""

    shifted: Float32
    """[vocabulary] Logits less the largest."""
    log_total: np.float32
    """Logarithm of the sum of their exponentials."""

    @classmethod
    def of(cls, logits: Float32) -> "LogProbabilities":
        """From one row of logits [vocabulary]."""
        shifted = logits - logits.max()
        total = np.exp(shifted[None]).sum(axis=1, dtype=np.float64)
        return cls(shifted, np.log(total).astype(np.float32)[0])

    def __getitem__(self, tokens: NDArray[np.integer] | int) -> Float32:
        """Of these tokens; minus infinity of one that the model rules out."""
        return np.asarray(self.shifted[tokens] - self.log_total)

    def most_probable(self, count: int, least: float) -> tuple[NDArray[np.int64], Float32]:
        """The `count` most probable tokens, of equal ones the first, and what they have; `least` where that is less."""
        candidates = self._candidates(count, least)
        values = np.maximum(self[candidates], np.float32(least))
        chosen = most_probable(values, count)
        return candidates[chosen], values[chosen]

    def _candidates(self, count: int, least: float) -> NDArray[np.int64]:
        """Tokens of which the most probable ones are some, in order."""
        sample = self.shifted[::8]
        if len(sample) > count:
            edge = np.partition(sample, -count)[-count]
            rounded = edge - self.log_total
            if rounded > least:
                # Two logits that differ can have the same log-probability, rounded.
                slack = 4 * np.spacing(max(abs(edge), abs(rounded)))
                return np.flatnonzero(self.shifted >= edge - slack)
        return np.arange(len(self.shifted))


def most_probable(values: Float32, count: int) -> NDArray[np.int64]:
    """Indices of the `count` largest values (logits or log-probabilities), largest first; of equal ones the first."""
    # The count-th largest of every eighth value is not above that of all: few are left to be sorted.
    sample = values[::8]
    if len(sample) > count:
        candidates = np.flatnonzero(values >= np.partition(sample, -count)[-count])
    else:
        candidates = np.arange(len(values))
    if len(candidates) > count:
        left = values[candidates]
        candidates = candidates[left >= np.partition(left, -count)[-count]]
    return candidates[np.argsort(-values[candidates], kind="stable")[:count]]
