"""What each architecture reads for itself, held against the runtime: no file is faulted for another's keys."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dfqs.gguf import KeyValue, ValueType, f32, parse_header, string, u32
from dfqs.integrity import Severity, verify_structure
from dfqs.integrity.architectures import known_architectures
from fixtures_moe import write_tiny_moe
from gguf_builder import write_small
from key_cases import Runtime, as_type, write_variant
from moe_families import FAMILIES

PRE = "tokenizer.ggml.pre"


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    found = Runtime()
    yield found
    found.close()


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    return write_tiny_moe(tmp_path_factory.mktemp("keys") / "moe.gguf", smollm2_gguf, "qwen3moe")


def errors(path: Path) -> list[str]:
    return [f"{f.name}: {f.message}" for f in verify_structure(path).findings if f.severity is Severity.ERROR]


def write_with_data(base: Path, path: Path, changes: Sequence[KeyValue]) -> Path:
    """A variant that has its tensors, so that it can compute."""
    write_variant(base, path, changes)
    with base.open("rb") as source, path.open("r+b") as target:
        source.seek(parse_header(base).data_offset)
        target.seek(parse_header(path).data_offset)
        shutil.copyfileobj(source, target)
    return path


@pytest.mark.parametrize("architecture", ["deepseek2", "gpt-oss", "qwen35moe", "gemma4", "lfm2moe", "nemotron_h_moe"])
def test_a_key_that_its_architecture_reads_is_missed_and_typed_as_the_runtime_does(
    architecture: str, smollm2_gguf: Path, runtime: Runtime, tmp_path: Path
) -> None:
    base = write_tiny_moe(tmp_path / "m.gguf", smollm2_gguf, architecture)
    path = tmp_path / "v.gguf"
    header = parse_header(base)
    known = known_architectures()[architecture]
    for key in sorted(known.read):
        name = f"{architecture}.{key}"
        if name not in header.metadata:
            assert key not in known.required
            continue
        write_variant(base, path, without=[name])
        if key in known.required:
            assert not runtime.loads(path)
            assert errors(path), name
        write_variant(base, path, [as_type(name, ValueType.STRING, "a")])
        assert runtime.loads(path) == (not errors(path)), name


def test_a_key_of_another_architecture_is_not_faulted(moe: Path, runtime: Runtime, tmp_path: Path) -> None:
    """The runtime passes over it, whatever its type: a converter of its own may have put it there."""
    extra = [
        string("qwen3moe.ssm.conv_kernel", "4"),
        u32("qwen3moe.logit_scale", 1),
        f32("qwen3moe.expert_gating_func", 2),
    ]
    path = write_variant(moe, tmp_path / "v.gguf", extra)

    assert runtime.loads(path)
    assert verify_structure(path).findings == ()


@pytest.mark.parametrize(
    ("architecture", "turns"), [("qwen35moe", (16, 31, 64)), ("nemotron_h_moe", (31, 64)), ("glm4moe", (16, 64))]
)
def test_turns_of_a_head_are_faulted_where_a_decode_dies_of_them(
    architecture: str, turns: tuple[int, ...], smollm2_gguf: Path, runtime: Runtime, tmp_path: Path
) -> None:
    """A context is made with any number; the kernel that turns is met by the first token."""
    base = write_tiny_moe(tmp_path / "m.gguf", smollm2_gguf, architecture)
    for turn in turns:
        path = write_with_data(base, tmp_path / "v.gguf", [u32(f"{architecture}.rope.dimension_count", turn)])
        assert runtime.decodes(path) == (not errors(path)), turn


def test_a_turned_part_of_another_length_than_the_latent_keys_leave_it_is_faulted(
    smollm2_gguf: Path, runtime: Runtime, tmp_path: Path
) -> None:
    base = write_tiny_moe(tmp_path / "m.gguf", smollm2_gguf, "deepseek2")
    name = "deepseek2.rope.dimension_count"
    right = parse_header(base).metadata.integer(name)
    assert right is not None
    for turned in (right, right // 2, right * 2):
        path = write_with_data(base, tmp_path / "v.gguf", [u32(name, turned)])
        assert runtime.loads(path) == (turned == right), turned
        assert [said.partition(":")[0] for said in errors(path)] == ([] if turned == right else [name])


def test_a_tokenizer_that_needs_no_merges_has_none_missing(moe: Path, runtime: Runtime, tmp_path: Path) -> None:
    kimi = write_variant(moe, tmp_path / "kimi.gguf", [string(PRE, "kimi-k2")], without=["tokenizer.ggml.merges"])

    assert runtime.loads(kimi)
    assert verify_structure(kimi).findings == ()


@pytest.mark.parametrize("model", ["plamo3", "whitespace", "hybriddna", "rwkv"])
def test_a_tokenizer_that_the_runtime_knows_is_not_unknown(model: str, moe: Path, tmp_path: Path) -> None:
    path = write_variant(moe, tmp_path / "v.gguf", [string("tokenizer.ggml.model", model)])

    assert errors(path) == []


def test_what_this_runtime_does_not_know_is_said_and_not_called_broken(
    moe: Path, runtime: Runtime, tmp_path: Path
) -> None:
    """A newer model than the runtime: its form may be right, and dfqs cannot run it."""
    path = write_variant(moe, tmp_path / "pre.gguf", [string(PRE, "of-tomorrow")])
    (finding,) = verify_structure(path).findings
    assert not runtime.loads(path)
    assert (finding.code, finding.name, finding.severity) == ("unknown", PRE, Severity.WARNING)
    assert "'of-tomorrow'" in finding.message

    path = write_variant(moe, tmp_path / "arch.gguf", [string("general.architecture", "of-tomorrow")])
    assert not runtime.loads(path)
    assert ("unknown", "general.architecture") in {(f.code, f.name) for f in verify_structure(path).findings}
    assert errors(path) == []


@pytest.mark.parametrize("architecture", ["flux", "sd3", "whisper", "llama9"])
def test_a_model_for_another_program_is_not_condemned(architecture: str, tmp_path: Path) -> None:
    """Image models are kept as GGUF with nothing but their architecture; no converter of theirs is at fault."""
    path = write_small(tmp_path / "m.gguf", keys=[string("general.architecture", architecture)])

    (finding,) = verify_structure(path).findings

    assert (finding.code, finding.severity) == ("unknown", Severity.WARNING)


@pytest.mark.parametrize("name", ["", "default", "qwen2", "kimi-k2", "tekken", "gpt-4o"])
def test_a_pre_tokenizer_that_is_in_use_is_known(name: str, moe: Path, runtime: Runtime, tmp_path: Path) -> None:
    path = write_variant(moe, tmp_path / "v.gguf", [string(PRE, name)])

    assert runtime.loads(path)
    assert verify_structure(path).findings == ()


def test_every_family_of_the_tests_is_in_the_table() -> None:
    assert set(FAMILIES) | {"llama", "deepseek4", "phimoe", "granitehybrid"} <= set(known_architectures())
