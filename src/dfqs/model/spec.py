"""What a model is, from its metadata: the only place that knows architecture keys and tensor names.

Names follow llama.cpp's `llama-arch.cpp`: `<architecture>.expert_count`, `blk.<layer>.ffn_gate_exps.weight`, and so on.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from dfqs.errors import FormatError
from dfqs.gguf.kinds import require_model
from dfqs.gguf.layout import TensorInfo, squeeze_shape
from dfqs.gguf.metadata import Metadata
from dfqs.gguf.reader import Header
from dfqs.gguf.types import GGMLType, ValueType, file_type_name

INTEGER_TYPES = frozenset({GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64})
"""Tables, not weights: hash-routed layers keep token-to-expert tables as I32. They are not counted as parameters."""

EVERY = "*"
"""The pattern of all names, of keys and of tensors."""
CHAT_TEMPLATE = "tokenizer.chat_template"
"""Key of the template that is used; further ones are called `tokenizer.chat_template.NAME`."""


class Role(StrEnum):
    """What a tensor is for; deployment classes give each role a type."""

    ROUTED_EXPERT = "routed experts"
    SHARED_EXPERT = "shared experts"
    DENSE_FFN = "dense feed-forward"
    ATTENTION = "attention"
    EMBEDDING = "embeddings"
    OUTPUT = "output"
    ROUTER = "router"
    NORM = "norms"
    BIAS = "biases and scales"
    HYPER_CONNECTION = "hyper-connections"
    TABLE = "routing tables"
    OTHER = "other"


_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
# First match wins, so that `attn_q_a_norm` is a norm and `exp_probs_b.bias` a bias before anything else claims them.
_ROLE_PATTERNS: tuple[tuple[re.Pattern[str], Role], ...] = tuple(
    (re.compile(pattern), role)
    for pattern, role in (
        (r"tid2eid", Role.TABLE),
        (r"(^|_|\.)hc_|hyper_connection", Role.HYPER_CONNECTION),
        (r"norm", Role.NORM),
        (r"\.(bias|scale)$|_scale\.weight$|attn_sinks|_ape\.weight$|rope_freqs", Role.BIAS),
        (r"ffn_(gate|up|down|gate_up)_exps", Role.ROUTED_EXPERT),
        (r"ffn_(gate|up|down|gate_up)_(shexp|chexps)", Role.SHARED_EXPERT),
        (r"ffn_gate_inp", Role.ROUTER),
        (r"ffn_(gate|up|down)\.|ffn_latent|nextn\.eh_proj", Role.DENSE_FFN),
        (r"attn_|indexer|ssm_|shortconv|compressor", Role.ATTENTION),
        (r"token_embd|nextn\.embed_tokens|token_types|position_embd|per_layer_token_embd", Role.EMBEDDING),
        (r"^output\.|nextn\.shared_head_head", Role.OUTPUT),
    )
)
_STACKED_EXPERTS = re.compile(r"ffn_(gate|up|down|gate_up)_(exps|chexps)\.")
"""Tensors whose last axis counts experts; `chexps` are those that GroveMoE's groups of experts share."""
_IN_A_BLOCK = re.compile(r"(?:^|\.)blk\.\d+\.")
"""Encoders and decoders count their blocks apart: `enc.blk.0.`."""
_ROUTED_MATRIX = re.compile(r"blk\.(\d+)\.ffn_(gate|up|gate_up|down)_exps\.weight")
_EXPERT_TABLE = re.compile(r"blk\.(\d+)\.ffn_gate_tid2eid\.weight")
_ROUTER_PARTS = re.compile(
    r"blk\.(\d+)\.(?:(ffn_gate_inp\.weight)|(ffn_gate_inp\.bias)|(exp_probs_b\.bias)|((?:ffn|post_attention)_norm\.weight))"
)
_ROUTER_PART_NAMES = ("weight", "bias", "selection", "norm")
_SHARED_EXPERTS = re.compile(r"ffn_(gate|up|down|gate_up)_shexp\.")


