"""A tiny DeepSeek-V4 with random weights: every kind of layer that the architecture has.

For tests only; 60 MB. It loads, decodes finite logits and serves in llama.cpp; what it says is
noise. Layer kinds by compress ratio: 0 sliding window, 4 compressed sparse attention with the lightning indexer, 128
heavily compressed; the first layers are hash-routed (`ffn_gate_tid2eid`: token -> experts). llama.cpp divides by the
difference of `attention.key_length` and `indexer.key_length`, so the two must differ.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqs.gguf import (
    GGMLType,
    KeyValue,
    TensorSource,
    ValueType,
    array,
    boolean,
    f32,
    string,
    u32,
    write_gguf,
)
from dfqs.gguf.quants import quantize
from small_tokenizer import small_tokenizer

ARCHITECTURE = "deepseek4"


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes; the defaults are the smallest that exercise everything."""

    vocabulary: int = 8192
    width: int = 256
    heads: int = 8
    head_length: int = 256
    rope_length: int = 64
    expert_length: int = 256
    experts: int = 16
    experts_used: int = 4
    q_lora: int = 256
    output_groups: int = 4
    output_rank: int = 128
    streams: int = 4
    indexer_heads: int = 8
    indexer_length: int = 128
    indexer_top_k: int = 64
    window: int = 128
    compress_ratios: tuple[int, ...] = (0, 0, 4, 128, 4, 0)
    hash_layers: int = 2
    context: int = 4096

    def __post_init__(self) -> None:
        if self.head_length == self.indexer_length:
            raise ValueError("llama.cpp dies with SIGFPE where attention.key_length equals indexer.key_length")

    @property
    def mixes(self) -> int:
        return (2 + self.streams) * self.streams


class _Tensors:
    """Collects tensors; every one draws from a generator of its own name, so that adding one changes no other."""

    def __init__(self, seed: int, weight_type: GGMLType) -> None:
        self.sources: list[TensorSource] = []
        self.seed = seed
        self.weight_type = weight_type

    def normal(self, name: str, *shape: int, scale: float | None = None, kind: GGMLType | None = None) -> None:
        """Normal values of deviation `scale`, by default one over the root of the row length."""
        deviation = scale if scale is not None else shape[0] ** -0.5
        self._add(
            name,
            shape,
            self.weight_type if kind is None else kind,
            lambda rng: rng.standard_normal(shape[::-1]) * deviation,
        )

    def around_one(self, name: str, length: int) -> None:
        self._add(name, (length,), GGMLType.F32, lambda rng: 1 + 0.1 * rng.standard_normal(length))

    def constant(self, name: str, length: int) -> None:
        self._add(name, (length,), GGMLType.F32, lambda rng: np.ones(length))

    def table(self, name: str, rows: int, experts: int, used: int) -> None:
        """Token -> `used` different experts."""

        def read() -> Iterator[bytes]:
            scores = self._generator(name).random((rows, experts))
            yield np.argsort(scores, axis=1)[:, :used].astype("<i4").tobytes()

        self.sources.append(TensorSource(name, (used, rows), GGMLType.I32, read))

    def _add(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: GGMLType,
        draw: Callable[[np.random.Generator], NDArray[Any]],
    ) -> None:
        def read() -> Iterator[bytes]:
            yield quantize(draw(self._generator(name)).astype(np.float32), kind)

        self.sources.append(TensorSource(name, shape, kind, read))

    def _generator(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *name.encode()])


def write_tiny_deepseek4(
    path: Path,
    tokenizer_from: Path,
    geometry: Geometry | None = None,
    *,
    weight_type: GGMLType = GGMLType.F16,
    seed: int = 0,
) -> Path:
    """Write the model with the beginning of another GGUF's vocabulary; returns `path`."""
    g = geometry or Geometry()
    tensors = _Tensors(seed, weight_type)
    tensors.normal("token_embd.weight", g.width, g.vocabulary, scale=1.0)
    tensors.around_one("output_norm.weight", g.width)
    tensors.normal("output.weight", g.width, g.vocabulary)
    tensors.normal("output_hc_fn.weight", g.width * g.streams, g.streams, kind=GGMLType.F32)
    tensors.normal("output_hc_base.weight", g.streams, scale=0.1, kind=GGMLType.F32)
    tensors.constant("output_hc_scale.weight", 1)
    for layer, ratio in enumerate(g.compress_ratios):
        prefix = f"blk.{layer}."
        _add_attention(tensors, prefix, g)
        if ratio:
            _add_compressor(tensors, prefix, g, ratio)
        _add_experts(tensors, prefix, g, g.vocabulary if layer < g.hash_layers else None)
    write_gguf(path, [*_keys(g), *small_tokenizer(tokenizer_from, g.vocabulary)], tensors.sources)
    return path


