"""What computing a token touches: weights by type, in plain matrices and in experts' stacks, and the graph around."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from dfqs.gguf import GGMLType
from dfqs.gguf.layout import TensorInfo, squeeze_shape
from dfqs.model.spec import INTEGER_TYPES, Role, tensor_layer, tensor_role

Kind = Literal["dense", "experts"]
WorkKey = tuple[GGMLType, Kind]
Terms = dict[str, float]
"""How much of each kind of work; `dfqs.planning.rates` has what one of each takes."""
NODE, ATTENDED, ATTENDED_ELEMENT = "node", "attended entry", "attended element"
_FEED_FORWARD = ".ffn_"
_OUTPUT, _TOKENS = "output.weight", "token_embd.weight"
COMPUTED_AT_A_TIME = 512
"""Tokens of a prompt: llama.cpp's ubatch."""


@dataclass(frozen=True, slots=True)
class Work:
    """Of one token, in one type and kind of matrix."""

    bytes: int
    weights: int
    all_weights: int
    """Of all experts, of which `weights` are in use."""


_NOTHING = Work(0, 0, 0)


@dataclass(frozen=True, slots=True)
class GraphSize:
    """What a graph is made of beside weights."""

    nodes: int
    attended: float
    """Cached entries that a token attends to, summed over layers and heads."""
    attended_elements: float
    """The same, times the length of a head (of K and V, their mean)."""


def count_work(
    tensors: Iterable[TensorInfo], experts: int, used: int, layers: int | None = None
) -> dict[WorkKey, Work]:
    """Matrices that one token is multiplied with: of experts those in use, of embeddings the table of tokens alone, and
    only where there is no output matrix; of other tables a row is looked up.

    Args:
        layers: that a token passes; further ones predict further tokens and are no part of it. None: all.
    """
    found = list(tensors)
    # By the names that llama.cpp looks for: layers that predict further tokens may have output matrices of their own.
    tied = all(tensor.name != _OUTPUT for tensor in found)

    def is_multiplied(tensor: TensorInfo) -> bool:
        return (tied and tensor.name == _TOKENS) or tensor_role(tensor.name) is not Role.EMBEDDING

    return _count(filter(is_multiplied, found), experts, used, layers)


def count_passed_work(
    tensors: Iterable[TensorInfo], experts: int, used: int, layers: int | None = None
) -> dict[WorkKey, Work]:
    """The part of `count_work` that every token of a prompt passes.

    llama.cpp keeps of the last layer only the tokens whose logits are asked for, and of a prompt that is the last
    (`inp_out_ids` of its graphs): the others pass neither that layer's feed-forward part nor the output matrix.
    """
    found = list(tensors)
    last = max((layer for tensor in found if (layer := tensor_layer(tensor.name)) is not None), default=0)
    last = last if layers is None else min(last, layers - 1)

    def is_passed(tensor: TensorInfo) -> bool:
        if tensor_role(tensor.name) in (Role.OUTPUT, Role.EMBEDDING):
            return False
        return tensor_layer(tensor.name) != last or _FEED_FORWARD not in tensor.name

    return _count(filter(is_passed, found), experts, used, layers)


def _count(tensors: Iterable[TensorInfo], experts: int, used: int, layers: int | None) -> dict[WorkKey, Work]:
    counted: dict[WorkKey, Work] = {}
    for tensor in tensors:
        layer = tensor_layer(tensor.name)
        if tensor.type in INTEGER_TYPES or len(squeeze_shape(tensor.shape)) < 2:
            continue
        if layer is not None and layers is not None and layer >= layers:
            continue
        routed = tensor_role(tensor.name) is Role.ROUTED_EXPERT and experts
        share = (used, experts) if routed else (1, 1)
        key: WorkKey = (tensor.type, "experts" if routed else "dense")
        before = counted.get(key, Work(0, 0, 0))
        counted[key] = Work(
            before.bytes + tensor.length * share[0] // share[1],
            before.weights + tensor.elements * share[0] // share[1],
            before.all_weights + tensor.elements,
        )
    return counted


def decode_terms(work: Mapping[WorkKey, Work], graph: GraphSize) -> Terms:
    """Of a token that is computed alone: bytes of weights by type and kind, nodes, entries attended to."""
    return {weights_term(*key): one.bytes for key, one in work.items()} | {
        NODE: graph.nodes,
        ATTENDED: graph.attended,
        ATTENDED_ELEMENT: graph.attended_elements,
    }


def prompt_terms(once: Mapping[WorkKey, Work], passed: Mapping[WorkKey, Work], graph: GraphSize, tokens: int) -> Terms:
    """Of one token of a prompt, on average: weights that it is multiplied with; its share of getting each expert ready
    that any token of its batch chose, and of the batch's nodes; entries attended to.

    Args:
        once: what the last token passes.
        passed: what each does.
        graph: with the entries of a token in the middle of the prompt.
        tokens: of the prompt.
    """
    batch = min(tokens, COMPUTED_AT_A_TIME)
    terms: Terms = {NODE: graph.nodes / batch, ATTENDED: graph.attended, ATTENDED_ELEMENT: graph.attended_elements}
    for (type_, kind), last in once.items():
        each = passed.get((type_, kind), _NOTHING)
        terms[weights_term(type_, kind)] = each.weights + (last.weights - each.weights) / tokens
        if kind == "experts" and each.all_weights:
            # Chosen by none of the batch, were every expert equally likely.
            idle = (1 - each.weights / each.all_weights) ** batch
            terms[pass_term(type_)] = each.all_weights * (1 - idle) / batch
    return terms


def weights_term(type_: GGMLType, kind: Kind) -> str:
    return f"{type_.name} {kind}"


def pass_term(type_: GGMLType) -> str:
    """Getting experts of a type ready for a batch, whatever the number of its tokens."""
    return f"{type_.name} experts, a batch"
