"""A small random MoE to quantize, with importance for each of its columns."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dfqs.gguf import GGMLType, TensorSource, f32, string, u32, write_gguf
from dfqs.quantize.imatrix_file import Accumulated, Imatrix

WIDTH, EXPERT, EXPERTS = 1024, 512, 8


def write_random_moe(path: Path, *, layers: int = 2) -> Imatrix:
    """12.6 million expert parameters a layer of a llama-architecture MoE, in F16, and an importance matrix for them."""
    shapes: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (WIDTH, 1024))]
    for layer in range(layers):
        shapes += [
            (f"blk.{layer}.attn_q.weight", (WIDTH, WIDTH)),
            (f"blk.{layer}.ffn_gate_exps.weight", (WIDTH, EXPERT, EXPERTS)),
            (f"blk.{layer}.ffn_down_exps.weight", (EXPERT, WIDTH, EXPERTS)),
            (f"blk.{layer}.ffn_up_exps.weight", (WIDTH, EXPERT, EXPERTS)),
        ]
    random = np.random.default_rng(0)

    def source(name: str, shape: tuple[int, ...]) -> TensorSource:
        def read() -> Iterator[bytes]:
            yield (random.standard_normal(int(np.prod(shape))) / 32).astype(np.float16).tobytes()

        return TensorSource(name, shape, GGMLType.F16, read)

    keys = [
        string("general.architecture", "llama"),
        u32("llama.block_count", layers),
        u32("llama.context_length", 512),
        u32("llama.embedding_length", WIDTH),
        u32("llama.feed_forward_length", EXPERT),
        u32("llama.attention.head_count", 8),
        u32("llama.attention.head_count_kv", 8),
        u32("llama.rope.dimension_count", WIDTH // 8),
        f32("llama.attention.layer_norm_rms_epsilon", 1e-5),
        u32("llama.expert_count", EXPERTS),
        u32("llama.expert_used_count", 2),
        u32("llama.vocab_size", 1024),
    ]
    write_gguf(path, keys, [source(*entry) for entry in shapes])
    entries = {}
    for name, shape in shapes:
        experts = shape[2] if len(shape) > 2 else 1
        squares = (random.standard_normal((experts, shape[0])) ** 2).astype(np.float32)
        entries[name] = Accumulated(squares, np.ones(experts, np.int64))
    return Imatrix(entries, ("random",))
