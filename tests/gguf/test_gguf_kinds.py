"""A GGUF that is no model is called what it is, with a fix of its own, by every verb that meets it."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.errors import UsageError
from dfqs.gguf import GGMLType, KeyValue, ValueType, array, f32, parse_header, read_header, string, u32
from dfqs.gguf.kinds import MODEL, OTHER_KINDS, file_kind, require_model
from dfqs.integrity import Severity, verify_structure
from dfqs.runtime.checks import check_model
from gguf_builder import SMALL_KEYS, SMALL_TENSORS, write_small

Tensors = Sequence[tuple[str, tuple[int, ...], GGMLType]]
LLAMA = string("general.architecture", "llama")
LORA: Tensors = [
    ("blk.0.attn_q.weight.lora_a", (64, 8), GGMLType.F32),
    ("blk.0.attn_q.weight.lora_b", (8, 64), GGMLType.F32),
]
VISION: Tensors = [("v.blk.0.attn_q.weight", (64, 64), GGMLType.F16), ("mm.0.weight", (64, 64), GGMLType.F16)]
TOKENS = [
    string("tokenizer.ggml.model", "llama"),
    array("tokenizer.ggml.tokens", ValueType.STRING, ["a", "b"]),
]
KINDS: dict[str, tuple[str, list[KeyValue], Tensors]] = {
    "LoRA": ("adapter", [string("general.type", "adapter"), LLAMA, string("adapter.type", "lora")], LORA),
    "LoRA without a type": ("adapter", [LLAMA, string("adapter.type", "lora"), f32("adapter.lora.alpha", 16)], LORA),
    "mmproj": ("projector", [string("general.type", "mmproj"), string("general.architecture", "clip")], VISION),
    "projector that says model": (
        "projector",
        [string("general.type", "model"), string("general.architecture", "clip")],
        VISION,
    ),
    "imatrix": (
        "imatrix",
        [string("general.type", "imatrix"), u32("imatrix.chunk_count", 1)],
        [("blk.0.attn_q.weight.in_sum2", (64,), GGMLType.F32), ("blk.0.attn_q.weight.counts", (1,), GGMLType.F32)],
    ),
    "control vector": (
        "control-vector",
        [string("general.architecture", "controlvector"), string("controlvector.model_hint", "llama")],
        [("direction.1", (64,), GGMLType.F32)],
    ),
    "dataset": ("dataset", [string("general.type", "dataset"), LLAMA], [("training.tensor.0", (8,), GGMLType.F32)]),
    "logits": ("logits", [string("dfqs.logits.format", "dfqs.logits/1")], [("nll", (8,), GGMLType.F32)]),
    "vocabulary": ("vocabulary", [LLAMA, *TOKENS], []),
    "vocabulary by type": ("vocabulary", [LLAMA, string("general.type", "vocab"), *TOKENS], []),
}


@pytest.fixture(params=KINDS)
def other(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    code, keys, tensors = KINDS[request.param]
    return code, write_small(tmp_path / "other.gguf", tensors, keys)


def test_what_is_no_model_is_known_by_its_type_its_architecture_or_its_keys(other: tuple[str, Path]) -> None:
    code, path = other

    assert file_kind(parse_header(path)).code == code
    with pytest.raises(UsageError, match="not a model"):
        require_model(parse_header(path))


def test_verify_does_not_condemn_it_and_says_what_it_is_for(
    other: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = other

    (finding,) = verify_structure(path).findings

    assert (finding.code, finding.severity) == ("kind", Severity.WARNING)
    assert finding.fix in {kind.use for kind in OTHER_KINDS}
    assert run(["verify", str(path)]) == 0
    assert "class" not in capsys.readouterr().out.replace("classified", "")


def test_inspect_calls_it_what_it_is_and_not_a_dense_model(
    other: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, path = other
    word = next(kind.word for kind in OTHER_KINDS if kind.code == code)

    assert run(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert run(["inspect", str(path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)

    assert word.split(" ", 1)[1] in shown
    assert "dense" not in shown
    assert "Frontier" not in shown
    assert record["kind"] == code


@pytest.mark.parametrize(
    "words",
    [
        ["run", "-p", "hi"],
        ["quantize", "out.gguf", "--class", "Q8_0"],
        ["imatrix", "-o", "out.gguf"],
        ["perplexity"],
        ["eval", "-o", "out.gguf"],
    ],
)
def test_verbs_that_need_a_model_say_what_the_file_is(
    words: list[str], other: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = other
    arguments = [words[0], str(path), *(str(tmp_path / w) if w == "out.gguf" else w for w in words[1:])]

    assert run(arguments) == 2
    assert "not a model" in capsys.readouterr().err


def test_a_model_stays_one_whatever_is_stored_beside_it(tmp_path: Path) -> None:
    plain = write_small(tmp_path / "m.gguf")
    typed = write_small(tmp_path / "t.gguf", keys=[*SMALL_KEYS, string("general.type", "model")])
    unknown = write_small(tmp_path / "u.gguf", keys=[*SMALL_KEYS, string("general.type", "something new")])
    wrong = write_small(tmp_path / "w.gguf", keys=[*SMALL_KEYS, u32("general.type", 3)])

    assert {file_kind(read_header(path)) for path in (plain, typed, unknown, wrong)} == {MODEL}
    assert check_model(plain).path == plain


def patched(path: Path, offset: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


def test_other_byte_orders_and_versions_have_fixes_of_their_own(tmp_path: Path) -> None:
    big = patched(write_small(tmp_path / "b.gguf"), 4, struct.pack(">I", 3))
    old = patched(write_small(tmp_path / "o.gguf"), 4, struct.pack("<I", 1))
    codes = {}
    for path in (big, old):
        (finding,) = verify_structure(path).findings
        codes[finding.code] = finding.fix

    assert set(codes) == {"big-endian", "version-1"}
    assert "gguf_convert_endian" in codes["big-endian"]
    assert "convert the original again" in codes["version-1"]
    assert not any("broken" in fix for fix in codes.values())


def test_a_tensor_of_nothing_is_named_and_the_file_not_called_cut(tmp_path: Path) -> None:
    path = write_small(tmp_path / "m.gguf", [("blk.0.empty.weight", (64,), GGMLType.F32), *SMALL_TENSORS])
    data = path.read_bytes()
    at = data.index(b"blk.0.empty.weight") + len(b"blk.0.empty.weight") + 4
    patched(path, at, struct.pack("<Q", 0))

    (finding,) = verify_structure(path).findings

    assert (finding.code, finding.name) == ("empty-tensor", "blk.0.empty.weight")
    assert "without that tensor" in finding.fix