def _add_attention(tensors: _Tensors, prefix: str, g: Geometry) -> None:
    tensors.around_one(prefix + "attn_norm.weight", g.width)
    tensors.normal(prefix + "attn_sinks.weight", g.heads, scale=0.1, kind=GGMLType.F32)
    tensors.normal(prefix + "attn_q_a.weight", g.width, g.q_lora)
    tensors.around_one(prefix + "attn_q_a_norm.weight", g.q_lora)
    tensors.normal(prefix + "attn_q_b.weight", g.q_lora, g.heads * g.head_length)
    tensors.normal(prefix + "attn_kv.weight", g.width, g.head_length)
    tensors.around_one(prefix + "attn_kv_a_norm.weight", g.head_length)
    groups = g.output_groups
    tensors.normal(prefix + "attn_output_a.weight", g.heads * g.head_length // groups, g.output_rank * groups)
    tensors.normal(prefix + "attn_output_b.weight", groups * g.output_rank, g.width)
    for block in ("attn", "ffn"):
        tensors.normal(prefix + f"hc_{block}_fn.weight", g.width * g.streams, g.mixes, kind=GGMLType.F32)
        tensors.normal(prefix + f"hc_{block}_base.weight", g.mixes, scale=0.1, kind=GGMLType.F32)
        tensors.constant(prefix + f"hc_{block}_scale.weight", 3)


def _add_compressor(tensors: _Tensors, prefix: str, g: Geometry, ratio: int) -> None:
    width = g.head_length * (2 if ratio == 4 else 1)
    tensors.normal(prefix + "attn_compressor_kv.weight", g.width, width)
    tensors.normal(prefix + "attn_compressor_gate.weight", g.width, width)
    tensors.normal(prefix + "attn_compressor_ape.weight", width, ratio, kind=GGMLType.F32)
    tensors.around_one(prefix + "attn_compressor_norm.weight", g.head_length)
    if ratio != 4:
        return
    length = g.indexer_length
    tensors.normal(prefix + "indexer.proj.weight", g.width, g.indexer_heads)
    tensors.normal(prefix + "indexer.attn_q_b.weight", g.q_lora, g.indexer_heads * length)
    tensors.normal(prefix + "indexer_compressor_kv.weight", g.width, 2 * length)
    tensors.normal(prefix + "indexer_compressor_gate.weight", g.width, 2 * length)
    tensors.normal(prefix + "indexer_compressor_ape.weight", 2 * length, ratio, kind=GGMLType.F32)
    tensors.around_one(prefix + "indexer_compressor_norm.weight", length)


def _add_experts(tensors: _Tensors, prefix: str, g: Geometry, hashed_vocabulary: int | None) -> None:
    tensors.normal(prefix + "ffn_gate_inp.weight", g.width, g.experts, kind=GGMLType.F32)
    if hashed_vocabulary is not None:
        tensors.table(prefix + "ffn_gate_tid2eid.weight", hashed_vocabulary, g.experts, g.experts_used)
    else:
        tensors.normal(prefix + "exp_probs_b.bias", g.experts, scale=0.05, kind=GGMLType.F32)
    tensors.around_one(prefix + "ffn_norm.weight", g.width)
    tensors.normal(prefix + "ffn_gate_exps.weight", g.width, g.expert_length, g.experts)
    tensors.normal(prefix + "ffn_down_exps.weight", g.expert_length, g.width, g.experts)
    tensors.normal(prefix + "ffn_up_exps.weight", g.width, g.expert_length, g.experts)
    tensors.normal(prefix + "ffn_gate_shexp.weight", g.width, g.expert_length)
    tensors.normal(prefix + "ffn_down_shexp.weight", g.expert_length, g.width)
    tensors.normal(prefix + "ffn_up_shexp.weight", g.width, g.expert_length)


def _keys(g: Geometry) -> list[KeyValue]:
    layers = len(g.compress_ratios)
    numbers = {
        "context_length": g.context,
        "embedding_length": g.width,
        "embedding_length_out": g.width * g.streams,
        "block_count": layers,
        "feed_forward_length": g.expert_length,
        "vocab_size": g.vocabulary,
        "attention.head_count": g.heads,
        "attention.head_count_kv": 1,
        "attention.key_length": g.head_length,
        "attention.value_length": g.head_length,
        "attention.q_lora_rank": g.q_lora,
        "attention.sliding_window": g.window,
        "rope.dimension_count": g.rope_length,
        "expert_count": g.experts,
        "expert_used_count": g.experts_used,
        "expert_shared_count": 1,
        "expert_feed_forward_length": g.expert_length,
        "expert_gating_func": 4,
        "attention.indexer.head_count": g.indexer_heads,
        "attention.indexer.key_length": g.indexer_length,
        "attention.indexer.top_k": g.indexer_top_k,
        "attention.output_group_count": g.output_groups,
        "attention.output_lora_rank": g.output_rank,
        "hyper_connection.count": g.streams,
        "hyper_connection.sinkhorn_iterations": 20,
        "hash_layer_count": g.hash_layers,
    }
    reals = {
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 10_000.0,
        "expert_weights_scale": 1.5,
        "attention.compress_rope_freq_base": 160_000.0,
        "hyper_connection.epsilon": 1e-6,
    }
    return [
        string("general.architecture", ARCHITECTURE),
        string("general.name", "tiny-deepseek4-random"),
        string("general.description", "random weights, for tests of the program only"),
        u32("general.file_type", 1),
        u32("general.quantization_version", 2),
        *(u32(f"{ARCHITECTURE}.{name}", value) for name, value in numbers.items()),
        *(f32(f"{ARCHITECTURE}.{name}", value) for name, value in reals.items()),
        boolean(f"{ARCHITECTURE}.expert_weights_norm", True),
        array(f"{ARCHITECTURE}.swiglu_clamp_exp", ValueType.FLOAT32, [10.0] * layers),
        array(f"{ARCHITECTURE}.swiglu_clamp_shexp", ValueType.FLOAT32, [10.0] * layers),
        array(f"{ARCHITECTURE}.attention.compress_ratios", ValueType.INT32, g.compress_ratios),
    ]
