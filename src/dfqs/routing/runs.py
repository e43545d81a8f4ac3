"""One sequence as a model computed it under some condition, and how two such runs agree."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfqs.routing.tap import NOT_COMPUTED
from dfqs.routing.trace import Ids, Scores

LOGITS_HASH_BYTES = 16


@dataclass(frozen=True, slots=True)
class RoutingRun:
    """Tokens of one sequence with their routing and what came out."""

    layers: tuple[int, ...]
    tokens: NDArray[np.int32]
    ids: Ids
    """int32 [layers, tokens, used]; -1 where a layer did not compute a token."""
    logits_hashes: NDArray[np.uint8]
    """[tokens, 16]: BLAKE2b of each token's logits; zeros where none were wanted."""
    argmax: NDArray[np.int32]
    """The likeliest next token; -1 where no logits were wanted."""
    scores: Scores | None = None
    """[layers, tokens, experts]: what the choice was made by, where it was asked for; no group of experts masked."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where two runs first chose different experts: the earliest token, and of that the lowest layer."""

    token: int
    layer: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a run agrees with its reference, over the tokens that both hold."""

    tokens: int
    """Tokens compared; fewer than a run holds when generation took another way."""
    same_tokens: bool
    decisions: int
    """Layers x tokens that both computed."""
    logits_identical: bool | None
    """Bit for bit, wherever both have logits. None: nowhere."""
    argmax_share: float | None
    same_set_share: float | None
    """Of the decisions. None: there are none."""
    same_set_share_by_layer: tuple[float | None, ...]
    """None: the layer computed none of them."""
    first_divergence: Divergence | None

    @property
    def routing_identical(self) -> bool:
        """Nothing compared is not identical."""
        return self.decisions > 0 and self.same_tokens and self.first_divergence is None


def join_runs(parts: Sequence[RoutingRun]) -> RoutingRun:
    """One run of several that follow each other."""
    scores = [part.scores for part in parts if part.scores is not None]
    return RoutingRun(
        parts[0].layers,
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.ids for part in parts], axis=1),
        np.concatenate([part.logits_hashes for part in parts]),
        np.concatenate([part.argmax for part in parts]),
        np.concatenate(scores, axis=1) if scores else None,
    )


def same_sets(a: Ids, b: Ids) -> NDArray[np.bool_]:
    """Whether the same experts were chosen, in whatever order. [..., used] -> [...]"""
    return np.asarray((np.sort(a, axis=-1) == np.sort(b, axis=-1)).all(-1))


def compare_runs(reference: RoutingRun, other: RoutingRun) -> Agreement:
    """Compare two runs of one sequence, as far as their tokens are the same.

    Raises:
        ValueError: the runs are of different layers.
    """
    if reference.layers != other.layers:
        raise ValueError(f"runs of different layers: {reference.layers} and {other.layers}")
    common = min(len(reference.tokens), len(other.tokens))
    parting = np.flatnonzero(reference.tokens[:common] != other.tokens[:common])
    count = int(parting[0]) if parting.size else common
    a, b = reference.ids[:, :count], other.ids[:, :count]
    computed = (a[..., 0] != NOT_COMPUTED) & (b[..., 0] != NOT_COMPUTED)
    same = same_sets(a, b)
    differing = np.argwhere((computed & ~same).T)
    has_logits = (reference.argmax[:count] >= 0) & (other.argmax[:count] >= 0)
    hashes_agree = (reference.logits_hashes[:count] == other.logits_hashes[:count]).all(-1)
    argmax_agrees = reference.argmax[:count] == other.argmax[:count]
    first = Divergence(int(differing[0][0]), reference.layers[int(differing[0][1])]) if len(differing) else None
    return Agreement(
        tokens=count,
        same_tokens=count == len(reference.tokens) == len(other.tokens),
        decisions=int(computed.sum()),
        logits_identical=bool(hashes_agree[has_logits].all()) if has_logits.any() else None,
        argmax_share=_share(argmax_agrees[has_logits]),
        same_set_share=_share(same[computed]),
        same_set_share_by_layer=tuple(_share(row[here]) for row, here in zip(same, computed, strict=True)),
        first_divergence=first,
    )


def _share(truths: NDArray[np.bool_]) -> float | None:
    return float(truths.mean()) if truths.size else None


def lowest_share(shares: Iterable[float | None]) -> float | None:
    """The worst layer's share."""
    known = [share for share in shares if share is not None]
    return min(known) if known else None
