"""`dfqs quantize` beside llama-quantize on the same input, to the same types, with the same importance matrix.

Run: python benchmarks/quantize.py path/to/llama-quantize [--class IQ1_S-XL] [--rounds 3] [--model M --imatrix F]

Rounds are interleaved (ours, theirs, ours, ...); the input is read once before, so that both find it in the page cache.
Build the peer as the wheel is built (GGML_NATIVE=OFF with AVX2, FMA, F16C, BMI2), or compilers are compared.
Both wall times include the start of the process and the tables of the IQ1 types. Ours includes hashing source and
result, fsync, reading back, and the manifest, which the peer does not do; `kernel` is the conversion alone. After the
last round every tensor is compared: same type, same bytes. Without --model a small random MoE is made.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dfqs.gguf import GGMLType, TensorSource, f32, string, u32, write_gguf
from dfqs.gguf.file import GGUFFile
from dfqs.model.classes import CLASSES
from dfqs.quantize.imatrix_file import Accumulated, Imatrix, write_imatrix
from dfqs.quantize.quantize import quantize

WIDTH, EXPERT, EXPERTS, LAYERS = 1024, 512, 8, 2


def write_random_moe(path: Path) -> Imatrix:
    """25 million expert parameters of a llama-architecture MoE, and an importance matrix for them."""
    shapes: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (WIDTH, 1024))]
    for layer in range(LAYERS):
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
        u32("llama.block_count", LAYERS),
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


def differing_tensors(one: Path, other: Path) -> list[str]:
    """Tensors whose type or bytes are not the same."""
    with GGUFFile(one) as a, GGUFFile(other) as b:
        return [
            t.name
            for t in a.header.tensors
            if t.type is not b.header.tensor(t.name).type or a.read_tensor(t.name) != b.read_tensor(t.name)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer")
    parser.add_argument("--class", dest="class_name", default="IQ1_S-XL", choices=list(CLASSES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--imatrix", type=Path)
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model, imatrix = options.model, options.imatrix
        if model is None:
            model, imatrix = directory / "model.gguf", directory / "imatrix.gguf"
            write_imatrix(imatrix, write_random_moe(model))
        hashlib.sha256(model.read_bytes())
        ours, theirs = directory / "ours.gguf", directory / "theirs.gguf"
        expert_type = options.class_name.removesuffix("-XL").lower()
        command = [options.peer, "--allow-requantize"]
        command += ["--imatrix", str(imatrix), "--exclude-weights", "attn_output_a"] if imatrix else []
        command += ["--tensor-type", f"ffn_(gate|up|down)_exps={expert_type}"]
        # What the class keeps at F32 and the tool would make Q8_0.
        command += ["--tensor-type", "hc_=f32", "--tensor-type", "_ape=f32"]
        command += [str(model), str(theirs), "Q8_0", str(threads)]
        wall: dict[str, list[float]] = {"ours": [], "kernel": [], "theirs": []}
        for _ in range(options.rounds):
            ours.unlink(missing_ok=True)
            started = time.perf_counter()
            result = quantize(model, ours, CLASSES[options.class_name], imatrix=imatrix)
            wall["ours"].append(time.perf_counter() - started)
            wall["kernel"].append(result.outcome.wall_s)
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            wall["theirs"].append(time.perf_counter() - started)
        parameters = result.plan.parameters_to_quantize
        different = differing_tensors(ours, theirs)
        total = len(result.plan.tensors)
    print(f"{options.class_name}, {parameters / 1e6:.1f} M parameters, {threads} threads, {options.rounds} rounds\n")
    print("| | wall s, median (min-max) | M parameters/s |")
    print("|---|---|---|")
    labels = {"ours": "dfqs quantize, all", "kernel": "dfqs quantize, in the worker", "theirs": "llama-quantize, all"}
    for key, seconds in wall.items():
        median = statistics.median(seconds)
        span = f"{median:.2f} ({min(seconds):.2f}-{max(seconds):.2f})"
        print(f"| {labels[key]} | {span} | {parameters / 1e6 / median:.2f} |")
    print(
        f"\n{total - len(different)} of {total} tensors byte-identical" + (f"; not: {different}" if different else "")
    )


if __name__ == "__main__":
    main()
