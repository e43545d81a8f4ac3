"""The mixtures that llama-quantize makes (`Q4_K_M`, `IQ3_XXS`, ...), worked out for one model as a class of its own.

A mixture is one type for most matrices, and others for the few that suffer most: the output, attention's values, the
matrices that close a feed-forward, more of them in the first and last layers. Which, depends on the model's depth, on
how many query heads share a value, on its experts, and on whether there is an importance matrix. The class that comes
out names each such matrix and layer, so it stands in the file and can be held against it.
Source: `src/llama-quant.cpp` (`llama_tensor_get_type_impl`, `tensor_allows_quantization`); docs/quantize.md says for
which of them the types were compared with the tool's.
"""

import glob
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dfqs.errors import UsageError
from dfqs.gguf.layout import TensorInfo
from dfqs.gguf.reader import Header
from dfqs.gguf.types import BLOCKS, GGMLType
from dfqs.gguf.values import Value
from dfqs.model.classes import DeploymentClass, LayerException
from dfqs.model.spec import INTEGER_TYPES, Role, read_model_spec, tensor_layer, tensor_role
from dfqs.quantize.plan import reason_to_keep

T = GGMLType

LEFT_ALONE = (Role.NORM, Role.ROUTER, Role.BIAS, Role.TABLE)
"""Roles that a mixture leaves as they are in the input."""
_QUANTIZED = tuple(role for role in Role if role not in LEFT_ALONE)
_70B_LAYERS = 80


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a mixture is whatever the model."""

    name: str
    base: GGMLType
    """The type of most matrices."""
    file_type: int
    """llama.cpp's number for it (`general.file_type`)."""


MIXTURES: dict[str, Mixture] = {
    entry.name: entry
    for entry in (
        Mixture("Q6_K", T.Q6_K, 18),
        Mixture("Q5_K_M", T.Q5_K, 17),
        Mixture("Q5_K_S", T.Q5_K, 16),
        Mixture("Q4_K_M", T.Q4_K, 15),
        Mixture("Q4_K_S", T.Q4_K, 14),
        Mixture("Q4_0", T.Q4_0, 2),
        Mixture("IQ4_NL", T.IQ4_NL, 25),
        Mixture("IQ4_XS", T.IQ4_XS, 30),
        Mixture("Q3_K_L", T.Q3_K, 13),
        Mixture("Q3_K_M", T.Q3_K, 12),
        Mixture("Q3_K_S", T.Q3_K, 11),
        Mixture("IQ3_M", T.IQ3_S, 27),
        Mixture("IQ3_S", T.IQ3_S, 26),
        Mixture("IQ3_XS", T.IQ3_S, 22),
        Mixture("IQ3_XXS", T.IQ3_XXS, 23),
        Mixture("Q2_K", T.Q2_K, 10),
        Mixture("IQ2_M", T.IQ2_S, 29),
        Mixture("IQ2_S", T.IQ2_XS, 28),
        Mixture("IQ2_XS", T.IQ2_XS, 20),
        Mixture("IQ2_XXS", T.IQ2_XXS, 19),
        Mixture("IQ1_M", T.IQ1_M, 31),
        Mixture("IQ1_S", T.IQ1_S, 24),
    )
}
_ONE_BIT = ("IQ1_S", "IQ1_M")
_TWO_BIT_LARGE = ("IQ2_S", "IQ2_M")
_LOWEST = (*_ONE_BIT, *_TWO_BIT_LARGE, "IQ2_XXS", "IQ2_XS")


@dataclass(frozen=True, slots=True)
class _Model:
    """What of a model decides its mixture."""

    layers: int
    experts: int
    heads_per_value: int
    """Query heads that share a key and a value; 0 where the first layer has none."""
    is_70b: bool
    """llama.cpp gives models of that shape more bits for values, which are few."""
    has_imatrix: bool
    tied: bool
    """Whether the embeddings are the output matrix too."""
    values: int
    """Matrices of values (or of queries, keys and values in one)."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a matrix stands."""

    name: str
    row: int
    index: int
    """How many matrices of its kind came before it, in order of layers."""
    layer: int
    """Its layer, or `index` in a model without experts, as llama-quantize counts."""


def find_mixture(name: str) -> Mixture | None:
    """The mixture of that name, in capitals or not."""
    return MIXTURES.get(name.upper())


