"""Counting parameters, finding roles, recognising classes."""

from pathlib import Path

import pytest

from dfqs.errors import FormatError
from dfqs.gguf import BytesSource, GGMLType, encode_header, read_header, string, u32
from dfqs.gguf.types import file_type_name
from dfqs.model.classes import CLASSES, model_tier, recognise_class, tier_of
from dfqs.model.facts import find_facts
from dfqs.model.snapshot import snapshot_rows
from dfqs.model.spec import Role, measure_roles, read_model_spec, tensor_layer, tensor_role
from gguf_builder import SMALL_KEYS, SMALL_TENSORS, write_small


@pytest.mark.parametrize(
    "name, role",
    [
        ("blk.0.ffn_gate_exps.weight", Role.ROUTED_EXPERT),
        ("blk.12.ffn_down_shexp.weight", Role.SHARED_EXPERT),
        ("blk.0.ffn_gate_inp.weight", Role.ROUTER),
        ("blk.0.ffn_gate_tid2eid.weight", Role.TABLE),
        ("blk.0.exp_probs_b.bias", Role.BIAS),
        ("blk.0.attn_q_a_norm.weight", Role.NORM),
        ("blk.0.indexer_compressor_norm.weight", Role.NORM),
        ("blk.0.indexer.attn_q_b.weight", Role.ATTENTION),
        ("blk.0.attn_sinks.weight", Role.BIAS),
        ("blk.0.hc_attn_fn.weight", Role.HYPER_CONNECTION),
        ("output_hc_base.weight", Role.HYPER_CONNECTION),
        ("blk.3.ffn_up.weight", Role.DENSE_FFN),
        ("token_embd.weight", Role.EMBEDDING),
        ("output.weight", Role.OUTPUT),
        ("output_norm.weight", Role.NORM),
        ("blk.46.nextn.eh_proj.weight", Role.DENSE_FFN),
        ("blk.46.nextn.shared_head_head.weight", Role.OUTPUT),
        ("blk.46.nextn.embed_tokens.weight", Role.EMBEDDING),
        ("blk.46.nextn.enorm.weight", Role.NORM),
        ("blk.0.shortconv.in_proj.weight", Role.ATTENTION),
        ("blk.0.ffn_down_exps.scale", Role.BIAS),
        ("something.else", Role.OTHER),
    ],
)
def test_role_of_a_tensor(name: str, role: Role) -> None:
    assert tensor_role(name) is role


def test_layer_is_read_from_the_name() -> None:
    assert tensor_layer("blk.17.attn_q.weight") == 17
    assert tensor_layer("output.weight") is None


def test_parameters_of_a_small_model_counted_by_hand(tmp_path: Path) -> None:
    spec = read_model_spec(read_header(write_small(tmp_path / "m.gguf")))

    experts = 64 * 8 * 3
    rest = 640 + 64 + 64 * 3 + 640
    assert spec.parameters == experts + rest
    assert spec.parameters_active == rest + experts * 2 // 3
    assert (spec.experts, spec.experts_used, spec.layers) == (3, 2, 1)
    routed = spec.role(Role.ROUTED_EXPERT)
    assert routed is not None
    assert routed.bits_per_weight == 34 * 8 / 32


def test_routing_tables_are_not_counted_as_parameters() -> None:
    header = encode_header(
        [string("general.architecture", "deepseek4")], [("blk.0.ffn_gate_tid2eid.weight", (6, 100), GGMLType.I32)]
    )

    spec = read_model_spec(read_header(BytesSource(header + bytes(2400))))

    assert spec.parameters == 0
    assert spec.bits_per_weight is None


def test_model_that_claims_more_experts_used_than_it_has_is_refused() -> None:
    keys = [string("general.architecture", "x"), u32("x.expert_count", 2), u32("x.expert_used_count", 3)]

    with pytest.raises(FormatError, match="3 of 2 experts"):
        read_model_spec(read_header(BytesSource(encode_header(keys, []))))


@pytest.mark.parametrize("key", [u32("general.architecture", 5), string("x.block_count", "many")])
def test_key_of_the_wrong_type_is_refused_and_named(key: object) -> None:
    keys = [key] if key.name == "general.architecture" else [string("general.architecture", "x"), key]  # type: ignore[attr-defined]

    with pytest.raises(FormatError, match="must be a"):
        read_model_spec(read_header(BytesSource(encode_header(keys, []))))  # type: ignore[arg-type]


def test_file_without_architecture_is_not_described() -> None:
    with pytest.raises(FormatError, match=r"general\.architecture"):
        read_model_spec(read_header(BytesSource(encode_header([], []))))


