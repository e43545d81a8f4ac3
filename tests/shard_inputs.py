"""Deterministic inputs for shard tests: models packed by hand (not by our writer), and shards as others write them.

Every expert slice, every tensor and every place in one holds other bytes, so that nothing can be swapped unseen.
"""

import hashlib
import struct
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

import gguf
from dfqs.gguf import GGMLType, read_header, tensor_length

Shape = tuple[int, ...]
Tensor = tuple[str, Shape, GGMLType]
Entry = bytes

EXPERTS = 6


@cache
def payload(name: str, shape: Shape, type_: GGMLType, seed: str = "") -> bytes:
    """A tensor's bytes; for a tensor of experts, each slice from its own stream."""
    length = tensor_length(type_, shape)
    if "_exps" not in name:
        return hashlib.shake_128(f"{seed}{name}".encode()).digest(length)
    experts = shape[2]
    return b"".join(expert_slice(name, index, length // experts, seed) for index in range(experts))


def expert_slice(name: str, expert: int, length: int, seed: str = "") -> bytes:
    return hashlib.shake_128(f"{seed}{name}/{expert}".encode()).digest(length)


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, type_: int, value: bytes) -> Entry:
    return text(key) + struct.pack("<I", type_) + value


def u16_entry(key: str, value: int) -> Entry:
    return entry(key, 2, struct.pack("<H", value))


def u32_entry(key: str, value: int) -> Entry:
    return entry(key, 4, struct.pack("<I", value))


def i32_entry(key: str, value: int) -> Entry:
    return entry(key, 5, struct.pack("<i", value))


def string_entry(key: str, value: str) -> Entry:
    return entry(key, 8, text(value))


def array_entry(key: str, type_: int, values: Sequence[bytes]) -> Entry:
    return entry(key, 9, struct.pack("<IQ", type_, len(values)) + b"".join(values))


def split_entries(number: int, count: int, tensors: int) -> list[Entry]:
    """In the order of gguf-py's shards."""
    return [
        u16_entry("split.no", number),
        u16_entry("split.count", count),
        i32_entry("split.tensors.count", tensors),
    ]


def pack_model(
    entries: Sequence[Entry], tensors: Sequence[Tensor], *, alignment: int = 32, seed: str = "", trim: bool = False
) -> bytes:
    """A whole file. Axes of size one stay as they are given, which our own writer would not do."""
    infos, data = bytearray(), bytearray()
    for name, shape, type_ in tensors:
        infos += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_, len(data))
        data += payload(name, shape, type_, seed)
        data += bytes(-len(data) % alignment)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + bytes(infos)
    return head + bytes(-len(head) % alignment) + bytes(data)


def model_tensors(layers: int = 6, columns: int = 256) -> list[Tensor]:
    """Some of every kind: block types, odd lengths, axes of size one, tables of integers."""
    tensors: list[Tensor] = [("token_embd.weight", (columns, 40), GGMLType.Q8_0)]
    for layer in range(layers):
        prefix = f"blk.{layer}"
        tensors += [
            (f"{prefix}.attn_norm.weight", (columns,), GGMLType.F32),
            (f"{prefix}.attn_q.weight", (columns, 32), GGMLType.BF16),
            (f"{prefix}.ffn_gate_inp.weight", (columns, EXPERTS), GGMLType.F32),
            (f"{prefix}.exp_probs_b.bias", (EXPERTS + 27,), GGMLType.F32),
            (f"{prefix}.ffn_gate_exps.weight", (columns, 32, EXPERTS), GGMLType.IQ1_S),
            (f"{prefix}.ffn_up_exps.weight", (columns, 32, EXPERTS), GGMLType.IQ2_XXS),
            (f"{prefix}.ffn_down_exps.weight", (32, columns, EXPERTS), GGMLType.Q4_0),
            (f"{prefix}.scale_trailing.weight", (7, 1), GGMLType.F16),
        ]
    return [
        *tensors,
        ("table.weight", (3, 5), GGMLType.I32),
        ("one.weight", (1, 1, 1, 1), GGMLType.F32),
        ("middle.weight", (1, 3, 1, 1), GGMLType.F64),
        ("output.weight", (columns, 40), GGMLType.Q4_K),
    ]