def mixture_class(
    mixture: Mixture, header: Header, tensors: Sequence[TensorInfo], *, has_imatrix: bool
) -> DeploymentClass:
    """The mixture of one model, as a class.

    Args:
        header: of the model, or of its first shard.
        tensors: all of the model's.

    Raises:
        UsageError: llama-quantize has rules of its own for this architecture, which are not here.
        FormatError: the model's keys are wrong.
    """
    model = _describe(header, tensors, has_imatrix)
    counted: defaultdict[str, int] = defaultdict(int)
    others: defaultdict[tuple[str, GGMLType], set[int | None]] = defaultdict(set)
    for tensor in sorted(tensors, key=lambda t: (-1 if (n := tensor_layer(t.name)) is None else n, t.name)):
        if not _may_change(tensor):
            continue
        kind, choose = _kind_of(tensor.name)
        layer = tensor_layer(tensor.name)
        index = counted[kind]
        counted[kind] += 1
        place = _Place(tensor.name, tensor.shape[0], index, layer if model.experts > 1 and layer is not None else index)
        type_ = choose(mixture, model, place) or mixture.base
        if type_ is not mixture.base:
            stem = tensor.name if layer is None else tensor.name.split(".", 2)[2]
            others[stem, type_].add(layer)
    exceptions = [
        LayerException(type_, None, glob.escape(stem))
        if None in layers
        else LayerException(type_, None, f"blk.*.{glob.escape(stem)}", frozenset(n for n in layers if n is not None))
        for (stem, type_), layers in sorted(others.items(), key=lambda item: (item[0][0], item[0][1]))
    ]
    return DeploymentClass(mixture.name, dict.fromkeys(_QUANTIZED, mixture.base), tuple(exceptions))


def _describe(header: Header, tensors: Sequence[TensorInfo], has_imatrix: bool) -> _Model:
    spec = read_model_spec(header, tensors)
    if spec.architecture == "falcon":
        raise UsageError("llama-quantize mixes Falcon by rules of its own, which are not here; write a recipe")
    heads, shared = (_first(header.metadata.get(f"{spec.architecture}.attention.head_count{e}")) for e in ("", "_kv"))
    shared = heads if shared is None else shared
    names = {tensor.name for tensor in tensors}
    large = spec.layers == _70B_LAYERS and (
        spec.architecture in ("qwen2", "deci") or (spec.architecture == "llama" and heads != shared)
    )
    return _Model(
        layers=spec.layers or 0,
        experts=max(spec.experts, 1),
        heads_per_value=heads // shared if heads and shared else 0,
        is_70b=large,
        has_imatrix=has_imatrix,
        tied="output.weight" not in names,
        values=sum(_kind_of(name)[0] == "value" for name in names),
    )


def _first(value: Value | None) -> int | None:
    """A count, or the first layer's where there is one for each."""
    if isinstance(value, tuple) and value:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _may_change(tensor: TensorInfo) -> bool:
    role = tensor_role(tensor.name)
    return role not in LEFT_ALONE and tensor.type not in INTEGER_TYPES and reason_to_keep(tensor) is None


Choice = Callable[[Mixture, _Model, _Place], GGMLType | None]
"""The type of a matrix; None: the mixture's base."""


def _kind_of(name: str) -> tuple[str, Choice]:
    if name == "output.weight":
        return "output", _output
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "embedding", _embedding
    return next(((kind, choose) for part, kind, choose in _KINDS if part in name), ("other", _nothing))


def _nothing(mixture: Mixture, model: _Model, place: _Place) -> GGMLType | None:
    return None


def _output(mixture: Mixture, model: _Model, place: _Place) -> GGMLType | None:
    if place.row % BLOCKS[mixture.base].elements:
        return T.Q8_0
    return T.Q5_K if mixture.name in (*_LOWEST, "IQ3_XXS") else T.Q6_K


def _embedding(mixture: Mixture, model: _Model, place: _Place) -> GGMLType | None:
    if model.tied:
        return _output(mixture, model, place)
    if mixture.name in (*_TWO_BIT_LARGE, "IQ3_XXS"):
        return T.IQ3_S
    return T.Q2_K if mixture.name in _LOWEST else None


def _value(mixture: Mixture, model: _Model, place: _Place) -> GGMLType | None:
    shared = model.heads_per_value >= 4
    if mixture.name in _LOWEST:
        if shared or model.experts >= 4:
            return T.Q4_K
        return T.IQ3_S if mixture.name in _TWO_BIT_LARGE else T.Q2_K
    if model.experts == 8:
        return T.Q8_0
    chosen = _plain_value(mixture, model, place, shared) or mixture.base
    return T.Q5_K if model.is_70b and chosen in (T.Q3_K, T.Q4_K) else chosen


