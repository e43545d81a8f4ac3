"""What llama.cpp reads of a header's keys: the types it takes, and where an array may stand.

Source: llama.cpp b11549, `src/llama-model-loader.cpp` (`get_key` takes one type and no other; `get_key_or_arr` also an
array with a value for each layer), `src/llama-model.cpp` and `src/llama-vocab.cpp` (which key is read how). A test
holds the rows against the runtime. Keys that are not here are not read, or only by what is no model.
"""

from dataclasses import dataclass

from dfqs.gguf import Header, KeyEntry, ValueType
from dfqs.integrity.architectures import known_architectures

UINT16, UINT32, INT32 = ValueType.UINT16, ValueType.UINT32, ValueType.INT32
FLOAT32, BOOL, STRING = ValueType.FLOAT32, ValueType.BOOL, ValueType.STRING
NUMBERS = (UINT32, INT32, BOOL)
"""Elements of an array that is read into whole numbers."""


@dataclass(frozen=True, slots=True)
class KeyForm:
    """The forms in which a key is read."""

    type: ValueType | None
    """As a single value; None: only as an array."""
    elements: tuple[ValueType, ...] = ()
    """As an array of one of these; none: only as a single value."""
    layers: bool = False
    """An array has a value for each layer."""
    length: int | None = None
    """An array has so many values."""
    at_least_layers: bool = False
    """An array has a value for each layer, and may have more."""

    def fits(self, entry: KeyEntry) -> bool:
        """Whether a key has one of these types."""
        if entry.type is ValueType.ARRAY:
            return entry.element_type in self.elements
        return entry.type is self.type

    def __str__(self) -> str:
        names = [] if self.type is None else [self.type.name]
        names += [f"array of {element.name}" for element in self.elements]
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


_U32, _F32, _FLAG, _TEXT = KeyForm(UINT32), KeyForm(FLOAT32), KeyForm(BOOL), KeyForm(STRING)
_LAYERS = KeyForm(UINT32, NUMBERS, layers=True)
_FLOAT_LAYERS = KeyForm(FLOAT32, (FLOAT32,), layers=True)