def test_class_is_recognised_and_a_deviation_is_named(tmp_path: Path) -> None:
    pinned = [(name, shape, GGMLType.Q8_0 if type_ is GGMLType.F16 else type_) for name, shape, type_ in SMALL_TENSORS]
    exact = recognise_class(read_model_spec(read_header(write_small(tmp_path / "exact.gguf", pinned))))
    assert exact is not None
    assert (exact.name, exact.exact) == ("Q8_0", True)

    near = recognise_class(read_model_spec(read_header(write_small(tmp_path / "near.gguf"))))

    assert near is not None
    assert near.deviations == ("embeddings: 100.0% of the weights are F16, the class has Q8_0",)


def test_dense_model_has_no_class(tmp_path: Path) -> None:
    tensors = [tensor for tensor in SMALL_TENSORS if "exps" not in tensor[0]]
    keys = [key for key in SMALL_KEYS if "expert" not in key.name]

    spec = read_model_spec(read_header(write_small(tmp_path / "dense.gguf", tensors, keys)))

    assert recognise_class(spec) is None
    assert not spec.is_moe
    assert spec.parameters_active == spec.parameters


def test_every_class_has_another_expert_type_so_that_recognition_is_unambiguous() -> None:
    types = [entry.expert_type for entry in CLASSES.values()]

    assert len(set(types)) == len(types)


@pytest.mark.parametrize(
    "bits, name", [(1.75, "IQ1"), (1.999, "IQ1"), (2.3, "IQ2"), (4.8, "Q4-Q6"), (8.5, "FP16/FP8"), (16, "FP16/FP8")]
)
def test_tier_by_bits_per_weight(bits: float, name: str) -> None:
    assert tier_of(bits).name == name


def test_bytes_of_roles_add_up_to_the_tensors(tmp_path: Path) -> None:
    header = read_header(write_small(tmp_path / "m.gguf"))

    assert sum(size.bytes for size in measure_roles(header.tensors)) == sum(t.length for t in header.tensors)


def test_an_embedding_that_outweighs_the_blocks_does_not_decide_the_tier(tmp_path: Path) -> None:
    """A Q4_K_M of 270 M with a large vocabulary was "Frontier Models (FP16/FP8)"."""
    tensors = [
        ("token_embd.weight", (256, 4096), GGMLType.F16),
        ("blk.0.ffn_up.weight", (256, 64), GGMLType.Q4_K),
        ("blk.0.attn_norm.weight", (256,), GGMLType.F32),
        ("output.weight", (256, 4096), GGMLType.Q8_0),
    ]
    keys = [key for key in SMALL_KEYS if "expert" not in key.name]
    spec = read_model_spec(
        read_header(write_small(tmp_path / "m.gguf", tensors, [*keys, u32("general.file_type", 15)]))
    )
    without = read_model_spec(read_header(write_small(tmp_path / "n.gguf", tensors[:1], keys)))

    tier = model_tier(spec)
    assert tier is not None
    assert (spec.main_bits_per_weight, tier.name) == (4.5, "Q4-Q6")
    assert spec.bits_per_weight is not None and spec.bits_per_weight > 12
    assert model_tier(without) is None


def test_native_mxfp4_experts_are_of_the_tier_of_their_bits(tmp_path: Path) -> None:
    tensors = [
        ("blk.0.ffn_up_exps.weight", (64, 32, 3), GGMLType.MXFP4),
        ("enc.blk.1.attn_norm.weight", (64, 1), GGMLType.F32),
    ]
    spec = read_model_spec(read_header(write_small(tmp_path / "m.gguf", tensors)))

    assert spec.main_bits_per_weight == 4.25


def test_the_file_type_is_shown_by_its_name_and_a_declared_class_is_not_none(tmp_path: Path) -> None:
    keys = [key for key in SMALL_KEYS if "expert" not in key.name]
    tensors = [tensor for tensor in SMALL_TENSORS if "exps" not in tensor[0]]
    more = [u32("general.file_type", 1024 + 15), string("dfqs.class", "Q8_0")]
    spec = read_model_spec(read_header(write_small(tmp_path / "m.gguf", tensors, [*keys, *more])))
    rows = dict(snapshot_rows(find_facts(spec, files=1, file_bytes=1)))

    assert spec.file_type == "MOSTLY_Q4_K_M (guessed)"
    assert rows["File type"] == "MOSTLY_Q4_K_M (guessed)"
    assert rows["DFQS Class"] == "Q8_0 (declared)"
    assert file_type_name(99) == "unknown (99)"