def _plain_value(mixture: Mixture, model: _Model, place: _Place, shared: bool) -> GGMLType | None:
    match mixture.name:
        case "Q2_K":
            return T.Q4_K if shared else T.Q3_K
        case "IQ3_XXS":
            return T.Q4_K if shared else T.IQ3_XXS if model.has_imatrix else T.IQ3_S
        case "IQ3_XS" | "IQ3_S":
            return T.Q4_K if shared else None
        case "IQ3_M":
            return T.Q4_K
        case "Q3_K_M":
            return T.Q5_K if place.index < 2 else T.Q4_K
        case "Q3_K_L":
            return T.Q5_K
        case "IQ4_NL" | "IQ4_XS":
            return T.Q5_K if shared else None
        case "Q4_K_M" | "Q5_K_M":
            return T.Q6_K if _deserves_more(place.index, model.values) else None
        case "Q4_K_S":
            return T.Q5_K if place.index < 4 else None
    return None


def _key(mixture: Mixture, model: _Model, place: _Place) -> GGMLType | None:
    if model.experts == 8:
        return T.Q4_K if mixture.name in _LOWEST else T.Q8_0
    return _query(mixture, model, place)


def _query(mixture: Mixture, model: _Model, place: _Place) -> GGMLType | None:
    return {"IQ3_XS": T.IQ3_XXS, "IQ3_XXS": T.IQ2_S}.get(mixture.name)


def _down(mixture: Mixture, model: _Model, place: _Place) -> GGMLType | None:
    if mixture.name in _LOWEST:
        first = place.index < model.layers // 8
        return (T.IQ3_S if mixture.name in _TWO_BIT_LARGE else T.Q2_K) if first else None
    first, more = place.layer < model.layers // 8, _deserves_more(place.layer, model.layers)
    match mixture.name:
        case "Q2_K":
            return T.Q3_K
        case "IQ3_XXS":
            return None if model.has_imatrix else T.Q4_K if first else T.Q3_K
        case "Q3_K_M":
            return T.Q5_K if place.layer < model.layers // 16 else T.Q4_K
        case "Q3_K_L":
            return T.Q5_K
        case "IQ3_M":
            return T.Q4_K if first or (model.experts == 8 and more) else None
        case "Q4_K_M" | "Q5_K_M":
            return T.Q6_K if more else None
        case "Q4_K_S":
            return T.Q5_K if first else None
        case "IQ4_NL" | "IQ4_XS":
            return T.Q5_K if first and not model.has_imatrix else None
        case "Q4_0":
            return T.Q4_1 if first and model.has_imatrix else None
    return None


def _attention_output(mixture: Mixture, model: _Model, place: _Place) -> GGMLType | None:
    if model.experts == 8:
        # Among the mixtures above four bits and the large ones of three, only these get no more.
        return None if mixture.name in ("Q6_K", "Q5_K_M", "Q5_K_S", "Q4_0", "Q3_K_L") else T.Q5_K
    if mixture.name in _ONE_BIT:
        return T.IQ2_XXS
    if mixture.name in (*_TWO_BIT_LARGE, "IQ3_XXS"):
        return T.IQ3_S
    return {"Q2_K": T.Q3_K, "Q3_K_M": T.Q4_K, "Q3_K_L": T.Q5_K, "IQ3_M": T.Q4_K}.get(mixture.name)


def _gate_or_up(mixture: Mixture, model: _Model, place: _Place) -> GGMLType | None:
    inner = model.layers // 8 <= place.layer < 7 * model.layers // 8
    return T.IQ3_XXS if mixture.name == "IQ3_XS" and inner else None


def _deserves_more(index: int, count: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


_KINDS: tuple[tuple[str, str, Choice], ...] = (
    ("attn_qkv.weight", "value", _value),
    ("attn_kv_b.weight", "value", _value),
    ("attn_v.weight", "value", _value),
    ("attn_k.weight", "key", _key),
    ("attn_q.weight", "query", _query),
    ("attn_output.weight", "attention output", _attention_output),
    ("ffn_up", "up", _gate_or_up),
    ("ffn_gate", "gate", _gate_or_up),
    ("ffn_down", "down", _down),
)
"""Part of a name, kind of matrix, and how its type is chosen; the first that fits."""