_GENERAL: dict[str, KeyForm] = {
    "general.architecture": _TEXT,
    "general.name": _TEXT,
    "general.file_type": _U32,
    "split.count": KeyForm(UINT16),
}
_SHARD: dict[str, KeyForm] = {"split.no": KeyForm(UINT16), "split.tensors.count": KeyForm(INT32)}
"""Read where `split.count` is more than 1."""
_VOCABULARY: dict[str, KeyForm] = {
    "tokenizer.ggml.pre": _TEXT,
    "tokenizer.ggml.tokens": KeyForm(None, (STRING,)),
    "tokenizer.ggml.token_type": KeyForm(None, (INT32,)),
    "tokenizer.ggml.token_type_count": _U32,
    # A rank or a score of another width is refused; INT32 is taken for floats, bit by bit.
    "tokenizer.ggml.scores": KeyForm(None, (FLOAT32, INT32)),
    "tokenizer.ggml.suppress_tokens": KeyForm(None, (INT32,)),
    **{
        f"tokenizer.ggml.{name}": _FLAG
        for name in (
            "add_bos_token",
            "add_eos_token",
            "add_sep_token",
            "add_space_prefix",
            "remove_extra_whitespaces",
            "normalizer.lowercase",
        )
    },
}
"""Read where there is a tokenizer."""
BYTE_PAIRS = frozenset({"gpt2", "gemma4", "hybriddna", "whitespace"})
"""Tokenizers of byte pairs, which need merges."""
_BY_TOKENIZER: dict[str, dict[str, KeyForm]] = {
    **{name: {"tokenizer.ggml.merges": KeyForm(None, (STRING,))} for name in BYTE_PAIRS},
    "t5": {"tokenizer.ggml.precompiled_charsmap": KeyForm(None, (ValueType.UINT8, ValueType.INT8))},
}
SPECIAL_TOKENS = frozenset(
    f"tokenizer.ggml.{name}_token_id"
    for name in (
        *("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask"),
        *("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle"),
    )
)
"""Keys that name one token of the vocabulary."""
TOKENIZERS = BYTE_PAIRS | {"none", "no_vocab", "llama", "bert", "t5", "rwkv", "plamo2", "plamo3", "test"}
"""What `tokenizer.ggml.model` may be."""
NO_TOKENIZER = frozenset({"none", "no_vocab"})
ROPE_SCALINGS = frozenset({"none", "linear", "yarn", "longrope"})
MAX_LAYERS = MAX_EXPERTS = 512


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NUMBERS = _words("""
context_length embedding_length embedding_length_out block_count features_length posnet.embedding_length
posnet.block_count convnext.embedding_length convnext.block_count shortconv.l_cache leading_dense_block_count
expert_shared_feed_forward_length expert_chunk_feed_forward_length embedding_length_per_layer_input expert_count
expert_shared_count expert_group_count expert_group_used_count expert_gating_func experts_per_group moe_every_n_layers
nextn_predict_layers interleave_moe_layer_step hash_layer_count attention.key_length attention.value_length
attention.key_length_mla attention.value_length_mla attention.key_length_swa attention.value_length_swa
attention.q_lora_rank attention.kv_lora_rank attention.sliding_window attention.group_norm_groups
attention.relative_buckets_count attention.decay_lora_rank attention.iclr_lora_rank
attention.value_residual_mix_lora_rank attention.gate_lora_rank attention.temperature_length
attention.output_group_count attention.output_lora_rank attention.indexer.head_count attention.indexer.key_length
attention.indexer.top_k hyper_connection.count hyper_connection.sinkhorn_iterations pooling_type
rope.dimension_count rope.dimension_count_swa rope.scaling.original_context_length ssm.conv_kernel ssm.inner_size
ssm.state_size ssm.time_step_rank ssm.group_count rescale_every_n_layers time_mix_extra_dim time_decay_extra_dim
wkv.head_size token_shift_count n_deepstack_layers decoder_block_count decoder_start_token_id kda.head_dim
full_attention_interval attention.shared_kv_layers expert_latent_length moe_latent_size""")
_FLOATS = _words("""
attention.layer_norm_epsilon attention.layer_norm_rms_epsilon attention.group_norm_epsilon attention.scale
attention.output_scale attention.temperature_scale attention.max_alibi_bias attention.clamp_kqv
attention.compress_rope_freq_base logit_scale attn_logit_softcapping router_logit_softcapping final_logit_softcapping
expert_weights_scale expert_group_scale residual_scale embedding_scale hyper_connection.epsilon rope.freq_base
rope.freq_base_swa rope.scale_linear rope.scaling.factor rope.scaling.attn_factor rope.scaling.yarn_log_multiplier
rope.scaling.yarn_ext_factor rope.scaling.yarn_attn_factor rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow""")
_FLAGS = (
    "attention.causal",
    "expert_weights_norm",
    "rope.scaling.finetuned",
    "use_parallel_residual",
    "swin_norm",
    "ssm.dt_b_c_rms",
)
_BY_ARCHITECTURE: dict[str, KeyForm] = {
    **dict.fromkeys(_NUMBERS, _U32),
    **dict.fromkeys(_FLOATS, _F32),
    **dict.fromkeys(_FLAGS, _FLAG),
    "rope.scaling.type": _TEXT,
    **dict.fromkeys(
        (
            *("feed_forward_length", "attention.head_count", "attention.head_count_kv", "expert_used_count"),
            *("expert_feed_forward_length", "attention.recurrent_layers"),
        ),
        _LAYERS,
    ),
    "swiglu_clamp_exp": _FLOAT_LAYERS,
    "swiglu_clamp_shexp": _FLOAT_LAYERS,
    # A period, or a pattern of any length.
    "attention.sliding_window_pattern": KeyForm(UINT32, NUMBERS),
    "attention.compress_ratios": KeyForm(None, (UINT32, INT32), at_least_layers=True),
    "rope.dimension_sections": KeyForm(INT32, NUMBERS, length=4),
}
_OF_EVERY_MODEL = frozenset(
    _words("""
context_length embedding_length embedding_length_out block_count nextn_predict_layers pooling_type expert_count
expert_used_count expert_group_count expert_group_used_count feed_forward_length attention.causal attention.head_count
attention.head_count_kv attention.key_length attention.value_length attention.key_length_swa attention.value_length_swa
rope.dimension_count rope.dimension_count_swa rope.freq_base rope.scale_linear rope.scaling.type rope.scaling.factor
rope.scaling.attn_factor rope.scaling.original_context_length rope.scaling.finetuned""")
)
"""Read whatever the architecture; the others only where its own reading asks (`architectures`)."""


def read_forms(header: Header) -> dict[str, KeyForm]:
    """The forms in which llama.cpp reads the keys of this model; keys that it does not read are left out."""
    metadata = header.metadata
    forms = dict(_GENERAL)
    if (metadata.integer("split.count") or 0) > 1:
        forms |= _SHARD
    architecture = _word(header, "general.architecture")
    if architecture is not None:
        known = known_architectures().get(architecture)
        read = _OF_EVERY_MODEL | (known.read if known else frozenset())
        forms |= {f"{architecture}.{name}": form for name, form in _BY_ARCHITECTURE.items() if name in read}
    forms["tokenizer.ggml.model"] = _TEXT
    tokenizer = _word(header, "tokenizer.ggml.model")
    if tokenizer in NO_TOKENIZER:
        forms[f"{architecture}.vocab_size"] = _U32
    elif tokenizer is not None:
        forms |= _VOCABULARY | dict.fromkeys(SPECIAL_TOKENS, _U32) | _BY_TOKENIZER.get(tokenizer, {})
    return forms


def _word(header: Header, name: str) -> str | None:
    entry = header.metadata.find(name)
    short = entry is not None and entry.type is STRING and entry.end - entry.value_start < 256
    return header.metadata.text(name) if short else None
