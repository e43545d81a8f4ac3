"""Every way a file can be wrong in form has a finding of its own, with the fix in it."""

import json
import struct
from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.errors import UsageError
from dfqs.gguf import GGMLType, ValueType, array, f32, read_header, string, u32
from dfqs.integrity import Finding, Severity, has_errors, verify_structure
from gguf_builder import SMALL_KEYS, SMALL_TENSORS, write_small
from shard_inputs import (
    i32_entry,
    pack_model,
    tiny_entries,
    tiny_tensors,
    u16_entry,
    write_gguf_py_shards,
    write_shards,
    write_tiny,
)

TOKENIZER = (
    string("tokenizer.ggml.model", "llama"),
    array("tokenizer.ggml.tokens", ValueType.STRING, [str(token) for token in range(10)]),
)
WHOLE_KEYS = (*SMALL_KEYS, f32("llama.attention.layer_norm_rms_epsilon", 1e-5), *TOKENIZER)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_small(tmp_path / "model.gguf", keys=WHOLE_KEYS)


def findings_of(path: Path) -> tuple[Finding, ...]:
    return verify_structure(path).findings


def only(path: Path) -> Finding:
    (finding,) = findings_of(path)
    return finding


def test_a_file_in_order_has_no_findings(model: Path) -> None:
    assert findings_of(model) == ()


def test_truncation_names_the_first_tensor_cut_and_the_bytes_missing(model: Path) -> None:
    header = read_header(model)
    span = header.span(header.tensor("output.weight"))
    model.write_bytes(model.read_bytes()[: span.end - 7])

    finding = only(model)

    assert (finding.code, finding.severity) == ("truncated", Severity.ERROR)
    assert "7 bytes too soon" in finding.message
    assert finding.name == "output.weight"
    assert finding.offset == span.end - 7


def test_truncation_counts_tensors_that_are_missing_whole(model: Path) -> None:
    header = read_header(model)
    model.write_bytes(model.read_bytes()[: header.span(header.tensor("blk.0.ffn_gate_exps.weight")).offset + 1])

    assert "of 5 tensors 2 are missing and 1 cut short" in only(model).message


def test_a_header_that_was_cut_is_truncation_too(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:400])

    assert only(model).code == "truncated"


@pytest.mark.parametrize(("extra", "kind"), [(b"\0" * 999, "zeroes"), (b"junk", "beginning with b'junk'")])
def test_trailing_bytes_that_llama_cpp_loads_silently_are_an_error(model: Path, extra: bytes, kind: str) -> None:
    end = model.stat().st_size
    model.write_bytes(model.read_bytes() + extra)

    finding = only(model)

    assert (finding.code, finding.offset) == ("trailing", end)
    assert f"{len(extra)} bytes ({kind}" in finding.message
    assert f"truncate -s {end}" in finding.fix


def test_cat_of_shards_is_told_with_the_offsets_of_its_files(tmp_path: Path) -> None:
    shards = write_gguf_py_shards(tmp_path / "shards")
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(b"".join(shard.read_bytes() for shard in shards))
    sizes = [shard.stat().st_size for shard in shards]

    finding = next(f for f in findings_of(joined) if f.code == "concatenated")

    assert f"{len(shards)} GGUF files stand end to end" in finding.message
    assert f"offsets 0, {sizes[0]:,}" in finding.message
    assert "dfqs repair" in finding.fix
    assert not [f for f in findings_of(joined) if f.code == "trailing"]


@pytest.mark.parametrize(
    ("order", "reason"),
    [((0, 2), "number 2 is missing"), ((0, 1, 1, 2), "shard 2 of 3 stands in it more than once")],
)
def test_repair_is_not_named_as_the_fix_where_it_would_refuse(
    tmp_path: Path, order: tuple[int, ...], reason: str
) -> None:
    tensors = tiny_tensors()
    shards = write_shards(tmp_path / "s", tiny_entries(), [tensors[:2], tensors[2:4], tensors[4:]])
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(b"".join(shards[index].read_bytes() for index in order))

    finding = next(f for f in findings_of(joined) if f.code == "concatenated")

    assert finding.fix.startswith("`dfqs repair` cannot fix it: ")
    assert reason in finding.fix


def test_cat_of_shards_followed_by_junk_says_both(tmp_path: Path) -> None:
    shards = write_gguf_py_shards(tmp_path / "shards")
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(b"".join(shard.read_bytes() for shard in shards) + b"GGUF but no header")

    assert {f.code for f in findings_of(joined)} >= {"concatenated", "trailing"}


