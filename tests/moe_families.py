"""What llama.cpp's Mixture-of-Experts architectures ask of a file, as data: one for each way in which routers differ.

Names and shapes are those of llama.cpp b11549 (`src/models/*.cpp` of its sources); `fixtures_moe` makes files of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

WIDTH, HEADS, HEAD, KV_HEADS = 64, 2, 32, 1
EXPERTS, USED, EXPERT_LENGTH, SHARED_LENGTH, DENSE_LENGTH = 8, 2, 32, 48, 96
KV_RANK, Q_RANK, ROPE = 64, 32, 32
SHORT_CONVOLUTION, DELTA_STATE, DELTA_HEADS, DELTA_VALUE_HEADS = 3, 16, 2, 4
CONTEXT = VOCABULARY = 4096

Shapes = dict[str, tuple[int, ...]]
Number = int | float | bool | list[int] | list[bool]


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: what each layer holds, and the keys that only it has."""

    layer: Callable[[int], Shapes]
    """Tensors of layer `n` without their prefix `blk.n.`; names without a suffix end in `.weight`."""
    layers: int = 3
    routed: tuple[int, ...] = (0, 1, 2)
    keys: Mapping[str, Number] = field(default_factory=dict)
    outer: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensors outside of layers, besides embeddings, output and its norm."""
    output_norm: str = "output_norm"


def _attention(*, normed: int = 0, biases: bool = False, gated: int = 1, kv_heads: int = KV_HEADS) -> Shapes:
    """Grouped-query attention.

    Args:
        normed: length of the norms of Q and K, 0 for none.
        gated: queries are so many times as wide (2: half of them gate the output).
    """
    shapes: Shapes = {
        "attn_norm": (WIDTH,),
        "attn_q": (WIDTH, HEADS * HEAD * gated),
        "attn_k": (WIDTH, kv_heads * HEAD),
        "attn_v": (WIDTH, kv_heads * HEAD),
        "attn_output": (HEADS * HEAD, WIDTH),
    }
    if biases:
        shapes |= {f"attn_{name}.bias": (shapes[f"attn_{name}"][1],) for name in ("q", "k", "v")}
    if normed:
        shapes |= {"attn_q_norm": (normed,), "attn_k_norm": (normed,)}
    return shapes


def _experts(*, bias: bool = False, fused: bool = False) -> Shapes:
    """A router and its experts."""
    shapes: Shapes = {"ffn_gate_inp": (WIDTH, EXPERTS), "ffn_down_exps": (EXPERT_LENGTH, WIDTH, EXPERTS)}
    if fused:
        shapes["ffn_gate_up_exps"] = (WIDTH, 2 * EXPERT_LENGTH, EXPERTS)
    else:
        shapes |= {f"ffn_{name}_exps": (WIDTH, EXPERT_LENGTH, EXPERTS) for name in ("gate", "up")}
    if bias:
        shapes["exp_probs_b.bias"] = (EXPERTS,)
    return shapes


def _feed_forward(length: int, suffix: str = "") -> Shapes:
    return {
        f"ffn_gate{suffix}": (WIDTH, length),
        f"ffn_up{suffix}": (WIDTH, length),
        f"ffn_down{suffix}": (length, WIDTH),
    }


def _qwen2moe(_: int) -> Shapes:
    shared = _feed_forward(SHARED_LENGTH, "_shexp") | {"ffn_gate_inp_shexp": (WIDTH,)}
    return _attention(biases=True) | {"ffn_norm": (WIDTH,)} | _experts() | shared


def _qwen3moe(_: int) -> Shapes:
    return _attention(normed=HEAD) | {"ffn_norm": (WIDTH,)} | _experts()


def _olmoe(_: int) -> Shapes:
    return _attention(normed=WIDTH, kv_heads=HEADS) | {"ffn_norm": (WIDTH,)} | _experts()


def _granitemoe(_: int) -> Shapes:
    return _attention() | {"ffn_norm": (WIDTH,)} | _experts() | _feed_forward(SHARED_LENGTH, "_shexp")


def _smallthinker(_: int) -> Shapes:
    return _attention() | {"ffn_norm": (WIDTH,)} | _experts()


def _deepseek2(layer: int) -> Shapes:
    """Multi-head latent attention in the form that llama.cpp absorbs; the first layer is dense."""
    shapes: Shapes = {
        "attn_norm": (WIDTH,),
        "attn_q_a": (WIDTH, Q_RANK),
        "attn_q_a_norm": (Q_RANK,),
        "attn_q_b": (Q_RANK, HEADS * (HEAD + ROPE)),
        "attn_kv_a_mqa": (WIDTH, KV_RANK + ROPE),
        "attn_kv_a_norm": (KV_RANK,),
        "attn_k_b": (HEAD, KV_RANK, HEADS),
        "attn_v_b": (KV_RANK, HEAD, HEADS),
        "attn_output": (HEADS * HEAD, WIDTH),
        "ffn_norm": (WIDTH,),
    }
    if layer == 0:
        return shapes | _feed_forward(DENSE_LENGTH)
    return shapes | _experts(bias=True) | _feed_forward(2 * EXPERT_LENGTH, "_shexp")


def _gpt_oss(_: int) -> Shapes:
    experts = _experts()
    biases = {f"{name}.bias": shape[1:] for name, shape in experts.items()}
    more: Shapes = {"post_attention_norm": (WIDTH,), "attn_sinks": (HEADS,), "attn_output.bias": (WIDTH,)}
    return _attention(biases=True) | experts | biases | more


def _llama4(layer: int) -> Shapes:
    """Every second layer routes."""
    shapes = _attention() | {"ffn_norm": (WIDTH,)}
    if layer % 2 == 0:
        return shapes | _feed_forward(DENSE_LENGTH)
    return shapes | _experts() | _feed_forward(EXPERT_LENGTH, "_shexp")


def _grovemoe(_: int) -> Shapes:
    """Experts in groups of two, which share a small one."""
    shared = {name: (*shape, EXPERTS // 2) for name, shape in _feed_forward(HEAD, "_chexps").items()}
    return _qwen3moe(0) | shared


def _lfm2moe(layer: int) -> Shapes:
    """Short convolutions around one layer of attention; the first layer is dense."""
    shapes: Shapes = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
    shapes |= _feed_forward(DENSE_LENGTH) if layer == 0 else _experts(bias=True)
    if layer == 1:
        return shapes | _attention(normed=HEAD)
    return shapes | {
        "shortconv.conv": (SHORT_CONVOLUTION, WIDTH),
        "shortconv.in_proj": (WIDTH, 3 * WIDTH),
        "shortconv.out_proj": (WIDTH, WIDTH),
    }


def _qwen35moe(layer: int) -> Shapes:
    """Gated delta nets around one layer of gated attention."""
    shapes = _experts() | _feed_forward(SHARED_LENGTH, "_shexp")
    shapes |= {"ffn_gate_inp_shexp": (WIDTH,), "post_attention_norm": (WIDTH,)}
    if layer == 1:
        return shapes | _attention(normed=HEAD, gated=2)
    value = DELTA_STATE * DELTA_VALUE_HEADS
    mixed = 2 * DELTA_STATE * DELTA_HEADS + value
    return shapes | {
        "attn_norm": (WIDTH,),
        "attn_qkv": (WIDTH, mixed),
        "attn_gate": (WIDTH, value),
        "ssm_conv1d": (4, mixed),
        "ssm_dt.bias": (DELTA_VALUE_HEADS,),
        "ssm_a.": (DELTA_VALUE_HEADS,),
        "ssm_beta": (WIDTH, DELTA_VALUE_HEADS),
        "ssm_alpha": (WIDTH, DELTA_VALUE_HEADS),
        "ssm_norm": (DELTA_STATE,),
        "ssm_out": (value, WIDTH),
    }


def _qwen3next(layer: int) -> Shapes:
    """As qwen35moe, with the two gates of a delta net in one tensor."""
    shapes = _qwen35moe(layer)
    if shapes.pop("ssm_beta", None) and shapes.pop("ssm_alpha", None):
        shapes["ssm_ba"] = (WIDTH, 2 * DELTA_VALUE_HEADS)
    return shapes


def _glm4moe(layer: int) -> Shapes:
    """The first layer is dense; the last one predicts a further token and is no part of the model's pass."""
    shapes = _attention(normed=HEAD, biases=True) | {"post_attention_norm": (WIDTH,)}
    if layer == 0:
        return shapes | _feed_forward(DENSE_LENGTH)
    shapes |= _experts(bias=True) | _feed_forward(EXPERT_LENGTH, "_shexp")
    if layer == 3:
        shapes |= {"nextn.eh_proj": (2 * WIDTH, WIDTH), "nextn.enorm": (WIDTH,), "nextn.hnorm": (WIDTH,)}
    return shapes


