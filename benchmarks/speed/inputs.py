"""Models to measure with: random bytes, so that nothing is sparse or compressed away."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dfqs.gguf import GGMLType, TensorSource, ValueType, array, f32, string, u32, write_gguf
from dfqs.shards.split import plan_split, split

VOCABULARY = 129_280
COLUMNS = 4096
EXPERTS = 8
ROW_BYTES = COLUMNS // 32 * 34


def write_model(path: Path, tensors: int, *, rows: int = 1000, vocabulary: int = VOCABULARY) -> Path:
    """A model of so many tensors of experts, 35 KB a row of `rows` each."""
    block = os.urandom(ROW_BYTES * rows)

    def tensor(number: int) -> TensorSource:
        def read() -> Iterator[bytes]:
            for expert in range(EXPERTS):
                yield block[expert * 64 :] + block[: expert * 64]

        return TensorSource(f"blk.{number}.ffn_up_exps.weight", (COLUMNS, rows, EXPERTS), GGMLType.Q8_0, read)

    tokens = [f"token{number}" for number in range(vocabulary)]
    keys = [
        string("general.architecture", "llama"),
        u32("llama.block_count", tensors),
        u32("llama.context_length", 4096),
        u32("llama.embedding_length", COLUMNS),
        u32("llama.feed_forward_length", rows),
        u32("llama.attention.head_count", 32),
        f32("llama.attention.layer_norm_rms_epsilon", 1e-5),
        string("tokenizer.ggml.model", "gpt2"),
        array("tokenizer.ggml.tokens", ValueType.STRING, tokens),
        array("tokenizer.ggml.token_type", ValueType.INT32, [1] * vocabulary),
        array("tokenizer.ggml.merges", ValueType.STRING, [f"{token[:4]} {token[4:]}" for token in tokens]),
    ]
    write_gguf(path, keys, [tensor(number) for number in range(tensors)])
    return path


def write_shards(folder: Path, tensors: int, in_first: int, *, rows: int = 1000) -> list[Path]:
    """The same in shards of `in_first` tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    model = write_model(folder / "whole.gguf", tensors, rows=rows)
    shards = list(split(plan_split(model, folder / "model", max_tensors=in_first)))
    model.unlink()
    return shards


def total_bytes(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def warm(paths: Sequence[Path]) -> None:
    """Have files in the page cache."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            buffer = bytearray(4 << 20)
            while file.readinto(buffer):
                continue
