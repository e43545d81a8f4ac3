"""A tiny dense `llama` model with random weights and no tokenizer: in SmolLM2's place where seconds count."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dfqs.gguf import GGMLType, TensorSource, f32, string, u32, write_gguf
from dfqs.gguf.quants import quantize

VOCABULARY = 256
LAYERS, WIDTH, HEADS, KV_HEADS, FFN_LENGTH = 2, 96, 3, 1, 192


def write_dense_llama(path: Path, seed: int = 0) -> Path:
    """Write the model; returns `path`."""
    numbers = {
        "context_length": 256,
        "embedding_length": WIDTH,
        "block_count": LAYERS,
        "feed_forward_length": FFN_LENGTH,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "rope.dimension_count": WIDTH // HEADS,
        "vocab_size": VOCABULARY,
    }
    keys = [
        string("general.architecture", "llama"),
        string("general.name", "tiny-dense-llama-random"),
        u32("general.file_type", 0),
        *(u32(f"llama.{name}", value) for name, value in numbers.items()),
        f32("llama.rope.freq_base", 10_000.0),
        # Far from the usual 1e-5, so that a test notices when it is not read from here.
        f32("llama.attention.layer_norm_rms_epsilon", 0.02),
        string("tokenizer.ggml.model", "none"),
    ]
    kv_width = WIDTH // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (WIDTH, VOCABULARY), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm": (WIDTH,),
            f"blk.{layer}.attn_q": (WIDTH, WIDTH),
            f"blk.{layer}.attn_k": (WIDTH, kv_width),
            f"blk.{layer}.attn_v": (WIDTH, kv_width),
            f"blk.{layer}.attn_output": (WIDTH, WIDTH),
            f"blk.{layer}.ffn_norm": (WIDTH,),
            f"blk.{layer}.ffn_gate": (WIDTH, FFN_LENGTH),
            f"blk.{layer}.ffn_up": (WIDTH, FFN_LENGTH),
            f"blk.{layer}.ffn_down": (FFN_LENGTH, WIDTH),
        }
    write_gguf(path, keys, [_random_tensor(f"{name}.weight", shape, seed) for name, shape in shapes.items()])
    return path


def _random_tensor(name: str, shape: tuple[int, ...], seed: int) -> TensorSource:
    def read() -> Iterator[bytes]:
        rng = np.random.default_rng([seed, *name.encode()])
        values = rng.standard_normal(shape[::-1])
        values = 1 + 0.1 * values if "norm" in name else values * 1.5 * shape[0] ** -0.5
        yield quantize(values.astype(np.float32), GGMLType.F32)

    return TensorSource(name, shape, GGMLType.F32, read)
