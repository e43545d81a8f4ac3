"""Sound documents of every kind that is read back: what the mutations start from."""

import json
import struct
from pathlib import Path

import numpy as np

from dfqs.gguf import GGMLType, TensorSource, ValueType, array, string, u32, write_gguf
from dfqs.integrity import hash_model
from dfqs.integrity.manifest import manifest_of
from dfqs.quantize.logits_file import Conditions, Losses, write_losses
from gguf_builder import SMALL_KEYS, write_small
from report_documents import report_document, run_documents
from routing_traces import make_header, make_trace, write

RECIPE = """
name = "MINE"
base = "IQ1_S-XL"

[types]
"routed experts" = "Q4_K"

[[exception]]
layers = "0-2,5"
role = "routed experts"
type = "Q6_K"
"""


def gguf(scratch: Path) -> bytes:
    """A model that has keys of many kinds."""
    keys = (
        *SMALL_KEYS,
        string("tokenizer.chat_template", "{{ messages }}"),
        array("tokenizer.ggml.tokens", ValueType.STRING, ["a", "b", "c"]),
        array("llama.numbers", ValueType.INT32, [1, 2, 3]),
        u32("split.count", 1),
        string("dfqs.class", "Q4_K-XL"),
    )
    return write_small(scratch / "base.gguf", keys=keys).read_bytes()


def manifest(scratch: Path) -> bytes:
    path = write_small(scratch / "base.gguf")
    return json.dumps(manifest_of("base.gguf", hash_model(path, experts=True)).model_dump(mode="json")).encode()


def imatrix(scratch: Path) -> bytes:
    """Counts and sums for a plain tensor and one with experts."""

    def values(name: str, shape: tuple[int, ...]) -> TensorSource:
        data = np.ones(int(np.prod(shape)), "<f4").tobytes()
        return TensorSource(name, shape, GGMLType.F32, lambda: [data])

    keys = [
        string("general.type", "imatrix"),
        array("imatrix.datasets", ValueType.STRING, ["text"]),
        u32("imatrix.chunk_count", 2),
        u32("imatrix.chunk_size", 512),
    ]
    tensors = [
        values("blk.0.attn_q.weight.in_sum2", (64, 1)),
        values("blk.0.attn_q.weight.counts", (1, 1)),
        values("blk.0.ffn_up_exps.weight.in_sum2", (64, 3)),
        values("blk.0.ffn_up_exps.weight.counts", (1, 3)),
    ]
    write_gguf(scratch / "base.imatrix", keys, tensors)
    return (scratch / "base.imatrix").read_bytes()


def legacy_imatrix(_: Path) -> bytes:
    out = struct.pack("<i", 2)
    for name, count in (("blk.0.attn_q.weight", 64), ("blk.0.ffn_up_exps.weight", 192)):
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 3, count)
        out += np.ones(count, "<f4").tobytes()
    return out + struct.pack("<ii", 3, 4) + b"text"


def logits(scratch: Path) -> bytes:
    conditions = Conditions(text_sha256="a" * 64, vocabulary=100, window_tokens=8, stride_tokens=4, numerics="cpu")
    ids = np.tile(np.arange(5, dtype=np.int32), (6, 1))
    logs = np.tile(np.log(np.array([0.3, 0.2, 0.1, 0.1, 0.1], np.float32)), (6, 1)).astype(np.float32)
    losses = Losses("m", conditions, np.zeros(6, np.int32), np.full(6, 1.5, np.float32), ids, logs)
    write_losses(scratch / "base.logits", losses)
    return (scratch / "base.logits").read_bytes()


def trace(scratch: Path) -> bytes:
    header = make_header(3, 8, 2, scores=("probabilities", "selection"))
    path = scratch / "base.route"
    path.unlink(missing_ok=True)
    return write(path, make_trace(header, 20, 3)).read_bytes()


def run(_: Path) -> bytes:
    """`run.json` on the first line, `results.jsonl` on the others."""
    record, lines = run_documents()
    return b"".join(json.dumps(document).encode() + b"\n" for document in (record, *lines))


def lay_out_run(data: bytes, directory: Path) -> Path:
    """A run as `dfqs eval` lays it out, from the form of `run`."""
    head, _, rest = data.partition(b"\n")
    run_directory = directory / "run-1"
    run_directory.mkdir(parents=True, exist_ok=True)
    (run_directory / "run.json").write_bytes(head)
    (run_directory / "results.jsonl").write_bytes(rest)
    return directory


def report(_: Path) -> bytes:
    return json.dumps(report_document()).encode()