@dataclass(frozen=True, slots=True)
class RoleSize:
    """What the tensors of one role add up to."""

    role: Role
    tensors: int
    parameters: int
    bytes: int
    types: Mapping[GGMLType, int]
    """Parameters (for tables: elements) by type."""

    @property
    def bits_per_weight(self) -> float | None:
        return self.bytes * 8 / self.parameters if self.parameters else None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model's shape and size."""

    name: str | None
    architecture: str
    layers: int | None
    context_tokens: int | None
    embedding_length: int | None
    vocabulary: int | None
    experts: int
    """Routed experts a layer; 0 for a dense model."""
    experts_used: int
    experts_shared: int
    expert_length: int | None
    """Width of one expert."""
    parameters: int
    parameters_active: int
    """Parameters that one token passes through: of stacked experts the share that is used, and everything else but the
    layers that predict further tokens. The embedding table counts whole, as model cards count it."""
    tensor_bytes: int
    roles: tuple[RoleSize, ...]
    """In the order of `Role`; roles without tensors are left out."""
    chat_template: bool
    description: str | None
    """`general.description`: what the file says of itself."""
    declared_class: str | None
    """`dfqs.class`: the class that whoever made it declared."""
    expert_groups: int = 0
    """Groups of experts, of which a token may choose from the best `expert_groups_used` only; 0: no groups."""
    expert_groups_used: int = 0
    main_bits_per_weight: float | None = None
    """Of the matrices of the blocks. The embedding, the output and vectors are left out: in a small model they weigh
    more than everything that was quantized. None where there are no blocks."""
    file_type: str | None = None
    """`general.file_type`, by llama.cpp's name: what whoever made the file says most of it is."""
    causal: bool = True
    """Whether a token's outcome depends on those before it alone. Not so for encoders and diffusion models."""

    attention_heads: int | None = None
    attention_head_length: int | None = None
    """Elements of a query's head."""
    prediction_layers: int = 0
    """Of `layers` the last ones, which predict further tokens (`nextn_predict_layers`)."""

    @property
    def passed_layers(self) -> int | None:
        """Layers that a token passes when it is decoded; None: the file does not say."""
        return None if self.layers is None else max(self.layers - self.prediction_layers, 0)

    @property
    def is_moe(self) -> bool:
        return self.experts > 0

    @property
    def bits_per_weight(self) -> float | None:
        return self.tensor_bytes * 8 / self.parameters if self.parameters else None

    def role(self, role: Role) -> RoleSize | None:
        return next((size for size in self.roles if size.role is role), None)


def tensor_role(name: str) -> Role:
    """The role of a tensor, by its name."""
    match = _LAYER.fullmatch(name)
    stem = match[2] if match else name
    return next((role for pattern, role in _ROLE_PATTERNS if pattern.search(stem)), Role.OTHER)


def tensor_layer(name: str) -> int | None:
    """The layer a tensor belongs to; None for embeddings, output and the like."""
    match = _LAYER.fullmatch(name)
    return int(match[1]) if match else None


def stacked_matrix(name: str) -> tuple[int, str] | None:
    """(layer, which matrix: gate, up, gate_up or down) of a tensor that stacks the routed experts' matrices."""
    match = _ROUTED_MATRIX.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def expert_table_layer(name: str) -> int | None:
    """The layer whose experts the token alone decides, by this table: int32 [vocabulary, experts used]."""
    match = _EXPERT_TABLE.fullmatch(name)
    return int(match[1]) if match else None


def lookup_tables(names: Collection[str]) -> frozenset[str]:
    """Of a model's tensors, those of which a token reads a row and nothing else: the embeddings, where they are not the
    output too."""
    tables = {"per_layer_token_embd.weight"} | ({"token_embd.weight"} if "output.weight" in names else set())
    return frozenset(tables & set(names))


def router_part(name: str) -> tuple[int, str] | None:
    """(layer, which part of its router a tensor is): `weight`, `bias` (added to what it gives), `selection` (added for
    choosing only), or `norm` (what its input was multiplied by, in most architectures).
    """
    match = _ROUTER_PARTS.fullmatch(name)
    if match is None:
        return None
    return int(match[1]), next(
        part for part, found in zip(_ROUTER_PART_NAMES, match.groups()[1:], strict=True) if found
    )


