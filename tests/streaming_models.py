"""Models for tests of streaming: experts of many pages each, in types that a router's choice is streamed in."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

import fixtures_moe
from dfqs.gguf import GGMLType, TensorInfo, TensorSource, u32, write_gguf
from dfqs.gguf.file import GGUFFile
from dfqs.gguf.layout import tensor_length
from dfqs.quantize.kernels import Kernels
from dfqs.runtime.worker_context import WorkerContext
from moe_families import EXPERT_LENGTH, FAMILIES, HEAD, Family, Shapes

WIDE = 256
"""Rows that every type has whole blocks for."""
_BATCH_ROWS = 256


def write_wide_moe(path: Path, tokenizer_from: Path, architecture: str) -> Path:
    """As `write_tiny_moe`, with vectors and experts four to eight times as long, in F16; returns `path`."""
    family = FAMILIES[architecture]
    keys = {
        **family.keys,
        "embedding_length": WIDE,
        "expert_feed_forward_length": WIDE,
        "attention.head_count": WIDE // HEAD,
    }
    wide = replace(family, layer=partial(_wide_layer, family), keys=keys)
    name = f"wide {architecture}"
    return fixtures_moe.write_tiny_family(path, tokenizer_from, architecture, wide, name=name)


def _wide_layer(family: Family, layer: int) -> Shapes:
    def widened(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if name == "attn_sinks":
            return (WIDE // HEAD,)
        expert = "exps" in name or "shexp" in name
        return tuple(WIDE if n == 64 or (expert and n == EXPERT_LENGTH) else n for n in shape)

    return {name: widened(name, shape) for name, shape in family.layer(layer).items()}


def _random_iq1_s(tensor: TensorInfo) -> bytes:
    """Blocks of IQ1_S: a half-precision scale and 48 bytes of grid indices and signs, every one of which is valid.

    Quantizing to it takes half a minute a megabyte of weights. Layout: llama.cpp, `block_iq1_s` in `ggml-common.h`.
    """
    blocks = tensor_length(GGMLType.IQ1_S, tensor.shape) // 50
    rng = np.random.default_rng([*tensor.name.encode()])
    data = rng.integers(0, 256, (blocks, 50), np.uint8)
    scales = (0.02 + 0.02 * rng.random(blocks)).astype("<f2")
    data[:, :2] = scales.view(np.uint8).reshape(-1, 2)
    return data.tobytes()


def quantize_experts(worker: WorkerContext, source: Path, target: Path, type_: GGMLType, alignment: int) -> None:
    """In a worker: copy a model of F16 experts with its experts in another type, aligned otherwise (IQ1_S: others)."""
    kernels = Kernels(worker.library)
    if type_ is not GGMLType.IQ1_S:
        kernels.prepare(type_)
    with GGUFFile(source) as file:
        header = file.header
        keys = [header.raw_entry(entry) for entry in header.entries if entry.name != "general.alignment"]

        def read(tensor: TensorInfo, kind: GGMLType) -> Iterator[bytes]:
            if kind is tensor.type:
                yield file.read_tensor(tensor.name)
                return
            if kind is GGMLType.IQ1_S:
                yield _random_iq1_s(tensor)
                return
            rows = file.dequantized(tensor.name).reshape(-1, tensor.shape[0])
            importance = np.ones(tensor.shape[0], np.float32)
            for start in range(0, len(rows), _BATCH_ROWS):
                part = np.ascontiguousarray(rows[start : start + _BATCH_ROWS])
                out = np.empty(tensor_length(kind, part.shape[::-1]), np.uint8)
                kernels.quantize(kind, part, importance, out)
                yield out.tobytes()

        def type_of(tensor: TensorInfo) -> GGMLType:
            return type_ if tensor.name.endswith("_exps.weight") else tensor.type

        tensors = [TensorSource(t.name, t.shape, type_of(t), partial(read, t, type_of(t))) for t in header.tensors]
        write_gguf(target, [*keys, u32("general.alignment", alignment)], tensors, alignment=alignment)
