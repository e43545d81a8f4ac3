"""Hashes against hashlib on bytes cut out by hand, and proofs of equality that a single changed byte must break."""

import hashlib
import json
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf
from dfqs.cli.main import run
from dfqs.errors import FormatError, UsageError
from dfqs.gguf import GGMLType, TensorSource, read_header, string, write_gguf
from dfqs.gguf.file import GGUFFile
from dfqs.integrity import ModelHashes, hash_model
from dfqs.integrity.manifest import Provenance, make_manifest, manifest_findings, read_manifest
from dfqs.model import hashes
from dfqs.model.hashes import content_line
from dfqs.records import write_json
from dfqs.shards import merge, plan_merge
from dfqs.storage import hashing
from dfqs.storage.hashing import hash_file
from gguf_builder import SMALL_KEYS, SMALL_TENSORS, tensor_bytes, write_small
from shard_inputs import (
    EXPERTS,
    flip,
    model_entries,
    model_tensors,
    offset_in,
    write_model,
    write_shards,
    write_three_shards,
    write_tiny,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.gguf")


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return write_three_shards(tmp_path / "shards")


@pytest.mark.parametrize("buffer", [1 << 22, 4096, 1000])
@pytest.mark.parametrize("file", [True, False])
def test_hashes_are_those_of_the_bytes_wherever_pieces_end(
    model: Path, monkeypatch: pytest.MonkeyPatch, buffer: int, file: bool
) -> None:
    for module in (hashes, hashing):
        monkeypatch.setattr(module, "BUFFER_BYTES", buffer)
    oracle = {t.name: hashlib.sha256(t.data.tobytes()).hexdigest() for t in gguf.GGUFReader(model).tensors}

    found = hash_model(model, file=file, threads=3)

    assert {t.name: t.sha256 for t in found.tensors} == oracle
    assert found.file_sha256 == (hashlib.sha256(model.read_bytes()).hexdigest() if file else None)
    assert found.file_bytes == model.stat().st_size


def test_content_hash_is_the_documented_text_and_nothing_else(tmp_path: Path) -> None:
    path = write_small(tmp_path / "m.gguf")
    lines = []
    for name, shape, type_ in SMALL_TENSORS:
        with GGUFFile(path) as file:
            digest = hashlib.sha256(file.read_tensor(name)).hexdigest()
        lines.append(f'["{name}","{type_.name}",[{",".join(map(str, shape))}],"{digest}"]\n')

    by_hand = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()

    assert hash_model(path).content_sha256 == by_hand


def test_a_name_with_quotes_or_newlines_cannot_imitate_another_line() -> None:
    honest = content_line("a", "F32", (4,), "00") + content_line("b", "F32", (4,), "11")

    assert content_line('a","F32",[4],"00"]\n["b', "F32", (4,), "11") != honest
    assert content_line("a\nb", "F32", (4,), "00").count(b"\n") == 1


@settings(max_examples=25)
@given(order=st.permutations(range(5)), alignment=st.sampled_from([32, 64, 4096]), name=st.text("ab", max_size=9))
def test_content_hash_does_not_depend_on_order_alignment_or_keys(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], alignment: int, name: str
) -> None:
    directory = tmp_path_factory.mktemp("layouts")
    plain = write_small(directory / "plain.gguf")
    keys = [*SMALL_KEYS, string("extra", name)]
    if alignment != 32:
        from dfqs.gguf import u32

        keys.append(u32("general.alignment", alignment))
    other = write_small(directory / "other.gguf", [SMALL_TENSORS[i] for i in order], keys, alignment=alignment)

    a, b = hash_model(plain), hash_model(other)

    assert a.content_sha256 == b.content_sha256
    assert a.file_sha256 != b.file_sha256


def test_trailing_axes_of_size_one_do_not_change_content(tmp_path: Path) -> None:
    # model_tensors holds shapes like (7, 1); merging drops such axes as llama.cpp does.
    tensors = model_tensors(1)
    shards = write_shards(tmp_path / "s", model_entries(1), [tensors[:4], tensors[4:]])
    merge(plan_merge(shards[0]), tmp_path / "m.gguf")
    single = tmp_path / "single.gguf"
    single.write_bytes(write_model_bytes(1))

    assert hash_model(tmp_path / "m.gguf").content_sha256 == hash_model(single).content_sha256


