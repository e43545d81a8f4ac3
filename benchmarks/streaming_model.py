"""Random Mixture-of-Experts models that are larger than the memory they get: qwen3moe, routed with a skew or uniformly.

What they say is noise; what they cost is what a real model of their shape costs. Weights of the experts are random
blocks of Q4_K (any bytes are valid ones, with scales set to sensible numbers).

The skew: the embeddings' first column is constant, and the router's weights for it are drawn at random, so that each
layer prefers some experts whatever the token. Without it all experts are equally likely.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfqs.gguf import GGMLType, KeyValue, TensorSource, f32, string, u32, write_gguf
from dfqs.gguf.layout import DEFAULT_ALIGNMENT

PAGE_ALIGNMENT = 4096
_BLOCK_VALUES, _BLOCK_BYTES = 256, 144
"""Of Q4_K: scale and minimum as float16, then scales of sub-blocks and the values."""
_SCALE, _MINIMUM = 2.2e-4, 2.2e-4 * 7.5
_CONSTANT, _PREFERENCE = 8.0, 0.26
_ROUTER_SPREAD = 0.05


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a model is."""

    layers: int = 16
    experts: int = 64
    used: int = 4
    width: int = 1024
    expert_length: int = 1792
    vocabulary: int = 8192
    heads: int = 32
    kv_heads: int = 8
    head: int = 128


FULL = Shape()
"""3.5 GB: slices of 1.03 MB, 356 MB that every token uses."""
TINY = Shape(layers=4, experts=16, width=512, expert_length=512, vocabulary=1024, heads=4, kv_heads=1, head=64)
"""To try the benchmark itself."""


def write_model(path: Path, shape: Shape, *, skewed: bool, aligned: bool = True) -> Path:
    """Write a model; returns `path`.

    Args:
        aligned: to pages, so that no page belongs to two experts; else as llama.cpp's own tools do.
    """
    random = np.random.default_rng(1)
    write_gguf(
        path,
        _keys(shape, aligned),
        list(_tensors(shape, random, skewed)),
        alignment=PAGE_ALIGNMENT if aligned else DEFAULT_ALIGNMENT,
    )
    return path


def _keys(shape: Shape, aligned: bool) -> list[KeyValue]:
    numbers = {
        "block_count": shape.layers,
        "context_length": 8192,
        "embedding_length": shape.width,
        "feed_forward_length": shape.expert_length,
        "expert_feed_forward_length": shape.expert_length,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head,
        "attention.value_length": shape.head,
        "expert_count": shape.experts,
        "expert_used_count": shape.used,
        "vocab_size": shape.vocabulary,
    }
    keys = [string("general.architecture", "qwen3moe"), string("tokenizer.ggml.model", "no_vocab")]
    keys += [u32(f"qwen3moe.{name}", value) for name, value in numbers.items()]
    keys += [f32("qwen3moe.attention.layer_norm_rms_epsilon", 1e-6), f32("qwen3moe.rope.freq_base", 1e6)]
    return [*keys, u32("general.alignment", PAGE_ALIGNMENT)] if aligned else keys


def _tensors(shape: Shape, random: np.random.Generator, skewed: bool) -> Iterator[TensorSource]:
    width, queries, keys = shape.width, shape.heads * shape.head, shape.kv_heads * shape.head

    def embeddings() -> NDArray[np.float32]:
        rows = random.standard_normal((shape.vocabulary, width), np.float32)
        rows[:, 0] = _CONSTANT
        return rows

    def router() -> NDArray[np.float32]:
        rows = random.standard_normal((shape.experts, width), np.float32) * np.float32(_ROUTER_SPREAD)
        rows[:, 0] = random.standard_normal(shape.experts) * _PREFERENCE if skewed else 0
        return rows

    def normal(rows: int, columns: int, spread: float) -> Callable[[], NDArray[np.float32]]:
        return lambda: random.standard_normal((rows, columns), np.float32) * np.float32(spread)

    def ones(length: int) -> Callable[[], NDArray[np.float32]]:
        return lambda: np.ones(length, np.float32)

    yield _dense("token_embd.weight", (width, shape.vocabulary), embeddings)
    yield _dense("output.weight", (width, shape.vocabulary), normal(shape.vocabulary, width, 0.03))
    yield _dense("output_norm.weight", (width,), ones(width), GGMLType.F32)
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        for name, length in (("attn_norm", width), ("attn_q_norm", shape.head), ("attn_k_norm", shape.head)):
            yield _dense(f"{prefix}{name}.weight", (length,), ones(length), GGMLType.F32)
        yield _dense(f"{prefix}ffn_norm.weight", (width,), ones(width), GGMLType.F32)
        for name, length in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
            yield _dense(f"{prefix}{name}.weight", (width, length), normal(length, width, 0.03))
        yield _dense(f"{prefix}attn_output.weight", (queries, width), normal(width, queries, 0.01))
        yield _dense(f"{prefix}ffn_gate_inp.weight", (width, shape.experts), router, GGMLType.F32)
        for name in ("gate", "up", "down"):
            rows = (shape.expert_length, width) if name == "down" else (width, shape.expert_length)
            yield _experts(f"{prefix}ffn_{name}_exps.weight", (*rows, shape.experts), random)


def _dense(
    name: str, shape: tuple[int, ...], make: Callable[[], NDArray[np.float32]], type_: GGMLType = GGMLType.F16
) -> TensorSource:
    kind = np.float16 if type_ is GGMLType.F16 else np.float32
    return TensorSource(name, shape, type_, lambda: iter([make().astype(kind).tobytes()]))


def _experts(name: str, shape: tuple[int, int, int], random: np.random.Generator) -> TensorSource:
    def slices() -> Iterator[bytes]:
        for _ in range(shape[2]):
            blocks = random.integers(0, 256, (shape[0] * shape[1] // _BLOCK_VALUES, _BLOCK_BYTES), np.uint8)
            blocks[:, :4] = np.array([_SCALE, _MINIMUM], np.float16).view(np.uint8)
            yield blocks.tobytes()

    return TensorSource(name, shape, GGMLType.Q4_K, slices)
