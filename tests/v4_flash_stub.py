"""A sparse file with the geometry of DeepSeek-V4-Flash in the class IQ1_S-XL: 62 GB long, 5 MB on disk.

A real header over a hole: it loads nowhere, but everything that reads headers can be tried at the true size.
"""

from functools import cache
from pathlib import Path

from dfqs.gguf import GGMLType, KeyValue, ValueType, array, boolean, encode_header, f32, string, tensor_length, u32

LAYERS, WIDTH, HEADS, HEAD_LENGTH = 43, 4096, 64, 512
EXPERTS, EXPERTS_USED, EXPERT_LENGTH = 256, 6, 2048
Q_LORA, OUTPUT_GROUPS, OUTPUT_RANK = 1024, 8, 1024
INDEXER_HEADS, INDEXER_LENGTH, STREAMS = 64, 128, 4
HASH_LAYERS, VOCABULARY = 3, 129_280
COMPRESS_RATIOS = (0, 0, *(4 if i % 2 == 0 else 128 for i in range(LAYERS - 2)))
MIXES = (2 + STREAMS) * STREAMS

Tensor = tuple[str, tuple[int, ...], GGMLType]


def write_v4_flash_stub(
    path: Path, expert_type: GGMLType = GGMLType.IQ1_S, pinned_type: GGMLType = GGMLType.Q8_0
) -> Path:
    """Write the stub; returns `path`."""
    header, data_bytes = v4_flash_header(expert_type, pinned_type)
    with path.open("xb") as file:
        file.write(header)
        file.truncate(len(header) + data_bytes)
    return path