def _minimax_m2(_: int) -> Shapes:
    return _attention(normed=WIDTH, kv_heads=HEADS) | {"ffn_norm": (WIDTH,)} | _experts(bias=True)


def _hunyuan(_: int) -> Shapes:
    return _qwen3moe(0) | _feed_forward(SHARED_LENGTH, "_shexp")


def _nemotron(layer: int) -> Shapes:
    """One thing a layer: a state space, experts without a gate, attention, experts."""
    if layer == 2:
        return _attention()
    if layer == 0:
        mixed = WIDTH + 2 * DELTA_STATE
        return {
            "attn_norm": (WIDTH,),
            "ssm_in": (WIDTH, WIDTH + mixed + DELTA_VALUE_HEADS),
            "ssm_conv1d": (4, mixed),
            "ssm_conv1d.bias": (mixed,),
            "ssm_dt.bias": (DELTA_VALUE_HEADS,),
            "ssm_a.": (1, DELTA_VALUE_HEADS),
            "ssm_d.": (1, DELTA_VALUE_HEADS),
            "ssm_norm": (WIDTH, 1),
            "ssm_out": (WIDTH, WIDTH),
        }
    experts, shared = _experts(bias=True), _feed_forward(SHARED_LENGTH, "_shexp")
    del experts["ffn_gate_exps"], shared["ffn_gate_shexp"]
    return {"attn_norm": (WIDTH,)} | experts | shared


