"""Small random models that a machine is calibrated with: each does one kind of work, in one type of weights.

They are files like any other and run through llama.cpp's usual ways, repacking and threads included. What they say is
noise. Weights are a few rows, quantized by llama.cpp's own loops and laid out again and again: how fast a kernel is
does not depend on the values.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from dfqs.gguf import GGMLType, KeyValue, TensorSource, f32, string, u32, write_gguf
from dfqs.gguf.layout import tensor_length
from dfqs.quantize.kernels import Kernels

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

    def with_bytes(self, type_: GGMLType, total: int) -> "ProbeShape":
        """The same with as many layers as `total` bytes make."""
        layer = sum(tensor_length(type_, shape) for shape in self.tensors(0).values())
        layers = min(max(round(total / layer), _LEAST_LAYERS), _MOST_LAYERS)
        return replace(self, layers=layers)


DENSE = ProbeShape("llama", 1, 1024, 2816, 16, 4)
EXPERTS = ProbeShape("qwen3moe", 1, 1024, 1024, 4, 2, experts=16, used=4)
NODES = ProbeShape("qwen3moe", 24, 256, 256, 4, 2, experts=4, used=1)
ATTENTION = ProbeShape("llama", 16, 256, 256, 16, 8)


def write_probe(
    path: Path, kernels: Kernels, shape: ProbeShape, type_: GGMLType, dense: GGMLType | None = None
) -> Path:
    """Write a random model; returns `path`.

    Args:
        type_: of its matrices.
        dense: of those that are no experts; `type_` by default.
    """
    random = np.random.default_rng(3)
    made: dict[tuple[GGMLType, int], bytes] = {}

    def rows_of(kind: GGMLType, columns: int) -> bytes:
        if (kind, columns) not in made:
            values = random.standard_normal((_ROWS, columns), np.float32) * np.float32(columns**-0.5)
            out = np.empty(tensor_length(kind, (columns, _ROWS)), np.uint8)
            kernels.prepare(kind)
            kernels.quantize(kind, values, np.ones(columns, np.float32), out)
            made[kind, columns] = out.tobytes()
        return made[kind, columns]

    def matrix(name: str, dimensions: tuple[int, ...], kind: GGMLType) -> TensorSource:
        def read() -> Iterator[bytes]:
            piece, left = rows_of(kind, dimensions[0]), tensor_length(kind, dimensions)
            while left > 0:
                yield piece[:left]
                left -= len(piece)

        return TensorSource(name, dimensions, kind, read)

    def plain(name: str, *dimensions: int, ones: bool = False) -> TensorSource:
        def read() -> Iterator[bytes]:
            count = int(np.prod(dimensions))
            yield (np.ones(count) if ones else random.standard_normal(count) * 0.05).astype(np.float32).tobytes()

        return TensorSource(name, dimensions, GGMLType.F32, read)

    tensors = [
        plain("token_embd.weight", shape.width, shape.vocabulary),
        plain("output.weight", shape.width, shape.vocabulary),
        plain("output_norm.weight", shape.width, ones=True),
    ]
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        tensors += [plain(f"{prefix}{name}.weight", shape.width, ones=True) for name in ("attn_norm", "ffn_norm")]
        if shape.experts:
            norms = ("attn_q_norm", "attn_k_norm")
            tensors += [plain(f"{prefix}{name}.weight", shape.head, ones=True) for name in norms]
            tensors.append(plain(f"{prefix}ffn_gate_inp.weight", shape.width, shape.experts))
        for name, dimensions in shape.tensors(layer).items():
            tensors.append(matrix(name, dimensions, type_ if "_exps" in name or dense is None else dense))
    write_gguf(path, _keys(shape), tensors)
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
