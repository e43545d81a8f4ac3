"""A tiny Mixture-of-Experts model that llama.cpp loads and runs, with weights from a hash: the same bytes everywhere.

Its rows of 288 are not whole 256-element blocks, so that every low-bit type has to fall back once.
"""

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfqs.gguf import GGMLType, KeyValue, TensorSource, ValueType, array, f32, string, u32, write_gguf
from dfqs.gguf.quants import quantize
from dfqs.quantize.imatrix_file import Accumulated, Imatrix

WIDTH, FEED_FORWARD, EXPERTS, HEADS = 256, 288, 4, 4

T = GGMLType
TENSORS: tuple[tuple[str, tuple[int, ...], GGMLType], ...] = (
    ("token_embd.weight", (WIDTH, 257), T.F16),
    ("output_norm.weight", (WIDTH,), T.F32),
    ("output.weight", (WIDTH, 257), T.BF16),
    ("blk.0.attn_norm.weight", (WIDTH,), T.F32),
    ("blk.0.attn_q.weight", (WIDTH, WIDTH), T.BF16),
    ("blk.0.attn_k.weight", (WIDTH, WIDTH), T.F16),
    ("blk.0.attn_v.weight", (WIDTH, WIDTH), T.F32),
    ("blk.0.attn_output.weight", (WIDTH, WIDTH), T.F16),
    ("blk.0.ffn_norm.weight", (WIDTH,), T.F32),
    ("blk.0.ffn_gate_inp.weight", (WIDTH, EXPERTS), T.F32),
    ("blk.0.ffn_gate_exps.weight", (WIDTH, FEED_FORWARD, EXPERTS), T.F16),
    ("blk.0.ffn_down_exps.weight", (FEED_FORWARD, WIDTH, EXPERTS), T.F16),
    ("blk.0.ffn_up_exps.weight", (WIDTH, FEED_FORWARD, EXPERTS), T.Q8_0),
)


def hashed_values(name: str, count: int) -> NDArray[np.float32]:
    """Values around 0 that depend on the name only; sums of four bytes, so every step is exact."""
    raw = np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * count), np.uint8).reshape(-1, 4)
    values: NDArray[np.float32] = ((raw.astype(np.int32).sum(axis=1) - 510) / 2048).astype(np.float32)
    return values


def weights(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of one tensor, numpy order."""
    values = hashed_values(name, int(np.prod(shape))).reshape(shape[::-1])
    return np.float32(1) + values / np.float32(8) if "norm" in name else values


@cache
def stored_weights(name: str, shape: tuple[int, ...], type_: GGMLType) -> bytes:
    """The same values as they stand in the file."""
    return quantize(weights(name, shape), type_)


def write_model(path: Path, replace: dict[str, NDArray[np.float32]] | None = None) -> Path:
    """Write the model; `replace` gives some tensors other values."""

    def source(name: str, shape: tuple[int, ...], type_: GGMLType) -> TensorSource:
        def read() -> Iterator[bytes]:
            values = (replace or {}).get(name)
            yield stored_weights(name, shape, type_) if values is None else quantize(values, type_)

        return TensorSource(name, shape, type_, read)

    write_gguf(path, model_keys(), [source(*tensor) for tensor in TENSORS])
    return path


def model_keys() -> list[KeyValue]:
    """Keys of a llama-architecture MoE with a byte-level vocabulary."""
    tokens = [byte_token(byte) for byte in range(256)] + ["Ġt"]
    return [
        string("general.architecture", "llama"),
        string("general.name", "quantize-vector"),
        u32("general.file_type", 1),
        u32("llama.block_count", 1),
        u32("llama.context_length", 512),
        u32("llama.embedding_length", WIDTH),
        u32("llama.feed_forward_length", FEED_FORWARD),
        u32("llama.attention.head_count", HEADS),
        u32("llama.attention.head_count_kv", HEADS),
        u32("llama.rope.dimension_count", WIDTH // HEADS),
        f32("llama.attention.layer_norm_rms_epsilon", 1e-5),
        u32("llama.expert_count", EXPERTS),
        u32("llama.expert_used_count", 2),
        u32("llama.vocab_size", len(tokens)),
        string("tokenizer.ggml.model", "gpt2"),
        string("tokenizer.ggml.pre", "gpt-2"),
        array("tokenizer.ggml.tokens", ValueType.STRING, tokens),
        array("tokenizer.ggml.token_type", ValueType.INT32, [1] * len(tokens)),
        array("tokenizer.ggml.merges", ValueType.STRING, ["Ġ t"]),
        u32("tokenizer.ggml.bos_token_id", 0),
        u32("tokenizer.ggml.eos_token_id", 0),
    ]


def byte_token(byte: int) -> str:
    """GPT-2's printable stand-in for a byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in plain:
        return chr(byte)
    others = [value for value in range(256) if value not in plain]
    return chr(256 + others.index(byte))


def vector_imatrix() -> Imatrix:
    """Importance of every matrix, with an expert that nothing reached and columns that were always zero."""
    entries = {}
    for name, shape, _ in TENSORS:
        if len(shape) < 2:
            continue
        experts = shape[2] if len(shape) > 2 else 1
        squares: NDArray[np.float32] = np.abs(hashed_values("importance " + name, experts * shape[0]))
        squares = squares.reshape(experts, shape[0]) * np.float32(64)
        counts = np.arange(7, 7 + experts, dtype=np.int64)
        if experts > 1:
            squares[1], counts[1] = 0, 0
            squares[2, :5] = 0
        entries[name] = Accumulated(squares, counts, squares / np.float32(2))
    return Imatrix(entries, ("vector.txt",), 512, 1024)


def peer_command(tool: str, model: Path, imatrix: Path, out: Path, class_name: str) -> list[str]:
    """The command of llama-quantize that makes the same types as a class."""
    expert_type = class_name.removesuffix("-XL").lower()
    override = f"ffn_(gate|up|down)_exps={expert_type}"
    options = ["--allow-requantize", "--imatrix", str(imatrix), "--tensor-type", override]
    return [tool, *options, str(model), str(out), "Q8_0", "2"]


def peer_imatrix_command(tool: str, model: Path, text: Path, out: Path) -> list[str]:
    """The command of llama-imatrix whose chunks are those of `dfqs imatrix --chunk 128`."""
    options = ["-c", "128", "-b", "128", "-ub", "128", "-t", "1", "-ngl", "0", "--no-ppl"]
    return [tool, "-m", str(model), "-f", text.name, "-o", str(out), *options]
