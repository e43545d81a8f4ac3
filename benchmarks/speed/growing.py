"""Inputs of any size for the row `scale`, and the two jobs that are no command: `python growing.py JOB FOLDER`."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from dfqs.evaluate.store import RESULTS, read_lines
from dfqs.gguf import GGMLType, TensorSource, ValueType, array, f32, string, u32, write_gguf
from dfqs.routing.coherence import diff_traces
from dfqs.routing.identity import ModelIdentity
from dfqs.routing.trace import RouteConditions, TraceChunk, TraceHeader
from dfqs.routing.tracefile import write_trace
from dfqs.shards.split import plan_split, split
from dfqs.storage.disk import LocalDisk
from dfqs.storage.journal import Journal

LAYERS, USED, EXPERTS = 43, 6, 256
BLOCK_TOKENS = 500


def write_many_tensors(path: Path, tensors: int, tokens: int = 100, *, name: str = "model") -> Path:
    """A model of small tensors, 1 KB each, and a vocabulary."""

    def read(number: int) -> Iterator[bytes]:
        yield number.to_bytes(4, "little") * 256

    sources = [
        TensorSource(
            f"blk.{number % 512}.ffn_norm_{number // 512}.weight",
            (256,),
            GGMLType.F32,
            partial(read, number),
        )
        for number in range(tensors)
    ]
    keys = [
        string("general.architecture", "llama"),
        string("general.name", name),
        u32("llama.block_count", min(tensors, 512)),
        u32("llama.context_length", 4096),
        u32("llama.embedding_length", 256),
        u32("llama.feed_forward_length", 256),
        u32("llama.attention.head_count", 8),
        f32("llama.attention.layer_norm_rms_epsilon", 1e-5),
        string("tokenizer.ggml.model", "gpt2"),
        array("tokenizer.ggml.tokens", ValueType.STRING, [f"token{number}" for number in range(tokens)]),
        array("tokenizer.ggml.token_type", ValueType.INT32, [1] * tokens),
    ]
    write_gguf(path, keys, sources)
    return path


def write_many_shards(folder: Path, tensors: int, shards: int) -> list[Path]:
    """The same in so many shards."""
    folder.mkdir()
    model = write_many_tensors(folder / "whole.gguf", tensors)
    written = list(split(plan_split(model, folder / "model", max_tensors=-(-tensors // shards))))
    model.unlink()
    return written


def write_many_files(folder: Path, files: int) -> Path:
    """So many models, each another, a hundred in a folder."""
    for number in range(files):
        place = folder / f"{number // 100}"
        place.mkdir(parents=True, exist_ok=True)
        write_many_tensors(place / f"{number}.gguf", 1, 10, name=f"model {number}")
    return folder


def write_results(folder: Path, items: int) -> Path:
    """What an evaluation stores of so many items, without a sync for each."""
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal.open_or_create(LocalDisk(), folder / "results.jsonl", RESULTS)
    for number in range(items):
        data = {"reason": "x" * 100, "kind": None}
        journal.append({"stage": "context", "key": f"{number}/failure", "data": data}, durable=False)
    journal.close()
    return folder


def write_traces(folder: Path, decisions: int) -> Path:
    """Two traces with so many choices of an expert, made of blocks that repeat."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    ids = np.argsort(random.random((LAYERS, BLOCK_TOKENS, EXPERTS), np.float32), axis=2)[..., :USED].astype(np.uint8)
    tokens = random.integers(0, 129_280, BLOCK_TOKENS, dtype=np.int32)
    blocks = max(1, round(decisions / (LAYERS * BLOCK_TOKENS * USED)))
    model = ModelIdentity(
        name="random", architecture="deepseek4", layers=LAYERS, experts=EXPERTS, experts_used=USED, file_bytes=0,
        header_sha256="0" * 64, tokenizer_sha256=None, router_sha256=None, expert_types=("IQ1_S",),
    )  # fmt: skip
    header = TraceHeader(model=model, layers=tuple(range(LAYERS)), conditions=RouteConditions(runtime="none"))
    for name, shift in (("a", 0), ("b", 1)):
        chunks = (
            TraceChunk(0, block * BLOCK_TOKENS, tokens, np.roll(ids, shift * (block % 2), axis=1))
            for block in range(blocks)
        )
        write_trace(folder / f"{name}.trace", header, chunks)
    return folder


def main() -> None:
    job, folder = sys.argv[1], Path(sys.argv[2])
    if job == "results":
        read_lines(folder / "results.jsonl")
    else:
        diff_traces(folder / "a.trace", folder / "b.trace")


if __name__ == "__main__":
    main()
