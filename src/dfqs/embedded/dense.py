"""The source model's forward pass in numpy, layer by layer: what the experts are fitted on.

Architecture `llama` as llama.cpp runs it: RMS norm, grouped-query attention with interleaved rotary pairs, SwiGLU.
Activations are [tokens, width]; attention is causal inside chunks of `CHUNK_TOKENS`, which are independent texts.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfqs.gguf import Header
from dfqs.gguf.file import GGUFFile

Float32 = NDArray[np.float32]

CHUNK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class DenseModel:
    """Weights as float32 [out, in], and the numbers of the architecture."""

    header: Header
    weights: dict[str, Float32]
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_length: int
    ffn_length: int
    rope_base: float
    norm_epsilon: float

    def ffn(self, layer: int) -> tuple[Float32, Float32, Float32]:
        """gate [ffn, width], up [ffn, width], down [width, ffn]."""
        prefix = f"blk.{layer}.ffn_"
        return (
            self.weights[prefix + "gate.weight"],
            self.weights[prefix + "up.weight"],
            self.weights[prefix + "down.weight"],
        )


def read_dense_model(path: Path) -> DenseModel:
    """Read and decode all weights of a small `llama` GGUF."""
    with GGUFFile(path) as file:
        header = file.header
        weights = {tensor.name: file.dequantized(tensor.name) for tensor in header.tensors}

    def number(key: str) -> float:
        value = header.metadata[f"llama.{key}"]
        assert isinstance(value, int | float)
        return value

    heads = int(number("attention.head_count"))
    width = int(number("embedding_length"))
    return DenseModel(
        header=header,
        weights=weights,
        layers=int(number("block_count")),
        width=width,
        heads=heads,
        kv_heads=int(number("attention.head_count_kv")),
        head_length=width // heads,
        ffn_length=int(number("feed_forward_length")),
        rope_base=number("rope.freq_base"),
        norm_epsilon=number("attention.layer_norm_rms_epsilon"),
    )


def rms_norm(x: Float32, weight: Float32, epsilon: float) -> Float32:
    normed: Float32 = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(epsilon)) * weight
    return normed


def swiglu(x: Float32, gate: Float32, up: Float32) -> Float32:
    """Hidden activations of a feed-forward block, [tokens, ffn]."""
    g = x @ gate.T
    hidden: Float32 = g / (1 + np.exp(-np.clip(g, -60, 60))) * (x @ up.T)
    return hidden


def attention(model: DenseModel, layer: int, x: Float32) -> Float32:
    """What the attention block adds to the residual stream `x` [tokens, width]."""
    w = model.weights
    prefix = f"blk.{layer}.attn_"
    normed = rms_norm(x, w[prefix + "norm.weight"], model.norm_epsilon)
    heads, kv_heads, length = model.heads, model.kv_heads, model.head_length
    group = heads // kv_heads
    rotate = _Rotation(CHUNK_TOKENS, length, model.rope_base)
    causal = np.triu(np.full((CHUNK_TOKENS, CHUNK_TOKENS), -1e30, np.float32), 1)
    out = np.empty((len(x), heads * length), np.float32)
    for start in range(0, len(x), CHUNK_TOKENS):
        rows = normed[start : start + CHUNK_TOKENS]
        q = rotate((rows @ w[prefix + "q.weight"].T).reshape(-1, heads, length)).transpose(1, 0, 2)
        k = rotate((rows @ w[prefix + "k.weight"].T).reshape(-1, kv_heads, length)).transpose(1, 2, 0)
        v = (rows @ w[prefix + "v.weight"].T).reshape(-1, kv_heads, length).transpose(1, 0, 2)
        scores = q.reshape(kv_heads, group * len(rows), length) @ k / np.float32(np.sqrt(length))
        scores = scores.reshape(kv_heads, group, len(rows), len(rows)) + causal[: len(rows), : len(rows)]
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = (scores.reshape(kv_heads, group * len(rows), len(rows)) @ v).reshape(heads, len(rows), length)
        out[start : start + CHUNK_TOKENS] = mixed.transpose(1, 0, 2).reshape(len(rows), heads * length)
    added: Float32 = out @ w[prefix + "output.weight"].T
    return added


def forward(model: DenseModel, tokens: NDArray[np.integer]) -> Float32:
    """Logits [tokens, vocabulary]; for tests against llama.cpp."""
    x = model.weights["token_embd.weight"][tokens].copy()
    for layer in range(model.layers):
        x += attention(model, layer, x)
        gate, up, down = model.ffn(layer)
        x += swiglu(rms_norm(x, model.weights[f"blk.{layer}.ffn_norm.weight"], model.norm_epsilon), gate, up) @ down.T
    head = model.weights.get("output.weight", model.weights["token_embd.weight"])
    logits: Float32 = rms_norm(x, model.weights["output_norm.weight"], model.norm_epsilon) @ head.T
    return logits


class _Rotation:
    """Rotary position embedding on interleaved pairs, positions counted inside a chunk."""

    def __init__(self, tokens: int, length: int, base: float) -> None:
        angles = np.arange(tokens)[:, None] * base ** (-np.arange(0, length, 2) / length)
        self._cos = np.cos(angles).astype(np.float32)[:, None]
        self._sin = np.sin(angles).astype(np.float32)[:, None]

    def __call__(self, x: Float32) -> Float32:
        """x is [tokens, heads, length]."""
        cos, sin = self._cos[: len(x)], self._sin[: len(x)]
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2] = even * cos - odd * sin
        out[..., 1::2] = even * sin + odd * cos
        return out