def read_model_spec(header: Header, tensors: Iterable[TensorInfo] | None = None) -> ModelSpec:
    """Describe a model from its header.

    Args:
        header: of the file, or of the first shard.
        tensors: all tensors where they stand in several shards; the header's own by default.

    Raises:
        FormatError: a key that every model has is missing or of the wrong type.
        UsageError: the file is a GGUF of another kind (an adapter, a projector, ...).
    """
    require_model(header)
    metadata = header.metadata
    architecture = _text(metadata, "general.architecture", header.source_name)
    if architecture is None:
        raise FormatError("its architecture is not stated", path=header.source_name, name="general.architecture")

    def number(key: str) -> int | None:
        return _number(metadata, f"{architecture}.{key}", header.source_name)

    all_tensors = tuple(header.tensors if tensors is None else tensors)
    roles = measure_roles(all_tensors)
    heads, width = number("attention.head_count"), number("embedding_length")
    experts = number("expert_count") or 0
    used = number("expert_used_count") or 0
    layers, prediction_layers = number("block_count"), number("nextn_predict_layers") or 0
    if experts and not 0 < used <= experts:
        raise FormatError(f"{used} of {experts} experts used makes no sense", path=header.source_name)
    return ModelSpec(
        name=_text(metadata, "general.name", header.source_name),
        architecture=architecture,
        layers=layers,
        context_tokens=number("context_length"),
        embedding_length=number("embedding_length"),
        vocabulary=metadata.entry("tokenizer.ggml.tokens").count if "tokenizer.ggml.tokens" in metadata else None,
        experts=experts,
        experts_used=used,
        # Where every layer has one and no more, architectures such as qwen2moe do not write the number down.
        experts_shared=number("expert_shared_count") or int(any(_SHARED_EXPERTS.search(t.name) for t in all_tensors)),
        expert_length=number("expert_feed_forward_length") or (number("feed_forward_length") if experts else None),
        parameters=sum(size.parameters for size in roles),
        parameters_active=_count_active(all_tensors, used, None if layers is None else layers - prediction_layers),
        tensor_bytes=sum(size.bytes for size in roles),
        roles=roles,
        chat_template=CHAT_TEMPLATE in metadata,
        expert_groups=number("expert_group_count") or 0,
        expert_groups_used=number("expert_group_used_count") or 0,
        main_bits_per_weight=_main_bits(all_tensors),
        file_type=None if (kind := metadata.integer("general.file_type")) is None else file_type_name(kind),
        attention_heads=heads,
        attention_head_length=number("attention.key_length") or (width // heads if heads and width else None),
        prediction_layers=prediction_layers,
        causal=metadata.boolean(f"{architecture}.attention.causal") is not False,
        description=_text(metadata, "general.description", header.source_name),
        declared_class=_text(metadata, "dfqs.class", header.source_name),
    )


def _count_active(tensors: Iterable[TensorInfo], used: int, layers: int | None) -> int:
    """Parameters that one token passes through, where `layers` come before those that predict further tokens."""
    total = 0
    for tensor in tensors:
        layer = tensor_layer(tensor.name)
        if tensor.type in INTEGER_TYPES or (layer is not None and layers is not None and layer >= layers):
            continue
        stacked = tensor.shape[-1] if used and _STACKED_EXPERTS.search(tensor.name) else 1
        total += tensor.elements * min(used or 1, stacked) // stacked
    return total


def bytes_per_token(spec: ModelSpec) -> int:
    """Weights that decoding one token reads: everything, of the routed experts the share in use, and of the embedding
    table one row (all of it where the output layer shares it)."""
    total = 0
    for size in spec.roles:
        if size.role is Role.ROUTED_EXPERT and spec.experts:
            total += size.bytes * spec.experts_used // spec.experts
        elif size.role is not Role.EMBEDDING or spec.role(Role.OUTPUT) is None:
            total += size.bytes
    return total


def measure_roles(tensors: Iterable[TensorInfo]) -> tuple[RoleSize, ...]:
    """Add tensors up by role."""
    grouped: dict[Role, list[TensorInfo]] = {}
    for tensor in tensors:
        grouped.setdefault(tensor_role(tensor.name), []).append(tensor)
    sizes = []
    for role in Role:
        members = grouped.get(role, [])
        if not members:
            continue
        types: Counter[GGMLType] = Counter()
        for tensor in members:
            types[tensor.type] += tensor.elements
        parameters = sum(count for type_, count in types.items() if type_ not in INTEGER_TYPES)
        sizes.append(RoleSize(role, len(members), parameters, sum(t.length for t in members), dict(types)))
    return tuple(sizes)


def _main_bits(tensors: Iterable[TensorInfo]) -> float | None:
    """Bits per weight of the matrices of the blocks."""
    parameters = length = 0
    for tensor in tensors:
        matrix = len(squeeze_shape(tensor.shape)) > 1 and tensor.type not in INTEGER_TYPES
        if matrix and _IN_A_BLOCK.search(tensor.name):
            parameters += tensor.elements
            length += tensor.length
    return length * 8 / parameters if parameters else None


def _text(metadata: Metadata, key: str, path: str) -> str | None:
    value = metadata.text(key)
    if value is None and key in metadata:
        raise FormatError("must be a string", path=path, name=key)
    return value


def _number(metadata: Metadata, key: str, path: str) -> int | None:
    """A count; some architectures give one per layer, then the largest."""
    entry = metadata.find(key)
    if entry is None:
        return None
    if entry.type is ValueType.ARRAY and entry.count and entry.element_type is not ValueType.BOOL:
        values = metadata.integers(key)
        value = max(values) if values else None
    else:
        value = metadata.integer(key)
    if value is None or value < 0:
        raise FormatError("must be a whole number", path=path, name=key)
    return value