@cache
def v4_flash_header(expert_type: GGMLType, pinned_type: GGMLType) -> tuple[bytes, int]:
    """The header, and how many bytes of data it promises."""
    tensors = v4_flash_tensors(expert_type, pinned_type)
    data_bytes = sum((tensor_length(type_, shape) + 31) // 32 * 32 for _, shape, type_ in tensors)
    return encode_header(v4_flash_keys(), tensors), data_bytes


def v4_flash_keys() -> list[KeyValue]:
    def own(key: KeyValue) -> KeyValue:
        return KeyValue(f"deepseek4.{key.name}", key.type, key.value, key.element_type)

    numbers = {
        "context_length": 1_048_576,
        "embedding_length": WIDTH,
        "embedding_length_out": WIDTH * STREAMS,
        "block_count": LAYERS,
        "feed_forward_length": EXPERT_LENGTH,
        "vocab_size": VOCABULARY,
        "attention.head_count": HEADS,
        "attention.head_count_kv": 1,
        "attention.key_length": HEAD_LENGTH,
        "attention.value_length": HEAD_LENGTH,
        "attention.q_lora_rank": Q_LORA,
        "attention.sliding_window": 128,
        "rope.dimension_count": 64,
        "expert_count": EXPERTS,
        "expert_used_count": EXPERTS_USED,
        "expert_shared_count": 1,
        "expert_feed_forward_length": EXPERT_LENGTH,
        "expert_gating_func": 4,
        "attention.indexer.head_count": INDEXER_HEADS,
        "attention.indexer.key_length": INDEXER_LENGTH,
        "attention.indexer.top_k": 512,
        "attention.output_group_count": OUTPUT_GROUPS,
        "attention.output_lora_rank": OUTPUT_RANK,
        "hyper_connection.count": STREAMS,
        "hyper_connection.sinkhorn_iterations": 20,
        "hash_layer_count": HASH_LAYERS,
    }
    reals = {
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 10_000.0,
        "expert_weights_scale": 1.5,
        "attention.compress_rope_freq_base": 160_000.0,
        "hyper_connection.epsilon": 1e-6,
    }
    return [
        string("general.architecture", "deepseek4"),
        string("general.name", "DeepSeek-V4-Flash geometry"),
        u32("general.quantization_version", 2),
        *(own(u32(name, value)) for name, value in numbers.items()),
        *(own(f32(name, value)) for name, value in reals.items()),
        own(boolean("expert_weights_norm", True)),
        own(array("swiglu_clamp_exp", ValueType.FLOAT32, [10.0] * LAYERS)),
        own(array("swiglu_clamp_shexp", ValueType.FLOAT32, [10.0] * LAYERS)),
        own(array("attention.compress_ratios", ValueType.INT32, COMPRESS_RATIOS)),
        string("tokenizer.ggml.model", "gpt2"),
        string("tokenizer.ggml.pre", "deepseek-v3"),
        array("tokenizer.ggml.tokens", ValueType.STRING, [f"t{i:06d}" for i in range(VOCABULARY)]),
        array("tokenizer.ggml.merges", ValueType.STRING, [f"t{i} u{i}" for i in range(127_741)]),
        u32("tokenizer.ggml.bos_token_id", 0),
        u32("tokenizer.ggml.eos_token_id", 1),
    ]


def v4_flash_tensors(expert: GGMLType, pinned: GGMLType) -> list[Tensor]:
    f32_type = GGMLType.F32
    tensors: list[Tensor] = [
        ("token_embd.weight", (WIDTH, VOCABULARY), pinned),
        ("output_norm.weight", (WIDTH,), f32_type),
        ("output.weight", (WIDTH, VOCABULARY), pinned),
        ("output_hc_fn.weight", (WIDTH * STREAMS, STREAMS), f32_type),
        ("output_hc_base.weight", (STREAMS,), f32_type),
        ("output_hc_scale.weight", (1,), f32_type),
    ]
    for layer, ratio in enumerate(COMPRESS_RATIOS):
        parts = [*_attention(pinned), *_compressor(ratio, pinned), *_feed_forward(layer, expert, pinned)]
        tensors.extend((f"blk.{layer}.{name}", shape, type_) for name, shape, type_ in parts)
    return tensors


def _attention(pinned: GGMLType) -> list[Tensor]:
    f32_type = GGMLType.F32
    parts: list[Tensor] = [
        ("attn_norm.weight", (WIDTH,), f32_type),
        ("attn_sinks.weight", (HEADS,), f32_type),
        ("attn_q_a.weight", (WIDTH, Q_LORA), pinned),
        ("attn_q_a_norm.weight", (Q_LORA,), f32_type),
        ("attn_q_b.weight", (Q_LORA, HEADS * HEAD_LENGTH), pinned),
        ("attn_kv.weight", (WIDTH, HEAD_LENGTH), pinned),
        ("attn_kv_a_norm.weight", (HEAD_LENGTH,), f32_type),
        (
            "attn_output_a.weight",
            (HEADS * HEAD_LENGTH // OUTPUT_GROUPS, OUTPUT_RANK * OUTPUT_GROUPS),
            pinned,
        ),
        ("attn_output_b.weight", (OUTPUT_GROUPS * OUTPUT_RANK, WIDTH), pinned),
    ]
    for block in ("attn", "ffn"):
        parts.append((f"hc_{block}_fn.weight", (WIDTH * STREAMS, MIXES), f32_type))
        parts.append((f"hc_{block}_base.weight", (MIXES,), f32_type))
        parts.append((f"hc_{block}_scale.weight", (3,), f32_type))
    return parts


def _compressor(ratio: int, pinned: GGMLType) -> list[Tensor]:
    if not ratio:
        return []
    f32_type = GGMLType.F32
    width = HEAD_LENGTH * (2 if ratio == 4 else 1)
    parts: list[Tensor] = [
        ("attn_compressor_kv.weight", (WIDTH, width), pinned),
        ("attn_compressor_gate.weight", (WIDTH, width), pinned),
        ("attn_compressor_ape.weight", (width, ratio), f32_type),
        ("attn_compressor_norm.weight", (HEAD_LENGTH,), f32_type),
    ]
    if ratio == 4:
        parts += [
            ("indexer.proj.weight", (WIDTH, INDEXER_HEADS), pinned),
            ("indexer.attn_q_b.weight", (Q_LORA, INDEXER_HEADS * INDEXER_LENGTH), pinned),
            ("indexer_compressor_kv.weight", (WIDTH, 2 * INDEXER_LENGTH), pinned),
            ("indexer_compressor_gate.weight", (WIDTH, 2 * INDEXER_LENGTH), pinned),
            ("indexer_compressor_ape.weight", (2 * INDEXER_LENGTH, ratio), f32_type),
            ("indexer_compressor_norm.weight", (INDEXER_LENGTH,), f32_type),
        ]
    return parts


def _feed_forward(layer: int, expert: GGMLType, pinned: GGMLType) -> list[Tensor]:
    router: Tensor = ("exp_probs_b.bias", (EXPERTS,), GGMLType.F32)
    if layer < HASH_LAYERS:
        router = ("ffn_gate_tid2eid.weight", (EXPERTS_USED, VOCABULARY), GGMLType.I32)
    into, back = (WIDTH, EXPERT_LENGTH), (EXPERT_LENGTH, WIDTH)
    return [
        ("ffn_gate_inp.weight", (WIDTH, EXPERTS), GGMLType.F32),
        router,
        ("ffn_norm.weight", (WIDTH,), GGMLType.F32),
        ("ffn_gate_exps.weight", (*into, EXPERTS), expert),
        ("ffn_down_exps.weight", (*back, EXPERTS), expert),
        ("ffn_up_exps.weight", (*into, EXPERTS), expert),
        ("ffn_gate_shexp.weight", into, pinned),
        ("ffn_down_shexp.weight", back, pinned),
        ("ffn_up_shexp.weight", into, pinned),
    ]
