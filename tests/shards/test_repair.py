"""What repair fixes becomes exactly the file that was meant; what it cannot fix it refuses and leaves nothing."""

import itertools
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfqs.cli.main import run
from dfqs.errors import DfqsError, FormatError, ShardError, UsageError
from dfqs.gguf import read_header
from dfqs.integrity import hash_model, verify_against, verify_structure
from dfqs.shards import merge, plan_merge
from dfqs.shards.repair import plan_repair, repair
from gguf_builder import SMALL_KEYS, write_small
from shard_inputs import (
    i32_entry,
    model_entries,
    model_tensors,
    pack_model,
    tiny_entries,
    tiny_tensors,
    u16_entry,
    write_gguf_py_shards,
    write_shards,
    write_tiny,
)


def fix(path: Path) -> Path:
    out = path.with_name("fixed.gguf")
    repair(plan_repair(path), out)
    return out


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    tensors = tiny_tensors()
    return write_shards(tmp_path / "shards", tiny_entries(), [tensors[:2], tensors[2:3], tensors[3:]])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_cat_of_shards_in_any_order_becomes_the_bytes_of_a_merge(
    tmp_path: Path, shards: list[Path], order: tuple[int, ...]
) -> None:
    merge(plan_merge(shards[0]), tmp_path / "merged.gguf")
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(b"".join(shards[i].read_bytes() for i in order))

    out = fix(joined)

    assert out.read_bytes() == (tmp_path / "merged.gguf").read_bytes()


@pytest.mark.parametrize("writer", ["gguf-py", "packed"])
def test_cat_of_real_shards_has_the_content_of_its_shards(tmp_path: Path, writer: str) -> None:
    if writer == "gguf-py":
        shards = write_gguf_py_shards(tmp_path / "s")
    else:
        tensors = model_tensors()
        shards = write_shards(tmp_path / "s", model_entries(), [tensors[:7], tensors[7:31], tensors[31:]])
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(b"".join(shard.read_bytes() for shard in shards))

    assert verify_against(fix(joined), shards[0]).equal


def test_cat_without_the_padding_between_shards_is_fixed_too(tmp_path: Path, shards: list[Path]) -> None:
    joined = tmp_path / "joined.gguf"
    parts = []
    for shard in shards:
        header = read_header(shard)
        parts.append(shard.read_bytes()[: max(header.span(t).end for t in header.tensors)])
    joined.write_bytes(b"".join(parts))

    assert verify_against(fix(joined), shards[0]).equal


def test_cat_with_a_shard_missing_is_refused_by_its_number(tmp_path: Path, shards: list[Path]) -> None:
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(shards[0].read_bytes() + shards[2].read_bytes())

    with pytest.raises(ShardError, match="2 of 3 shards; number 2 is missing"):
        fix(joined)
    assert not joined.with_name("fixed.gguf").exists()


def test_cat_with_a_shard_twice_is_refused(tmp_path: Path, shards: list[Path]) -> None:
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(b"".join(shards[i].read_bytes() for i in (0, 1, 1)))

    with pytest.raises(ShardError):
        fix(joined)


def test_cat_whose_last_shard_is_cut_is_refused(tmp_path: Path, shards: list[Path]) -> None:
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(b"".join(shard.read_bytes() for shard in shards)[:-500])

    with pytest.raises(FormatError, match=r"bytes of the model are missing.*fetch the file again"):
        fix(joined)


def test_two_whole_models_end_to_end_are_not_guessed_between(tmp_path: Path) -> None:
    a, b = write_tiny(tmp_path / "a.gguf"), write_tiny(tmp_path / "b.gguf", seed="b")
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(a.read_bytes() + b.read_bytes())

    with pytest.raises(ShardError, match="which one is meant"):
        fix(joined)