def _gemma4(_: int) -> Shapes:
    """A dense feed-forward beside the experts, gate and up of which are one tensor."""
    norms = ("post_attention_norm", "ffn_norm", "post_ffw_norm", "pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2")
    scales: Shapes = {"ffn_gate_inp.scale": (WIDTH,), "ffn_down_exps.scale": (EXPERTS,)}
    shapes = _attention(normed=HEAD) | dict.fromkeys(norms, (WIDTH,))
    return shapes | _feed_forward(DENSE_LENGTH) | _experts(fused=True) | scales


DELTA_KEYS: dict[str, Number] = {
    "attention.recurrent_layers": [True, False, True],
    "expert_shared_feed_forward_length": SHARED_LENGTH,
    "ssm.conv_kernel": 4,
    "ssm.inner_size": DELTA_STATE * DELTA_VALUE_HEADS,
    "ssm.state_size": DELTA_STATE,
    "ssm.time_step_rank": DELTA_VALUE_HEADS,
    "ssm.group_count": DELTA_HEADS,
}
FAMILIES: dict[str, Family] = {
    "qwen2moe": Family(_qwen2moe, keys={"expert_shared_feed_forward_length": SHARED_LENGTH}),
    "qwen3moe": Family(_qwen3moe, keys={"attention.key_length": HEAD, "attention.value_length": HEAD}),
    "olmoe": Family(_olmoe, keys={"feed_forward_length": EXPERT_LENGTH, "attention.head_count_kv": HEADS}),
    "granitemoe": Family(
        _granitemoe,
        keys={
            "feed_forward_length": EXPERT_LENGTH,
            "expert_shared_feed_forward_length": SHARED_LENGTH,
            "logit_scale": 6.0,
            "residual_scale": 0.5,
            "embedding_scale": 12.0,
            "attention.scale": 0.1,
        },
    ),
    "deepseek2": Family(
        _deepseek2,
        layers=4,
        routed=(1, 2, 3),
        keys={
            "attention.head_count_kv": 1,
            "attention.q_lora_rank": Q_RANK,
            "attention.kv_lora_rank": KV_RANK,
            "attention.key_length": KV_RANK + ROPE,
            "attention.value_length": KV_RANK,
            "attention.key_length_mla": HEAD + ROPE,
            "attention.value_length_mla": HEAD,
            "rope.dimension_count": ROPE,
            "leading_dense_block_count": 1,
            "expert_shared_count": 2,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
            "expert_gating_func": 2,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
        },
    ),
    "gpt-oss": Family(_gpt_oss, keys={"attention.sliding_window": 32}),
    "llama4": Family(_llama4, layers=4, routed=(1, 3), keys={"interleave_moe_layer_step": 2}),
    "smallthinker": Family(_smallthinker, keys={"expert_gating_func": 2}),
    "grovemoe": Family(
        _grovemoe,
        keys={"expert_chunk_feed_forward_length": HEAD, "expert_group_scale": 0.05, "experts_per_group": 2},
    ),
    "lfm2moe": Family(
        _lfm2moe,
        routed=(1, 2),
        keys={
            "attention.head_count_kv": [0, KV_HEADS, 0],
            "shortconv.l_cache": SHORT_CONVOLUTION,
            "leading_dense_block_count": 1,
            "expert_gating_func": 2,
        },
        output_norm="token_embd_norm",
    ),
    "qwen35moe": Family(_qwen35moe, keys={"rope.dimension_sections": [8, 4, 4, 0], **DELTA_KEYS}),
    "qwen3next": Family(_qwen3next, keys=DELTA_KEYS),
    "glm4moe": Family(
        _glm4moe,
        layers=4,
        routed=(1, 2),
        keys={"leading_dense_block_count": 1, "expert_shared_count": 1, "nextn_predict_layers": 1},
    ),
    "minimax-m2": Family(
        _minimax_m2,
        keys={"feed_forward_length": EXPERT_LENGTH, "attention.head_count_kv": HEADS, "expert_gating_func": 2},
    ),
    "hunyuan-moe": Family(
        _hunyuan, keys={"feed_forward_length": EXPERT_LENGTH, "expert_shared_feed_forward_length": SHARED_LENGTH}
    ),
    "nemotron_h_moe": Family(
        _nemotron,
        layers=4,
        routed=(1, 3),
        keys={
            "attention.head_count_kv": [0, 0, KV_HEADS, 0],
            "feed_forward_length": [0, EXPERT_LENGTH, 0, EXPERT_LENGTH],
            "attention.layer_norm_epsilon": 1e-6,
            "expert_shared_count": 1,
            "expert_shared_feed_forward_length": SHARED_LENGTH,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": WIDTH,
            "ssm.state_size": DELTA_STATE,
            "ssm.time_step_rank": DELTA_VALUE_HEADS,
            "ssm.group_count": 1,
        },
    ),
    "gemma4": Family(
        _gemma4,
        keys={
            "attention.sliding_window": 64,
            "attention.sliding_window_pattern": [True, True, False],
            "attention.key_length": HEAD,
            "attention.value_length": HEAD,
            "attention.key_length_swa": HEAD,
            "attention.value_length_swa": HEAD,
            "embedding_length_per_layer_input": 0,
        },
        outer={"rope_freqs": (HEAD // 2,)},
    ),
}
"""By the name that llama.cpp gives the architecture."""
