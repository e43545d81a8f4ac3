"""Small GGUF files for tests, made with our writer; what must be wrong about them is made wrong by hand."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from dfqs.gguf import BLOCKS, GGMLType, KeyValue, TensorSource, string, tensor_length, u32, write_gguf

Shape = tuple[int, ...]

SMALL_TENSORS: tuple[tuple[str, Shape, GGMLType], ...] = (
    ("token_embd.weight", (64, 10), GGMLType.F16),
    ("blk.0.attn_norm.weight", (64,), GGMLType.F32),
    ("blk.0.ffn_gate_exps.weight", (64, 8, 3), GGMLType.Q8_0),
    ("blk.0.ffn_gate_inp.weight", (64, 3), GGMLType.F32),
    ("output.weight", (64, 10), GGMLType.Q8_0),
)
SMALL_KEYS: tuple[KeyValue, ...] = (
    string("general.architecture", "llama"),
    string("general.name", "small"),
    u32("llama.block_count", 1),
    u32("llama.context_length", 128),
    u32("llama.embedding_length", 64),
    u32("llama.expert_count", 3),
    u32("llama.expert_used_count", 2),
)


@cache
def tensor_bytes(name: str, length: int, seed: str = "") -> bytes:
    """`length` bytes that depend on the name, so that no two tensors (or places in one) are alike."""
    out = bytearray()
    counter = 0
    while len(out) < length:
        out += hashlib.sha256(f"{seed}{name}{counter}".encode()).digest()
        counter += 1
    return bytes(out[:length])


def write_small(
    path: Path,
    tensors: Sequence[tuple[str, Shape, GGMLType]] = SMALL_TENSORS,
    keys: Sequence[KeyValue] = SMALL_KEYS,
    *,
    alignment: int = 32,
    seed: str = "",
) -> Path:
    """Write a file of `tensors` with bytes that tell where they belong."""

    def source(name: str, shape: Shape, type_: GGMLType) -> TensorSource:
        def read() -> Iterator[bytes]:
            yield tensor_bytes(name, tensor_length(type_, shape), seed)

        return TensorSource(name, shape, type_, read)

    write_gguf(path, keys, [source(*tensor) for tensor in tensors], alignment=alignment)
    return path


def row_bytes(type_: GGMLType, columns: int) -> int:
    block = BLOCKS[type_]
    return columns // block.elements * block.bytes
