"""Tiny Mixture-of-Experts models of many architectures (`moe_families`) with random weights.

For tests only; 1 MB each, with the first 4,096 tokens of another model's vocabulary. They load, decode finite logits
and route; what they say is noise.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

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
from dfqs.gguf.layout import DEFAULT_ALIGNMENT
from dfqs.gguf.quants import quantize
from moe_families import (
    CONTEXT,
    DENSE_LENGTH,
    EXPERT_LENGTH,
    EXPERTS,
    FAMILIES,
    HEAD,
    HEADS,
    KV_HEADS,
    USED,
    VOCABULARY,
    WIDTH,
    Family,
    Number,
    Shapes,
)
from small_tokenizer import small_tokenizer


def write_tiny_moe(
    path: Path, tokenizer_from: Path, architecture: str, *, seed: int = 0, alignment: int = DEFAULT_ALIGNMENT
) -> Path:
    """Write the model with the beginning of another GGUF's vocabulary; returns `path`.

    Args:
        alignment: of tensor data in bytes; at 4,096 each expert's slice is one page of its own.
    """
    name = f"tiny-{architecture}-random"
    family = FAMILIES[architecture]
    return write_tiny_family(path, tokenizer_from, architecture, family, name=name, seed=seed, alignment=alignment)


def write_tiny_family(
    path: Path,
    tokenizer_from: Path,
    architecture: str,
    family: Family,
    *,
    name: str,
    seed: int = 0,
    alignment: int = DEFAULT_ALIGNMENT,
) -> Path:
    """As `write_tiny_moe`, of a family that is not in the list; its keys may set other sizes."""
    width = family.keys.get("embedding_length", WIDTH)
    assert isinstance(width, int)
    shapes: Shapes = {
        "token_embd": (width, VOCABULARY),
        family.output_norm: (width,),
        "output": (width, VOCABULARY),
        **family.outer,
    }
    for layer in range(family.layers):
        shapes |= {f"blk.{layer}.{tensor}": shape for tensor, shape in family.layer(layer).items()}
    keys = [*_keys(architecture, family, name), *small_tokenizer(tokenizer_from, VOCABULARY)]
    if alignment != DEFAULT_ALIGNMENT:
        keys.append(u32("general.alignment", alignment))
    tensors = [_random_tensor(tensor, shape, seed) for tensor, shape in shapes.items()]
    write_gguf(path, keys, tensors, alignment=alignment)
    return path


def _keys(architecture: str, family: Family, name: str) -> list[KeyValue]:
    keys: dict[str, Number] = {
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "block_count": family.layers,
        "feed_forward_length": DENSE_LENGTH,
        "vocab_size": VOCABULARY,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": HEAD,
        "rope.freq_base": 10_000.0,
        "expert_count": EXPERTS,
        "expert_used_count": USED,
        "expert_feed_forward_length": EXPERT_LENGTH,
        **family.keys,
    }
    return [
        string("general.architecture", architecture),
        string("general.name", name),
        u32("general.file_type", 1),
        *(_key(f"{architecture}.{key}", value) for key, value in keys.items()),
    ]


def _key(name: str, value: Number) -> KeyValue:
    if isinstance(value, list):
        return array(name, ValueType.BOOL if isinstance(value[0], bool) else ValueType.INT32, value)
    if isinstance(value, bool):
        return boolean(name, value)
    return u32(name, value) if isinstance(value, int) else f32(name, value)


def _random_tensor(name: str, shape: tuple[int, ...], seed: int) -> TensorSource:
    stem = name.rpartition(".")[2]
    full = name.rstrip(".") if name.endswith(".") or stem in ("bias", "scale") else f"{name}.weight"
    # Weights of products may be F16; vectors, biases, convolutions and routers are F32 everywhere.
    plain = len(shape) == 1 or name.endswith(".") or "norm" in name
    plain |= stem in ("bias", "scale", "conv", "ssm_conv1d", "ffn_gate_inp")
    kind = GGMLType.F32 if plain else GGMLType.F16

    def read() -> Iterator[bytes]:
        values = np.random.default_rng([seed, *full.encode()]).standard_normal(shape[::-1])
        if "norm" in name or stem in ("scale", "rope_freqs"):
            values = 1 + 0.1 * values
        elif name.endswith("ssm_a."):
            values = -np.abs(values)
        else:
            values *= 0.1 if len(shape) == 1 or stem == "bias" else shape[0] ** -0.5
        yield quantize(values.astype(np.float32), kind)

    return TensorSource(full, shape, kind, read)