@pytest.mark.parametrize(
    "names",
    [
        ["m.gguf.aa", "m.gguf.ab", "m.gguf.ac"],
        ["m.gguf-split-a", "m.gguf-split-b", "m.gguf-split-c"],
        ["m.gguf.part1of3", "m.gguf.part2of3", "m.gguf.part3of3"],
        ["m.gguf.9", "m.gguf.10", "m.gguf.11"],
        ["m-1.gguf", "m-2.gguf", "m-3.gguf"],
    ],
)
def test_raw_pieces_are_told_from_a_truncated_file_by_any_of_them(model: Path, names: list[str]) -> None:
    data = model.read_bytes()
    step = len(data) // 3 + 1
    paths = [model.with_name(name) for name in names]
    for index, path in enumerate(paths):
        path.write_bytes(data[index * step : (index + 1) * step])

    found = [only(path) for path in paths]

    assert {finding.code for finding in found} == {"raw-piece"}
    assert "first of 3 raw pieces" in found[0].message
    assert f"cat {' '.join(names)}" in found[0].fix
    assert names[0] in found[2].message


def test_raw_pieces_with_one_missing_are_not_said_to_join(model: Path) -> None:
    data = model.read_bytes()
    model.with_name("m.gguf.aa").write_bytes(data[:2000])
    model.with_name("m.gguf.ac").write_bytes(data[4000:])

    finding, later = only(model.with_name("m.gguf.aa")), only(model.with_name("m.gguf.ac"))

    assert finding.code == later.code == "raw-piece"
    assert "do not add up" in finding.fix
    assert "fetch the missing pieces" in later.fix


def test_two_models_with_counting_names_are_not_pieces_of_each_other(model: Path) -> None:
    data = model.read_bytes()
    cut = model.with_name("m.gguf.1")
    cut.write_bytes(data[:-100])
    model.with_name("m.gguf.2").write_bytes(data)

    assert only(cut).code == "truncated"


@pytest.mark.parametrize("hole", [False, True])
def test_header_of_zeroes_before_data_is_an_interrupted_merge_and_all_zeroes_is_not(model: Path, hole: bool) -> None:
    data = bytearray(model.read_bytes())
    data[:600] = bytes(600)
    model.write_bytes(bytes(data))
    blank = model.with_name("blank.gguf")
    with blank.open("wb") as file:
        file.truncate(100 << 20) if hole else file.write(bytes(1 << 20))

    assert "header is zeroes and data follows" in only(model).message
    assert "all of its" in only(blank).message


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"", "empty", "empty"),
        (b"Entry not found", "not-gguf", "text file"),
        (("ä" * 5000).encode(), "not-gguf", "text file"),
        (b"<!DOCTYPE html><html>429</html>", "not-gguf", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\n", "not-gguf", "abab"),
        (b"PK\x03\x04" + bytes(100), "not-gguf", "ZIP"),
        (b"lmgg" + bytes(100), "not-gguf", "GGML"),
        (struct.pack("<Q", 20) + b'{"__metadata__":{}}\xff', "not-gguf", "safetensors"),
        (bytes(range(128, 256)), "not-gguf", "does not begin with GGUF"),
    ],
)
def test_what_is_no_gguf_is_named_for_what_it_is(tmp_path: Path, data: bytes, code: str, words: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)

    finding = only(path)

    assert finding.code == code
    assert words in finding.message


def with_offsets(path: Path, offsets: dict[str, int]) -> None:
    """Set tensor offsets in a header by hand."""
    data = bytearray(path.read_bytes())
    header = read_header(path)
    for name, offset in offsets.items():
        encoded = name.encode()
        start = data.index(struct.pack("<Q", len(encoded)) + encoded) + 8 + len(encoded)
        axes = struct.unpack_from("<I", data, start)[0]
        struct.pack_into("<Q", data, start + 4 + 8 * axes + 4, offset)
    assert header.tensors
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(("shift", "code"), [(-32, "overlap"), (32, "gap"), (1, "misaligned"), (-10_000, "misaligned")])
def test_tensors_out_of_place_are_told_apart(model: Path, shift: int, code: str) -> None:
    name = "blk.0.ffn_gate_inp.weight"
    offset = read_header(model).tensor(name).offset
    model.write_bytes(model.read_bytes() + bytes(64))
    with_offsets(model, {name: max(offset + shift, 1)})

    codes = {f.code: f.name for f in findings_of(model)}

    assert codes.get(code) == name


def test_a_tensor_type_of_a_fork_is_named_and_not_called_truncation(model: Path) -> None:
    data = bytearray(model.read_bytes())
    name = b"output.weight"
    start = data.index(name) + len(name)
    struct.pack_into("<I", data, start + 4 + 16, 137)
    model.write_bytes(bytes(data))

    finding = only(model)

    assert (finding.code, finding.name) == ("unknown-type", "output.weight")
    assert "137" in finding.message