def write_model_bytes(layers: int) -> bytes:
    from shard_inputs import pack_model

    return pack_model(model_entries(layers), model_tensors(layers))


@pytest.mark.parametrize("change", ["name", "type", "shape", "bytes"])
def test_content_hash_depends_on_everything_that_a_tensor_is(tmp_path: Path, change: str) -> None:
    data = tensor_bytes("t", 256)
    name, shape, type_ = "t.weight", (32, 2), GGMLType.F32
    changed = {
        "name": ("u.weight", shape, type_, data),
        "type": (name, shape, GGMLType.I32, data),
        "shape": (name, (64,), type_, data),
        "bytes": (name, shape, type_, data[:-1] + b"!"),
    }[change]

    def write(path: Path, name: str, shape: tuple[int, ...], type_: GGMLType, data: bytes) -> str:
        write_gguf(path, SMALL_KEYS, [TensorSource(name, shape, type_, lambda: [data])])
        return hash_model(path).content_sha256

    before = write(tmp_path / "a.gguf", name, shape, type_, data)

    assert write(tmp_path / "b.gguf", *changed) != before


def test_swapped_experts_change_the_content_hash_and_are_named(tmp_path: Path, model: Path) -> None:
    name = "blk.3.ffn_up_exps.weight"
    manifest = make_manifest(model, experts=True)
    data = bytearray(model.read_bytes())
    header = read_header(model)
    span = header.span(header.tensor(name))
    size = span.length // EXPERTS
    one, four = span.offset + size, span.offset + 4 * size
    data[one : one + size], data[four : four + size] = data[four : four + size], data[one : one + size]
    model.write_bytes(bytes(data))

    found = hash_model(model, experts=True)
    (finding,) = manifest_findings(manifest, found)

    assert found.content_sha256 != manifest.content_sha256
    assert finding.name == name
    assert "(expert 1, 4)" in finding.message


def test_expert_hashes_are_those_of_the_slices(model: Path) -> None:
    (tensor,) = [t for t in hash_model(model, experts=True).tensors if t.name == "blk.0.ffn_down_exps.weight"]
    with GGUFFile(model) as file:
        data = file.read_tensor(tensor.name)
    size = len(data) // EXPERTS

    assert tensor.expert_sha256 == tuple(
        hashlib.sha256(data[i * size : (i + 1) * size]).hexdigest() for i in range(EXPERTS)
    )


