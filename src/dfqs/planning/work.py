"""What computing a token touches: weights by type, in plain matrices and in experts' stacks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dfqs.gguf import GGMLType
from dfqs.gguf.layout import TensorInfo, squeeze_shape
from dfqs.model.spec import INTEGER_TYPES, Role, tensor_layer, tensor_role

Kind = Literal["dense", "experts"]
WorkKey = tuple[GGMLType, Kind]


@dataclass(frozen=True, slots=True)
class Work:
    """Of one token."""

    bytes: int
    weights: int


def count_work(
    tensors: Iterable[TensorInfo], experts: int, used: int, layers: int | None = None
) -> dict[WorkKey, Work]:
    """Matrices that one token is multiplied with: of experts those in use, of the embedding table one row (all of it
    where there is no output matrix).

    Args:
        layers: that a token passes; further ones predict further tokens and are no part of it. None: all.
    """
    found = list(tensors)
    tied = not any(tensor_role(tensor.name) is Role.OUTPUT for tensor in found)
    counted: dict[WorkKey, Work] = {}
    for tensor in found:
        role, layer = tensor_role(tensor.name), tensor_layer(tensor.name)
        if tensor.type in INTEGER_TYPES or len(squeeze_shape(tensor.shape)) < 2:
            continue
        if (role is Role.EMBEDDING and not tied) or (layer is not None and layers is not None and layer >= layers):
            continue
        routed = role is Role.ROUTED_EXPERT and experts
        share = (used, experts) if routed else (1, 1)
        key: WorkKey = (tensor.type, "experts" if routed else "dense")
        before = counted.get(key, Work(0, 0))
        counted[key] = Work(
            before.bytes + tensor.length * share[0] // share[1],
            before.weights + tensor.elements * share[0] // share[1],
        )
    return counted
