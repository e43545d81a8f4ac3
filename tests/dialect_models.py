"""Models in the words of forks of llama.cpp, made of models in llama.cpp's: what `repair --dialect` is tried on.

The names are written down here a second time, as the forks have them, so that a mistake in the program's table shows.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from dfqs.gguf import KeyValue, RawKeyValue, TensorInfo, TensorSource, f32, write_gguf
from dfqs.gguf.file import GGUFFile

NISPARKS_TENSORS = {
    r"output_hc_(base|fn|scale)\.weight": r"hc_head_\1",
    r"(blk\.\d+\.hc_(?:attn|ffn)_(?:base|fn|scale))\.weight": r"\1",
    r"(blk\.\d+\.attn_sinks)\.weight": r"\1",
    r"(blk\.\d+\.attn_kv)\.weight": r"\1_latent.weight",
    r"(blk\.\d+\.)attn_compressor_ape\.weight": r"\1attn_compress_ape",
    r"(blk\.\d+\.)attn_compressor_(kv|gate|norm)\.weight": r"\1attn_compress_\2.weight",
    r"(blk\.\d+\.)indexer_compressor_ape\.weight": r"\1indexer.compress_ape",
    r"(blk\.\d+\.)indexer_compressor_(kv|gate|norm)\.weight": r"\1indexer.compress_\2.weight",
    r"(blk\.\d+\.exp_probs_b)\.bias": r"\1",
    r"(blk\.\d+\.ffn_gate_tid2eid)\.weight": r"\1",
}
NISPARKS_LACKS = (
    "vocab_size",
    "attention.output_group_count",
    "attention.output_lora_rank",
    "attention.compress_ratios",
    "attention.compress_rope_freq_base",
    "hyper_connection.count",
    "hyper_connection.sinkhorn_iterations",
    "hyper_connection.epsilon",
    "hash_layer_count",
    "expert_gating_func",
    "expert_weights_norm",
)
"""The eight keys and `vocab_size` that antirez/ds4#661 counts, and two that the fork computes with unasked."""
Key = KeyValue | RawKeyValue


def write_nisparks(model: Path, out: Path, *, joined: bool = False, extra: Iterable[Key] = ()) -> Path:
    """A deepseek4 in the words of the branch of ggml-org/llama.cpp#22378; returns `out`.

    Args:
        joined: gate and up of a layer's experts in one tensor.
        extra: further keys, in place of those of the same name.
    """
    spare = (f32("deepseek4.rope.freq_base_swa", 160_000.0), *extra)
    lacking = {f"deepseek4.{name}" for name in NISPARKS_LACKS}
    return write_renamed(model, out, NISPARKS_TENSORS, lacking, spare, joined=joined)


def write_renamed(
    model: Path,
    out: Path,
    tensors: Mapping[str, str],
    without: Iterable[str] = (),
    extra: Iterable[Key] = (),
    *,
    keep: Callable[[str], bool] = lambda name: True,
    joined: bool = False,
) -> Path:
    """A model under other names; returns `out`.

    Args:
        tensors: patterns of whole names, and what stands for them.
        without: keys to leave out.
        extra: keys to add, in place of those of the same name.
        keep: tells of a tensor's own name whether it is kept.
    """
    more = tuple(extra)
    gone = {*without, *(key.name for key in more)}
    with GGUFFile(model) as file:
        header = file.header
        keys: list[Key] = [header.raw_entry(entry) for entry in header.entries if entry.name not in gone]
        sources: list[TensorSource] = []
        for tensor in header.tensors:
            if not keep(tensor.name) or (joined and "ffn_up_exps" in tensor.name):
                continue
            if joined and "ffn_gate_exps" in tensor.name:
                other = header.tensor(tensor.name.replace("_gate_", "_up_"))
                sources.append(_join(file, tensor, other))
                continue
            sources.append(
                TensorSource(_renamed(tensor.name, tensors), tensor.shape, tensor.type, _reader(file, tensor))
            )
        write_gguf(out, [*keys, *more], sources)
    return out


def _renamed(name: str, tensors: Mapping[str, str]) -> str:
    for pattern, replacement in tensors.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def _reader(file: GGUFFile, tensor: TensorInfo) -> Callable[[], Iterator[bytes]]:
    def read() -> Iterator[bytes]:
        yield file.source.read_exactly(file.header.span(tensor).offset, tensor.length)

    return read


def _join(file: GGUFFile, gate: TensorInfo, up: TensorInfo) -> TensorSource:
    columns, rows, experts = gate.shape

    def read() -> Iterator[bytes]:
        halves = [file.source.read_exactly(file.header.span(half).offset, half.length) for half in (gate, up)]
        share = gate.length // experts
        for expert in range(experts):
            for half in halves:
                yield half[expert * share : (expert + 1) * share]

    name = gate.name.replace("_gate_", "_gate_up_")
    return TensorSource(name, (columns, 2 * rows, experts), gate.type, read)