def model_entries(layers: int = 6, columns: int = 256) -> list[Entry]:
    """Keys of every type, a bool that is 2, names and values beyond ASCII, an empty array."""
    return [
        string_entry("general.architecture", "llama"),
        string_entry("general.name", "Prüfstück 模型 \U0001f9ea"),
        u32_entry("llama.block_count", layers),
        u32_entry("llama.embedding_length", columns),
        u32_entry("llama.expert_count", EXPERTS),
        u32_entry("llama.expert_used_count", 2),
        entry("test.u8", 0, b"\xfe"),
        entry("test.i8", 1, b"\xfe"),
        entry("test.i16", 3, struct.pack("<h", -300)),
        entry("test.f32", 6, struct.pack("<f", 1e-6)),
        entry("test.bool.true", 7, b"\x02"),
        entry("test.bool.false", 7, b"\x00"),
        entry("test.u64", 10, struct.pack("<Q", 1 << 63)),
        entry("test.i64", 11, struct.pack("<q", -(1 << 62))),
        entry("test.f64", 12, struct.pack("<d", -0.0)),
        array_entry("test.bools", 7, [b"\x01", b"\x00", b"\x07"]),
        array_entry("test.empty", 8, []),
        array_entry("tokenizer.ggml.tokens", 8, [text(t) for t in ("<s>", "ä", "", "▁the", "\n")]),
        array_entry("tokenizer.ggml.scores", 6, [struct.pack("<f", s) for s in (0.0, -1.5, 2.0, 3.0, 4.0)]),
        array_entry("tokenizer.ggml.token_type", 5, [struct.pack("<i", t) for t in (3, 1, 1, 1, 6)]),
        string_entry("ключ.unicode", "значение"),
    ]


def write_model(path: Path, *, alignment: int = 32, seed: str = "") -> Path:
    """The model that most shard tests use; some 1.3 MB."""
    entries = model_entries()
    if alignment != 32:
        entries.insert(3, u32_entry("general.alignment", alignment))
    path.write_bytes(pack_model(entries, model_tensors(), alignment=alignment, seed=seed))
    return path


def write_tiny(path: Path, *, seed: str = "") -> Path:
    """Six tensors, two of them of experts; some 30 kB, for tests that run hundreds of times."""
    path.write_bytes(pack_model(tiny_entries(), tiny_tensors(), seed=seed))
    return path


def tiny_entries() -> list[Entry]:
    return [
        string_entry("general.architecture", "llama"),
        string_entry("general.name", "tiny"),
        u32_entry("llama.block_count", 2),
        u32_entry("llama.embedding_length", 64),
        u32_entry("llama.expert_count", 3),
    ]


def tiny_tensors() -> list[Tensor]:
    return [
        ("token_embd.weight", (64, 50), GGMLType.Q8_0),
        ("blk.0.ffn_gate_exps.weight", (64, 40, 3), GGMLType.Q8_0),
        ("blk.0.attn_norm.weight", (64,), GGMLType.F32),
        ("blk.1.ffn_gate_exps.weight", (64, 40, 3), GGMLType.Q8_0),
        ("blk.1.attn_norm.weight", (64,), GGMLType.F32),
        ("output.weight", (64, 33), GGMLType.F16),
    ]


def write_shards(
    directory: Path,
    entries: Sequence[Entry],
    groups: Sequence[Sequence[Tensor]],
    *,
    prefix: str = "model",
    alignment: int = 32,
    seed: str = "",
    keys: Callable[[int, int, int], list[Entry]] = split_entries,
    keys_first: bool = False,
) -> list[Path]:
    """Shards packed by hand: `groups` of tensors, the `split.` keys after (or before) the model's."""
    directory.mkdir(parents=True, exist_ok=True)
    total = sum(len(group) for group in groups)
    paths = []
    for number, group in enumerate(groups):
        own = keys(number, len(groups), total)
        model = list(entries) if number == 0 else []
        path = directory / f"{prefix}-{number + 1:05d}-of-{len(groups):05d}.gguf"
        ordered = [*own, *model] if keys_first else [*model, *own]
        path.write_bytes(pack_model(ordered, group, alignment=alignment, seed=seed))
        paths.append(path)
    return paths


def write_three_shards(directory: Path) -> list[Path]:
    """The model of `model_tensors` in three shards."""
    tensors = model_tensors()
    entries = [*model_entries(), u32_entry("llama.context_length", 128)]
    return write_shards(directory, entries, [tensors[:7], tensors[7:31], tensors[31:]])


def write_gguf_py_shards(directory: Path) -> list[Path]:
    """Shards as the public gguf package writes them (convert_hf_to_gguf does the same)."""
    directory.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(directory / "model.gguf", "llama", split_max_tensors=9)
    writer.add_name("written by gguf-py")
    writer.add_block_count(4)
    writer.add_embedding_length(64)
    writer.add_bool("test.bool", True)
    writer.add_token_list(["<s>", "ä", "▁the"])
    for layer in range(4):
        for name, shape in (("attn_norm", (64,)), ("attn_q", (33, 64)), ("ffn_gate_exps", (EXPERTS, 8, 64))):
            key = f"blk.{layer}.{name}.weight"
            count = int(np.prod(shape))
            data = np.frombuffer(hashlib.shake_128(key.encode()).digest(count * 2), np.uint16)
            writer.add_tensor(key, (data.astype(np.float32) / 7).reshape(shape))
        writer.add_tensor(f"blk.{layer}.trailing.weight", np.full((1, 5), layer, np.float16))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return sorted(directory.glob("model-*.gguf"))


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(bytes(data))


def offset_in(path: Path, name: str, place: int) -> int:
    """Where byte `place` of a tensor stands in its file."""
    header = read_header(path)
    return header.span(header.tensor(name)).offset + place


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