@pytest.mark.parametrize("missing", ["general.architecture", "llama.block_count", "llama.context_length"])
def test_a_missing_key_that_llama_cpp_needs_is_an_error(tmp_path: Path, missing: str) -> None:
    path = write_small(tmp_path / "m.gguf", keys=[key for key in WHOLE_KEYS if key.name != missing])

    finding = only(path)

    assert (finding.code, finding.name, finding.severity) == ("missing-key", missing, Severity.ERROR)


def test_a_missing_tokenizer_is_a_warning_since_such_models_exist(tmp_path: Path) -> None:
    findings = findings_of(write_small(tmp_path / "m.gguf", keys=[key for key in WHOLE_KEYS if key not in TOKENIZER]))

    assert {f.name for f in findings} == {"tokenizer.ggml.model", "tokenizer.ggml.tokens"}
    assert not has_errors(findings)


def test_a_lost_layer_and_a_wrong_number_of_experts_are_seen(tmp_path: Path) -> None:
    keys = [key for key in WHOLE_KEYS if key.name not in ("llama.block_count", "llama.expert_count")]
    path = write_small(tmp_path / "m.gguf", keys=[*keys, u32("llama.block_count", 4_000_000_000)])
    other = write_small(tmp_path / "n.gguf", keys=[*keys, u32("llama.block_count", 1), u32("llama.expert_count", 4)])

    assert any("layer 1 of 4,000,000,000 has no tensors" in finding.message for finding in findings_of(path))
    assert "3 experts where llama.expert_count is 4" in only(other).message


def test_tensors_lost_in_a_merge_are_seen_by_the_declared_number(tmp_path: Path) -> None:
    entries = [*tiny_entries(), u16_entry("split.count", 0), i32_entry("split.tensors.count", 7)]
    path = tmp_path / "m.gguf"
    path.write_bytes(pack_model(entries, tiny_tensors()))

    assert any(f.code == "missing-tensor" and "7 tensors" in f.message for f in findings_of(path))


def test_a_whole_model_that_calls_itself_a_shard_is_told_from_a_shard(tmp_path: Path) -> None:
    entries = [*tiny_entries(), *(u16_entry(k, v) for k, v in (("split.no", 0), ("split.count", 3)))]
    path = tmp_path / "m.gguf"
    path.write_bytes(pack_model([*entries, i32_entry("split.tensors.count", 6)], tiny_tensors()))

    assert any(f.code == "shard-keys" and "dfqs repair" in f.fix for f in findings_of(path))


def test_a_missing_or_foreign_shard_is_found_from_the_first(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    shards = write_shards(tmp_path, tiny_entries(), [tensors[:3], tensors[3:]])
    whole = findings_of(shards[0])
    shards[1].unlink()
    broken = findings_of(shards[0])

    assert any(f.code == "shard" and "all of them there" in f.message for f in whole)
    assert any(f.severity is Severity.ERROR and shards[1].name in f.message for f in broken)


def test_a_later_shard_is_not_blamed_for_lacking_the_model_s_keys(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    shards = write_shards(tmp_path, tiny_entries(), [tensors[:3], tensors[3:]])

    findings = findings_of(shards[1])

    assert not has_errors(findings)
    assert "shard 2 of 2" in findings[0].message


def test_a_file_that_cannot_be_opened_is_usage_not_a_finding(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        verify_structure(tmp_path / "nothing.gguf")


def test_verify_exits_1_on_a_defect_0_on_none_and_3_or_2_only_where_it_could_not_look(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True

    model.write_bytes(model.read_bytes() + b"x")
    assert run(["verify", str(model), "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert (record["ok"], record["findings"][0]["code"]) == (False, "trailing")

    assert run(["verify", str(model)]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert run(["verify", str(tmp_path / "no.gguf")]) == 2


def test_control_characters_in_a_tensor_name_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b]0;owned\x07weight"
    tensors = [*SMALL_TENSORS, (name, (64,), GGMLType.F32)]
    path = write_small(tmp_path / "m.gguf", tensors=tensors, keys=WHOLE_KEYS)
    path.write_bytes(path.read_bytes()[:-300])

    run(["verify", str(path)])

    assert "\x1b]0" not in capsys.readouterr().out


def test_tiny_fixture_is_itself_in_order_but_for_keys_it_never_had(tmp_path: Path) -> None:
    assert {f.code for f in findings_of(write_tiny(tmp_path / "t.gguf"))} == {"missing-key"}
