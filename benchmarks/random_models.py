"""Random models of several architectures at sizes that can be measured, for benchmarks: geometry is what counts.

Names and shapes are those of llama.cpp b11549. Weights are a few rows again and again, as those of the probes that a
machine is calibrated with (`dfqs.planning.probe_models`), but none of these geometries is among them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dfqs.gguf import GGMLType, KeyValue, boolean, f32, string, u32
from dfqs.planning.probe_models import RandomTensor, write_random
from dfqs.quantize.kernels import Kernels

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class RandomModel:
    """One geometry, and the types of its experts and of everything else."""

    architecture: str
    experts_type: GGMLType
    dense_type: GGMLType
    layers: int
    width: int
    length: int
    """Of one expert; of the feed-forward layer where there are none."""
    heads: int
    kv_heads: int
    head: int
    experts: int = 0
    used: int = 0
    vocabulary: int = 4096
    context: int = 8192
    more: Mapping[str, int] = field(default_factory=dict)
    """Sizes that only some architectures have: `rank`, `q_rank`, `rope`, `window`, `shared`."""

    def write(self, path: Path, kernels: Kernels) -> None:
        shapes: Shapes = {"token_embd": (self.width, self.vocabulary), "output_norm": (self.width,)}
        shapes["output"] = (self.width, self.vocabulary)
        for layer in range(self.layers):
            shapes |= {f"blk.{layer}.{name}": shape for name, shape in _LAYERS[self.architecture](self, layer).items()}
        write_random(path, kernels, self._keys(), [self._tensor(name, shape) for name, shape in shapes.items()])

    def _tensor(self, name: str, shape: tuple[int, ...]) -> RandomTensor:
        full = name if name.endswith(".bias") else f"{name}.weight"
        if len(shape) == 1 or name.endswith((".bias", "ffn_gate_inp")):
            return full, shape, GGMLType.F32
        return full, shape, self.experts_type if "_exps" in name else self.dense_type

    def _keys(self) -> list[KeyValue]:
        name = self.architecture
        numbers = {
            "block_count": self.layers,
            "context_length": self.context,
            "embedding_length": self.width,
            "feed_forward_length": self.length,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": self.head,
            "attention.value_length": self.head,
            "rope.dimension_count": self.head,
            "vocab_size": self.vocabulary,
        }
        if self.experts:
            numbers |= {
                "expert_count": self.experts,
                "expert_used_count": self.used,
                "expert_feed_forward_length": self.length,
            }
        if name in _KEYS:
            numbers |= _KEYS[name](self)
        keys = [string("general.architecture", name), string("tokenizer.ggml.model", "no_vocab")]
        keys += [u32(f"{name}.{key}", value) for key, value in numbers.items()]
        if name == "deepseek2":
            keys += [f32(f"{name}.expert_weights_scale", 2.5), boolean(f"{name}.expert_weights_norm", True)]
        return [*keys, f32(f"{name}.attention.layer_norm_rms_epsilon", 1e-6), f32(f"{name}.rope.freq_base", 1e4)]


def _attention(model: RandomModel, normed: bool = False, biases: bool = False) -> Shapes:
    queries, keys = model.heads * model.head, model.kv_heads * model.head
    shapes: Shapes = {
        "attn_norm": (model.width,),
        "attn_q": (model.width, queries),
        "attn_k": (model.width, keys),
        "attn_v": (model.width, keys),
        "attn_output": (queries, model.width),
    }
    if biases:
        outputs = {"q": queries, "k": keys, "v": keys, "output": model.width}
        shapes |= {f"attn_{name}.bias": (length,) for name, length in outputs.items()}
    if normed:
        shapes |= {"attn_q_norm": (model.head,), "attn_k_norm": (model.head,)}
    return shapes


def _experts(model: RandomModel) -> Shapes:
    stack = (model.experts,)
    return {
        "ffn_gate_inp": (model.width, *stack),
        "ffn_gate_exps": (model.width, model.length, *stack),
        "ffn_up_exps": (model.width, model.length, *stack),
        "ffn_down_exps": (model.length, model.width, *stack),
    }


def _feed_forward(model: RandomModel, length: int, suffix: str = "") -> Shapes:
    return {
        f"ffn_gate{suffix}": (model.width, length),
        f"ffn_up{suffix}": (model.width, length),
        f"ffn_down{suffix}": (length, model.width),
    }


def _llama(model: RandomModel, _: int) -> Shapes:
    return _attention(model) | {"ffn_norm": (model.width,)} | _feed_forward(model, model.length)


def _qwen3moe(model: RandomModel, _: int) -> Shapes:
    return _attention(model, normed=True) | {"ffn_norm": (model.width,)} | _experts(model)


def _gpt_oss(model: RandomModel, _: int) -> Shapes:
    experts = _experts(model)
    biases = {f"{name}.bias": shape[1:] for name, shape in experts.items()}
    more: Shapes = {"post_attention_norm": (model.width,), "attn_sinks": (model.heads,)}
    return _attention(model, biases=True) | experts | biases | more


def _llama4(model: RandomModel, layer: int) -> Shapes:
    """Every second layer routes."""
    shapes = _attention(model) | {"ffn_norm": (model.width,)}
    if layer % 2 == 0:
        return shapes | _feed_forward(model, model.length)
    return shapes | _experts(model) | _feed_forward(model, model.length, "_shexp")


def _deepseek2(model: RandomModel, layer: int) -> Shapes:
    """Multi-head latent attention as llama.cpp absorbs it; the first layer is dense."""
    rank, q_rank, rope = (model.more[name] for name in ("rank", "q_rank", "rope"))
    shapes: Shapes = {
        "attn_norm": (model.width,),
        "attn_q_a": (model.width, q_rank),
        "attn_q_a_norm": (q_rank,),
        "attn_q_b": (q_rank, model.heads * (model.head + rope)),
        "attn_kv_a_mqa": (model.width, rank + rope),
        "attn_kv_a_norm": (rank,),
        "attn_k_b": (model.head, rank, model.heads),
        "attn_v_b": (rank, model.head, model.heads),
        "attn_output": (model.heads * model.head, model.width),
        "ffn_norm": (model.width,),
    }
    if layer == 0:
        return shapes | _feed_forward(model, 4 * model.length)
    return (
        shapes | _experts(model) | {"exp_probs_b.bias": (model.experts,)} | _feed_forward(model, model.length, "_shexp")
    )


def _deepseek2_keys(model: RandomModel) -> dict[str, int]:
    rank, q_rank, rope = (model.more[name] for name in ("rank", "q_rank", "rope"))
    return {
        "feed_forward_length": 4 * model.length,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": q_rank,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": model.head + rope,
        "attention.value_length_mla": model.head,
        "rope.dimension_count": rope,
        "leading_dense_block_count": 1,
        "expert_shared_count": 1,
        "expert_gating_func": 2,
    }


_LAYERS: dict[str, Callable[[RandomModel, int], Shapes]] = {
    "llama": _llama,
    "qwen3moe": _qwen3moe,
    "gpt-oss": _gpt_oss,
    "llama4": _llama4,
    "deepseek2": _deepseek2,
}
_KEYS: dict[str, Callable[[RandomModel], dict[str, int]]] = {
    "deepseek2": _deepseek2_keys,
    "gpt-oss": lambda model: {"attention.sliding_window": model.more["window"]},
    "llama4": lambda model: {"interleave_moe_layer_step": 2},
}