def test_holes_of_a_sparse_file_are_hashed_as_zeroes_and_reported(tmp_path: Path) -> None:
    path = write_small(tmp_path / "m.gguf")
    header = read_header(path)
    span = header.span(header.tensor("blk.0.ffn_gate_exps.weight"))
    with path.open("r+b") as file:
        file.seek(span.offset)
        file.write(bytes(span.length))

    found = hash_model(path)

    assert [t.name for t in found.tensors if t.zeroes] == ["blk.0.ffn_gate_exps.weight"]
    assert found.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_cut_while_it_is_hashed_is_an_error_and_no_hash(model: Path) -> None:
    size = model.stat().st_size

    def cut(done: int, total: int | None = None, note: str = "") -> None:
        if done < size:
            with model.open("r+b") as file:
                file.truncate(size // 2)

    with pytest.MonkeyPatch.context() as patch:
        for module in (hashes, hashing):
            patch.setattr(module, "BUFFER_BYTES", 4096)
        with pytest.raises(FormatError, match="cut short while it was read"):
            hash_model(model, progress=cut)


@pytest.mark.parametrize("file", [True, False])
def test_an_interrupt_while_hashing_leaves_no_thread_behind(model: Path, file: bool) -> None:
    def interrupt(done: int, total: int | None = None, note: str = "") -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hash_model(model, file=file, progress=interrupt)

    assert not [t for t in threading.enumerate() if t.name.startswith("hash")]


def test_progress_counts_every_byte_once(model: Path) -> None:
    seen: list[int] = []

    def record(done: int, total: int | None = None, note: str = "") -> None:
        assert total == model.stat().st_size
        seen.append(done)

    hash_model(model, progress=record)

    assert seen == sorted(seen)
    assert seen[-1] == model.stat().st_size


def test_hash_file_takes_any_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(random.Random(1).randbytes(300_000))

    assert hash_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_manifest_survives_writing_and_records_where_the_model_came_from(tmp_path: Path, model: Path) -> None:
    manifest = make_manifest(model, provenance=Provenance(repo="o/n", commit="c" * 40))
    write_json(tmp_path / "m.json", manifest)

    back = read_manifest(tmp_path / "m.json")

    assert back == manifest
    assert back.provenance.repo == "o/n"
    assert back.provenance.shards is None
    assert manifest_findings(back, hash_model(model)) == ()


def test_an_edited_manifest_is_not_believed(tmp_path: Path, model: Path) -> None:
    write_json(tmp_path / "m.json", make_manifest(model))
    plain = json.loads((tmp_path / "m.json").read_text())
    flip(model, model.stat().st_size - 100)
    changed = hash_model(model)
    for entry, tensor in zip(plain["tensors"], changed.tensors, strict=True):
        entry["sha256"] = tensor.sha256
    (tmp_path / "m.json").write_text(json.dumps(plain))

    (finding,) = manifest_findings(read_manifest(tmp_path / "m.json"), changed)

    assert finding.code == "manifest"


def test_a_changed_chat_template_fails_the_check_unless_content_alone_is_asked_for(tmp_path: Path) -> None:
    manifest = make_manifest(write_small(tmp_path / "a.gguf"))
    keys = [*SMALL_KEYS, string("tokenizer.chat_template", "{{ evil }}")]
    found = hash_model(write_small(tmp_path / "b.gguf", keys=keys))

    strict, loose = manifest_findings(manifest, found), manifest_findings(manifest, found, content_only=True)

    assert [f.severity.value for f in (*strict, *loose)] == ["error", "warning"]


def test_thousands_of_wrong_tensors_make_a_list_that_can_be_read(model: Path) -> None:
    found = hash_model(model)
    manifest = make_manifest(model)
    none: ModelHashes = ModelHashes(found.file_bytes, found.file_sha256, found.content_sha256, ())

    findings = manifest_findings(manifest, none)

    assert len(findings) == 21
    assert f"{len(found.tensors) - 20} more tensors" in findings[-1].message


def test_command_line_writes_a_manifest_and_checks_with_it(
    tmp_path: Path, shards: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    merge(plan_merge(shards[0]), out)
    target = tmp_path / "out.gguf.manifest.json"

    assert run(["manifest", str(out), "--shards", str(shards[0]), "--experts"]) == 0
    recorded = read_manifest(target).provenance.shards
    assert recorded is not None
    assert [s.sha256 for s in recorded] == [hashlib.sha256(p.read_bytes()).hexdigest() for p in shards]
    assert run(["verify", str(out), "--manifest", str(target)]) == 0
    assert run(["verify", str(out), "--against", str(shards[0])]) == 0
    capsys.readouterr()

    flip(out, offset_in(out, "blk.1.ffn_up_exps.weight", 0))
    assert run(["verify", str(out), "--manifest", str(target), "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["findings"][-1]["name"] == "blk.1.ffn_up_exps.weight"
    assert "(expert 0)" in record["findings"][-1]["message"]
    assert run(["verify", str(out), "--against", str(shards[0])]) == 1


def test_manifest_of_a_broken_file_is_refused(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-1000])

    with pytest.raises(FormatError, match="truncated"):
        make_manifest(model)


def test_a_manifest_of_shards_joined_with_cat_or_with_trailing_bytes_is_not_written(
    tmp_path: Path, shards: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    joined, longer = tmp_path / "joined.gguf", write_tiny(tmp_path / "longer.gguf")
    joined.write_bytes(b"".join(shard.read_bytes() for shard in shards))
    longer.write_bytes(longer.read_bytes() + b"x")

    assert run(["manifest", str(joined)]) == 3
    assert run(["manifest", str(longer)]) == 3

    assert "dfqs repair" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


def test_no_such_manifest_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_manifest(tmp_path / "none.json")