@settings(max_examples=20)
@given(extra=st.binary(min_size=1, max_size=300))
def test_trailing_bytes_are_cut_and_the_model_is_untouched(
    tmp_path_factory: pytest.TempPathFactory, extra: bytes
) -> None:
    path = write_small(tmp_path_factory.mktemp("trailing") / "m.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole + extra)

    assert fix(path).read_bytes() == whole


def test_raw_pieces_are_joined_and_a_missing_one_is_told(tmp_path: Path) -> None:
    whole = write_small(tmp_path / "m.gguf").read_bytes()
    for index, name in enumerate(("x.gguf.aa", "x.gguf.ab", "x.gguf.ac")):
        (tmp_path / name).write_bytes(whole[index * 2000 : (index + 1) * 2000 if index < 2 else None])

    assert fix(tmp_path / "x.gguf.ab").read_bytes() == whole

    (tmp_path / "x.gguf.ab").unlink()
    with pytest.raises(FormatError, match="a piece is missing"):
        plan_repair(tmp_path / "x.gguf.aa")


def spread(path: Path, step: int) -> None:
    """Rewrite a file with `step` unused bytes before each tensor."""
    header = read_header(path)
    data = bytearray(path.read_bytes()[: header.data_offset])
    body = bytearray()
    original = path.read_bytes()
    for tensor in header.tensors:
        body += b"\xee" * step
        name = tensor.name.encode()
        start = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
        axes = struct.unpack_from("<I", data, start)[0]
        struct.pack_into("<Q", data, start + 4 + 8 * axes + 4, len(body))
        span = header.span(tensor)
        body += original[span.offset : span.end]
    path.write_bytes(bytes(data) + bytes(body))


@pytest.mark.parametrize("step", [32, 7])
def test_gaps_and_misalignment_that_llama_cpp_refuses_are_closed(tmp_path: Path, step: int) -> None:
    good = write_small(tmp_path / "good.gguf")
    bad = write_small(tmp_path / "bad.gguf")
    spread(bad, step)
    with pytest.raises(FormatError):
        read_header(bad)

    out = fix(bad)

    assert out.read_bytes() == good.read_bytes()


def test_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = write_small(tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    name = b"blk.0.ffn_gate_inp.weight"
    start = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    axes = struct.unpack_from("<I", data, start)[0]
    struct.pack_into("<Q", data, start + 4 + 8 * axes + 4, 32)
    path.write_bytes(bytes(data))

    with pytest.raises(FormatError, match=r"claims bytes that .* claims too"):
        fix(path)


def test_a_whole_model_that_calls_itself_a_shard_becomes_one_that_does_not(tmp_path: Path) -> None:
    keys = [u16_entry("split.no", 0), u16_entry("split.count", 3), i32_entry("split.tensors.count", 6)]
    path = tmp_path / "m.gguf"
    path.write_bytes(pack_model([*tiny_entries(), *keys], tiny_tensors()))

    out = fix(path)

    assert read_header(out).metadata["split.count"] == 0
    assert not [f for f in verify_structure(out).findings if f.code.startswith("shard")]
    assert hash_model(out).content_sha256 == hash_model(path).content_sha256


@pytest.mark.parametrize("kept", [0, 3, 400, 5000])
def test_a_truncated_or_empty_file_is_refused_and_nothing_is_written(tmp_path: Path, kept: int) -> None:
    path = write_small(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(DfqsError):
        fix(path)

    assert list(tmp_path.iterdir()) == [path]


def test_zeroed_headers_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = write_small(tmp_path / "m.gguf", keys=SMALL_KEYS)
    data = bytearray(path.read_bytes())
    data[:600] = bytes(600)
    path.write_bytes(bytes(data))

    with pytest.raises(FormatError, match="never written"):
        fix(path)


def test_a_file_in_order_is_not_copied_for_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is wrong"):
        fix(write_small(tmp_path / "m.gguf"))


def test_an_output_that_exists_or_is_the_input_is_not_touched(tmp_path: Path) -> None:
    path = write_small(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes() + b"x")
    before = path.read_bytes()

    with pytest.raises(UsageError, match="exists already"):
        repair(plan_repair(path), path)

    assert path.read_bytes() == before


def test_command_line_says_what_it_fixes(
    tmp_path: Path, shards: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(b"".join(shard.read_bytes() for shard in shards))
    out = tmp_path / "out.gguf"

    assert run(["repair", str(joined), "-o", str(out), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dry_run"] is True
    assert not out.exists()
    assert run(["repair", str(joined), "-o", str(out)]) == 0
    assert "3 shards that were joined with cat become one model" in capsys.readouterr().out
    assert run(["repair", str(joined), "-o", str(out)]) == 2
    assert run(["repair", str(out), "-o", str(tmp_path / "again.gguf")]) == 2
