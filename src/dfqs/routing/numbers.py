"""Whether what a model computed is numbers at all. Where it is not, agreement means nothing, so nothing is compared.

A value that is no number spreads: from one weight to the token, and from the token to those after it. It does not
always arrive as itself, though: llama.cpp's K-quants read a row of NaN as a row of zeros, so that a broken model with
a quantized output gives every token the same logit. A row that tells no two entries apart is refused as well.
"""

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import RuntimeFailure, UsageError
from dfqs.routing.identity import ModelIdentity

ADVICE = (
    "what it computes cannot be compared; the file is damaged (compare: dfqs verify --against, --manifest), "
    "or it was quantized from a damaged one"
)


def broken_row(rows: NDArray[np.floating]) -> int | None:
    """The first row of [rows, entries] that holds NaN or infinity, or whose entries are all equal; None: none does."""
    # In float64 no sum of finite float32 overflows: a sum that is not finite has an entry that is not.
    with np.errstate(invalid="ignore", over="ignore"):
        broken = ~np.isfinite(rows.sum(axis=-1, dtype=np.float64))
    if rows.shape[-1] > 1:
        suspect = np.flatnonzero(rows[:, 0] == rows[:, -1])
        broken[suspect] |= (rows[suspect] == rows[suspect, :1]).all(axis=-1)
    places = np.flatnonzero(broken)
    return int(places[0]) if places.size else None


def require_numbers(logits: NDArray[np.float32], broken_layer: int | None) -> None:
    """Refuse a batch whose logits, or whose router's scores, tell nothing.

    Args:
        logits: [tokens, vocabulary].
        broken_layer: the lowest layer whose router gave scores that tell nothing, if one did.

    Raises:
        RuntimeFailure: says where it was seen first.
    """
    require_router_numbers(broken_layer)
    row = broken_row(logits)
    if row is None:
        return
    what = "all the same" if np.isfinite(logits[row]).all() else "no numbers (NaN or infinite)"
    raise RuntimeFailure(
        f"the model's logits are {what} (row {row} of a batch), though every router's scores were sound: {ADVICE}"
    )


def require_router_numbers(broken_layer: int | None) -> None:
    """As `require_numbers`, where there are no logits.

    Raises:
        RuntimeFailure: names the layer.
    """
    if broken_layer is not None:
        raise RuntimeFailure(
            f"the router of layer {broken_layer} gives scores that are no numbers (NaN or infinite), or the same to "
            f"every expert: {ADVICE}"
        )


def require_choice(model: ModelIdentity, hash_layers: tuple[int, ...], layers: tuple[int, ...] | None = None) -> None:
    """Refuse a model whose router has nothing to decide, so that its routing agrees with itself whatever happens.

    Args:
        layers: those that route, where they are known.

    Raises:
        UsageError: every expert is used for every token, or every routed layer takes its experts from a table.
    """
    if model.experts_used >= model.experts:
        raise UsageError(
            f"every one of this model's {model.experts} experts is used for every token: there is no choice to compare"
        )
    if layers is not None and set(layers) <= set(hash_layers):
        raise UsageError("every layer of this model is hash-routed: its experts follow from the token and cannot vary")
