"""verify's table of keys against the runtime: what llama.cpp refuses or dies of is found, what it loads is not."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import dense_llama
from dense_llama import write_dense_llama
from dfqs.gguf import KeyValue, ValueType, array, f32, i32, parse_header, string, u16, u32
from dfqs.integrity import Severity, verify_structure
from fixtures_moe import write_tiny_moe
from key_cases import Runtime, as_array, as_type, write_variant
from moe_families import FAMILIES

V = ValueType
A = "qwen3moe"
TOKENIZER = "tokenizer.ggml."


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    return write_tiny_moe(tmp_path_factory.mktemp("keys") / "moe.gguf", smollm2_gguf, A)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dense_llama(tmp_path_factory.mktemp("keys") / "dense.gguf")


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    found = Runtime()
    yield found
    found.close()


def errors(path: Path) -> list[str]:
    return [f"{f.name}: {f.message}" for f in verify_structure(path).findings if f.severity is Severity.ERROR]


def test_a_key_that_the_runtime_needs_is_missed_by_both(
    dense: Path, moe: Path, runtime: Runtime, tmp_path: Path
) -> None:
    path = tmp_path / "v.gguf"
    needed = [
        *("block_count", "context_length", "embedding_length", "attention.head_count", "expert_used_count"),
        "attention.layer_norm_rms_epsilon",
    ]
    for base, name in [
        *((moe, f"{A}.{name}") for name in needed),
        *((moe, f"{TOKENIZER}{name}") for name in ("model", "tokens", "merges")),
        *((dense, f"llama.{name}") for name in ("attention.head_count", "attention.layer_norm_rms_epsilon")),
        *((moe, f"{A}.{name}") for name in ("rope.dimension_count", "feed_forward_length")),
        (moe, f"{TOKENIZER}token_type"),
    ]:
        write_variant(base, path, without=[name])
        assert runtime.loads(path) == (not verify_structure(path).findings), name


def disagreements(
    runtime: Runtime, base: Path, path: Path, cases: Sequence[Sequence[KeyValue]], *, context: bool = False
) -> list[str]:
    """Cases that one of the two accepts and the other does not."""
    wrong = []
    for changes in cases:
        write_variant(base, path, changes)
        found = errors(path)
        if runtime.loads(path, context=context) != (not found):
            shown = ", ".join(f"{key.name} {key.type.name} {key.element_type} {key.value!r:.30}" for key in changes)
            wrong.append(f"{shown}: verify found {found}")
    return wrong


def test_every_type_of_every_key_is_accepted_by_both_or_by_neither(moe: Path, runtime: Runtime, tmp_path: Path) -> None:
    header = parse_header(moe)
    cases: list[list[KeyValue]] = []
    for entry in header.entries:
        if entry.name == "tokenizer.chat_template":
            continue
        if entry.type is V.ARRAY:
            first = 1 if entry.element_type is V.INT32 else "a"
            types: tuple[V, ...] = (V.UINT8, V.UINT32, V.FLOAT32, V.STRING)
            cases += [[as_array(entry.name, t, first, entry.count)] for t in types if t is not entry.element_type]
            cases.append([as_type(entry.name, V.STRING, "a")])
            continue
        value = header.metadata[entry.name]
        if entry.name.endswith("_length") and not entry.name.endswith("feed_forward_length"):
            types = (V.INT32, V.FLOAT32, V.STRING)
        else:
            types = (V.UINT8, V.INT32, V.UINT64, V.FLOAT32, V.BOOL, V.STRING)
        cases += [[as_type(entry.name, t, value)] for t in types if t is not entry.type]
        cases += [[as_array(entry.name, t, value, 3)] for t in (V.UINT32, V.FLOAT32)]
        cases += [[as_array(entry.name, entry.type, value, count)] for count in (0, 1, 4)]

    assert disagreements(runtime, moe, tmp_path / "v.gguf", cases) == []


def test_counts_that_the_runtime_dies_of_are_found_and_no_others(moe: Path, runtime: Runtime, tmp_path: Path) -> None:
    def groups(count: int, used: int) -> list[KeyValue]:
        return [u32(f"{A}.expert_group_count", count), u32(f"{A}.expert_group_used_count", used)]

    cases = [
        *([u32(f"{A}.expert_used_count", used)] for used in (0, 8, 9)),
        *([array(f"{A}.expert_used_count", V.INT32, used)] for used in ([2, 9, 2], [2, 0, 2], [2, -1, 2])),
        *([u32(f"{A}.expert_count", count)] for count in (7, 513)),
        *(groups(*pair) for pair in ((0, 3), (1, 0), (4, 2), (2, 0), (2, 2), (3, 1), (8, 1))),
        *([u32(f"{A}.block_count", count)] for count in (0, 2, 4, 513)),
        *([string(f"{A}.rope.scaling.type", word)] for word in ("none", "yarn", "longrope", "dynamic", "")),
    ]

    assert disagreements(runtime, moe, tmp_path / "v.gguf", cases) == []


def test_a_vocabulary_that_does_not_add_up_is_found(moe: Path, runtime: Runtime, tmp_path: Path) -> None:
    tokens = parse_header(moe).metadata[f"{TOKENIZER}tokens"]
    assert isinstance(tokens, tuple)
    cases: list[list[KeyValue]] = [
        *([array(f"{TOKENIZER}tokens", V.STRING, t)] for t in (tokens[:-1], (), (*tokens, "x"))),
        *([array(f"{TOKENIZER}token_type", V.INT32, [1] * count)] for count in (0, 4095, 4096, 4097)),
        *([array(f"{TOKENIZER}scores", V.FLOAT32, [0.0] * count)] for count in (4095, 4096, 4097)),
        *([array(f"{TOKENIZER}scores", t, [0] * 4096)] for t in (V.FLOAT64, V.INT32, V.UINT32)),
        *([string(f"{TOKENIZER}model", word)] for word in ("none", "llama", "gpt2", "t5", "rwkv", "spm", "tekken", "")),
        *([KeyValue(f"{TOKENIZER}add_eos_token", t, 1)] for t in (V.BOOL, V.UINT32, V.INT8)),
        *([KeyValue(f"{TOKENIZER}eot_token_id", t, 1)] for t in (V.UINT32, V.INT32, V.UINT64)),
        *([array(f"{TOKENIZER}suppress_tokens", t, [1])] for t in (V.INT32, V.UINT32)),
        *(
            [string(f"{TOKENIZER}model", "t5"), array(f"{TOKENIZER}precompiled_charsmap", t, [0] * 8)]
            for t in (V.UINT8, V.INT8, V.INT32)
        ),
    ]

    assert disagreements(runtime, moe, tmp_path / "v.gguf", cases) == []


def test_heads_that_do_not_divide_and_turns_that_do_not_fit_are_found(
    dense: Path, moe: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [[u32("llama.rope.dimension_count", n)] for n in (0, 16, 31, 32, 64)]
    partial = [[u32(f"{A}.rope.dimension_count", n)] for n in (0, 16, 31, 32, 64)]
    monkeypatch.setattr(dense_llama, "KV_HEADS", 2)
    two_for_three = write_dense_llama(tmp_path / "heads.gguf")

    assert disagreements(runtime, dense, tmp_path / "v.gguf", turns, context=True) == []
    assert disagreements(runtime, moe, tmp_path / "v.gguf", partial, context=True) == []
    assert disagreements(runtime, two_for_three, tmp_path / "v.gguf", [[]], context=True) == []
    assert "3 heads do not divide" in errors(two_for_three)[0]


def test_split_keys_and_a_model_without_a_tokenizer(dense: Path, runtime: Runtime, tmp_path: Path) -> None:
    cases: list[list[KeyValue]] = [
        *([u32("llama.vocab_size", count)] for count in (255, 256)),
        [i32("llama.vocab_size", 256)],
        [string("llama.vocab_size", "256")],
        [u32("llama.expert_used_count", 2)],
        [u32("llama.expert_used_count", 0), u32("llama.expert_count", 0)],
        *([KeyValue("split.count", t, 0)] for t in (V.UINT16, V.UINT32, V.INT32)),
        [u16("split.count", 1), u32("split.no", 0)],
        [u16("split.count", 3), u16("split.no", 0)],
        [f32("llama.logit_scale", 1.0)],
        [f32("llama.rope.scaling.factor", 2.0)],
        [u32("llama.rope.scaling.factor", 2)],
        [f32("llama.rope.scaling.original_context_length", 2.0)],
        [u32("llama.attention.causal", 1)],
    ]

    assert disagreements(runtime, dense, tmp_path / "v.gguf", cases) == []


@pytest.mark.parametrize("architecture", FAMILIES)
def test_no_family_that_the_runtime_loads_is_faulted(architecture: str, smollm2_gguf: Path, tmp_path: Path) -> None:
    path = write_tiny_moe(tmp_path / "m.gguf", smollm2_gguf, architecture)

    assert verify_structure(path).findings == ()


@pytest.mark.parametrize("fixture", ["embedded_model", "smollm2_gguf", "tiny_deepseek4"])
def test_no_model_that_is_in_use_is_faulted(fixture: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)

    assert verify_structure(path).findings == ()


def test_a_finding_names_the_type_that_is_read_and_a_fix(moe: Path, tmp_path: Path) -> None:
    path = write_variant(moe, tmp_path / "v.gguf", [string(f"{A}.context_length", "4096")])

    (finding,) = verify_structure(path).findings

    assert (finding.code, finding.name) == ("key-type", f"{A}.context_length")
    assert finding.message == "is STRING where llama.cpp reads UINT32, and refuses the file"
    assert finding.offset is not None
    assert "make it again" in finding.fix


def test_what_loads_and_is_useless_is_found_too(moe: Path, tmp_path: Path) -> None:
    """A template that is no text, numbers that are none, tokens that are not there: the runtime loads them."""
    path = tmp_path / "v.gguf"

    def of(*keys: KeyValue) -> list[tuple[str | None, Severity]]:
        return [(f.name, f.severity) for f in verify_structure(write_variant(moe, path, keys)).findings]

    assert of(u32("tokenizer.chat_template", 3)) == [("tokenizer.chat_template", Severity.ERROR)]
    assert of(f32(f"{A}.rope.freq_base", float("nan"))) == [(f"{A}.rope.freq_base", Severity.ERROR)]
    assert of(u32(f"{TOKENIZER}eos_token_id", 4096)) == [(f"{TOKENIZER}eos_token_id", Severity.WARNING)]
