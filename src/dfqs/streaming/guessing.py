"""What the next layer will probably choose: its router, asked with what the router before it was given.

A layer changes the hidden state a little, so most of what its router says can be heard one layer earlier. A guess
costs nothing but reading: nothing is computed with an expert that the layer itself did not choose.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfqs.gguf.layout import TensorInfo
from dfqs.gguf.reader import Header
from dfqs.gguf.types import GGMLType
from dfqs.model.spec import router_part

MOST_TOKENS = 4
"""A graph of more tokens chooses most experts anyway."""


@dataclass(frozen=True, slots=True)
class RouterPlace:
    """Where one vector or matrix of a router is: float32, in a model's files."""

    file: int
    offset: int
    """Bytes from the start of the file."""
    shape: tuple[int, ...]
    """Slowest axis first, as numpy has it."""


def find_routers(headers: Sequence[Header]) -> dict[int, dict[str, RouterPlace]]:
    """Layer -> its router's parts (see `router_part`); layers whose parts are not all float32 are left out."""
    found: dict[int, dict[str, RouterPlace]] = {}
    unreadable: set[int] = set()
    for file, header in enumerate(headers):
        for tensor in header.tensors:
            part = router_part(tensor.name)
            if part is None:
                continue
            layer, name = part
            if not _is_plain(tensor, name):
                unreadable.add(layer)
            shape = tuple(reversed(tensor.shape))
            found.setdefault(layer, {})[name] = RouterPlace(file, header.span(tensor).offset, shape)
    return {layer: parts for layer, parts in found.items() if layer not in unreadable and "weight" in parts}


def _is_plain(tensor: TensorInfo, part: str) -> bool:
    return tensor.type is GGMLType.F32 and len(tensor.shape) == (2 if part == "weight" else 1)


class NextChoice:
    """Guesses layer by layer.

    Args:
        routers: layer -> the parts of its router: `weight` float32 [experts, width], and where there are such `bias`
            (added to what it gives), `selection` (added for choosing only), `norm` (float32 [width], what its input was
            multiplied by).
        layers: that are guessed.
    """

    def __init__(self, routers: Mapping[int, Mapping[str, NDArray[np.float32]]], layers: Sequence[int]) -> None:
        self._routers = routers
        ordered = sorted(layers)
        self._next = {layer: after for layer, after in itertools.pairwise(ordered) if after in routers}
        self._rescale: dict[int, NDArray[np.float32] | None] = {}

    def layer_after(self, layer: int) -> int | None:
        """The layer that can be guessed when `layer` has chosen."""
        return self._next.get(layer)

    def guess(self, layer: int, states: NDArray[np.float32], used: int) -> list[int]:
        """Experts of the layer after `layer`, the surest first; empty where there is nothing to go by.

        Args:
            states: float32 [tokens, width], what the router of `layer` was given.
            used: experts that a token uses.
        """
        after = self._next[layer]
        router = self._routers[after]
        weight = router["weight"]
        if states.shape[1] != weight.shape[1]:
            return []
        if (scale := self._scale(layer, after)) is not None:
            states = states * scale
        # Not a product of matrices: those start threads, beside the ones that compute.
        scores = np.einsum("tw,ew->te", states, weight)
        if "bias" in router:
            scores += router["bias"]
        if "selection" in router:
            # The logistic function, in the form that does not overflow.
            scores = (1 + np.tanh(scores / 2)) / 2 + router["selection"]
        ranked = np.argsort(-scores, axis=1)[:, :used]
        return [int(expert) for expert in dict.fromkeys(ranked.T.ravel().tolist())]

    def _scale(self, layer: int, after: int) -> NDArray[np.float32] | None:
        """What the norm's weights of `after` are, of those of `layer`."""
        if after not in self._rescale:
            old, new = self._routers.get(layer, {}).get("norm"), self._routers[after].get("norm")
            scale = None
            if old is not None and new is not None and old.shape == new.shape:
                scale = np.divide(new, old, out=np.zeros_like(new), where=old != 0)
            self._rescale[after] = scale
        return self._rescale[after]
