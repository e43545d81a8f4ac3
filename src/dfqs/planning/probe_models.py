"""Small random models that a machine is calibrated with: each does one kind of work, in one type of weights.

They are files like any other and run through llama.cpp's usual ways, repacking and threads included. What they say is
noise. Quantized weights are a few rows, made by llama.cpp's own loops and laid out again and again: how fast a kernel
is does not depend on the values.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dfqs.gguf import GGMLType, KeyValue, TensorSource, f32, string, u32, write_gguf
from dfqs.gguf.layout import tensor_length
from dfqs.quantize.kernels import Kernels

RandomTensor = tuple[str, tuple[int, ...], GGMLType]
"""Name, shape in GGUF order, type."""
_ROWS = 64
_LEAST_LAYERS, _MOST_LAYERS = 2, 48


@dataclass(frozen=True, slots=True)
class ProbeShape:
    """Geometry of a random model: `llama` without experts, `qwen3moe` with them."""

    architecture: Literal["llama", "qwen3moe"]
    layers: int
    width: int
    length: int
    """Of the feed-forward layer, or of one expert."""
    heads: int
    kv_heads: int
    head: int = 64
    experts: int = 0
    used: int = 0
    vocabulary: int = 512
    context: int = 8192

    def tensors(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Matrices of a layer, in GGUF order; the router is not among them."""
        prefix, width = f"blk.{layer}.", self.width
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        stack = (self.experts,) if self.experts else ()
        suffix = "_exps" if self.experts else ""
        return {
            f"{prefix}attn_q.weight": (width, queries),
            f"{prefix}attn_k.weight": (width, keys),
            f"{prefix}attn_v.weight": (width, keys),
            f"{prefix}attn_output.weight": (queries, width),
            f"{prefix}ffn_gate{suffix}.weight": (width, self.length, *stack),
            f"{prefix}ffn_up{suffix}.weight": (width, self.length, *stack),
            f"{prefix}ffn_down{suffix}.weight": (self.length, width, *stack),
        }

    def with_weights(self, type_: GGMLType, wanted: int, most_bytes: int) -> "ProbeShape":
        """The same with as many layers as `wanted` weights make, in the file no more than `most_bytes`."""
        shapes = self.tensors(0).values()
        weights, bytes_ = sum(map(prod, shapes)), sum(tensor_length(type_, shape) for shape in shapes)
        layers = min(max(round(min(wanted / weights, most_bytes / bytes_)), _LEAST_LAYERS), _MOST_LAYERS)
        return replace(self, layers=layers)


DENSE = ProbeShape("llama", 1, 1024, 2816, 16, 4)
EXPERTS = ProbeShape("qwen3moe", 1, 1024, 1024, 4, 2, experts=16, used=4)
PULSE = ProbeShape("llama", 6, 1024, 2816, 16, 4)
"""Small and much like the others: measured whenever it is asked whether the machine is as fast as it was."""
NODES = ProbeShape("qwen3moe", 24, 256, 256, 4, 2, experts=4, used=1)
"""Many nodes and hardly any weights."""
ATTENTION = (
    ProbeShape("llama", 8, 1024, 2816, 16, 4),
    ProbeShape("llama", 6, 1024, 2816, 8, 2, head=128),
    ProbeShape("llama", 4, 1024, 2816, 8, 1, head=512),
)
"""Heads of several lengths, among weights that push the cache's entries out of the CPU's as those of a model do."""


def write_probe(
    path: Path, kernels: Kernels, shape: ProbeShape, type_: GGMLType, dense: GGMLType | None = None
) -> Path:
    """Write a random model; returns `path`.

    Args:
        type_: of its matrices.
        dense: of those that are no experts; `type_` by default.
    """
    return write_random(path, kernels, _keys(shape), _random_tensors(shape, type_, dense))


def probe_bytes(shape: ProbeShape, type_: GGMLType, dense: GGMLType | None = None) -> int:
    """Of such a model's tensors, which is nearly all of its file."""
    return sum(tensor_length(kind, dimensions) for _, dimensions, kind in _random_tensors(shape, type_, dense))


def _random_tensors(shape: ProbeShape, type_: GGMLType, dense: GGMLType | None) -> list[RandomTensor]:
    f32_type = GGMLType.F32
    tensors: list[RandomTensor] = [
        ("token_embd.weight", (shape.width, shape.vocabulary), f32_type),
        ("output.weight", (shape.width, shape.vocabulary), f32_type),
        ("output_norm.weight", (shape.width,), f32_type),
    ]
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        tensors += [(f"{prefix}{name}.weight", (shape.width,), f32_type) for name in ("attn_norm", "ffn_norm")]
        if shape.experts:
            norms = ("attn_q_norm", "attn_k_norm")
            tensors += [(f"{prefix}{name}.weight", (shape.head,), f32_type) for name in norms]
            tensors.append((f"{prefix}ffn_gate_inp.weight", (shape.width, shape.experts), f32_type))
        for name, dimensions in shape.tensors(layer).items():
            tensors.append((name, dimensions, type_ if "_exps" in name or dense is None else dense))
    return tensors


def write_random(path: Path, kernels: Kernels, keys: list[KeyValue], tensors: Iterable[RandomTensor]) -> Path:
    """Write a model of these tensors: matrices of a few random rows again and again, vectors of ones.

    Embeddings and routers (F32) have no row twice, or tokens and experts would be alike and few would be chosen.
    """
    random = np.random.default_rng(3)
    made: dict[tuple[GGMLType, int], bytes] = {}

    def draw(columns: int) -> NDArray[np.float32]:
        return random.standard_normal((_ROWS, columns), np.float32) * np.float32(columns**-0.5)

    def rows_of(kind: GGMLType, columns: int) -> bytes:
        if kind is GGMLType.F32:
            return draw(columns).tobytes()
        if (kind, columns) not in made:
            out = np.empty(tensor_length(kind, (columns, _ROWS)), np.uint8)
            kernels.prepare(kind)
            kernels.quantize(kind, draw(columns), np.ones(columns, np.float32), out)
            made[kind, columns] = out.tobytes()
        return made[kind, columns]

    def source(name: str, dimensions: tuple[int, ...], kind: GGMLType) -> TensorSource:
        def read() -> Iterator[bytes]:
            left = tensor_length(kind, dimensions)
            while left > 0:
                if len(dimensions) == 1:
                    piece = np.ones(dimensions[0], np.float32).tobytes()
                else:
                    piece = rows_of(kind, dimensions[0])
                yield piece[:left]
                left -= len(piece)

        return TensorSource(name, dimensions, kind, read)

    write_gguf(path, keys, [source(*tensor) for tensor in tensors])
    return path


def _keys(shape: ProbeShape) -> list[KeyValue]:
    numbers = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.width,
        "feed_forward_length": shape.length,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head,
        "attention.value_length": shape.head,
        "rope.dimension_count": shape.head,
        "vocab_size": shape.vocabulary,
    }
    if shape.experts:
        numbers |= {
            "expert_count": shape.experts,
            "expert_used_count": shape.used,
            "expert_feed_forward_length": shape.length,
        }
    name = shape.architecture
    keys = [string("general.architecture", name), string("tokenizer.ggml.model", "no_vocab")]
    keys += [u32(f"{name}.{key}", value) for key, value in numbers.items()]
    return [*keys, f32(f"{name}.attention.layer_norm_rms_epsilon", 1e-6), f32(f"{name}.rope.freq_base", 1e6)]
