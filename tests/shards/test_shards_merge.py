"""Plain merge: what it writes, and what it refuses before anything is written."""

import hashlib
import os
from pathlib import Path

import pytest

from dfqs.errors import FormatError, ShardError, SpaceError, UsageError
from dfqs.gguf import GGMLType, read_header
from dfqs.gguf.file import GGUFFile
from dfqs.shards import merge, merged_path, plan_merge
from dfqs.shards.split import plan_split, split
from shard_inputs import (
    EXPERTS,
    Tensor,
    expert_slice,
    i32_entry,
    model_entries,
    model_tensors,
    payload,
    sha256,
    split_entries,
    string_entry,
    tiny_entries,
    tiny_tensors,
    u16_entry,
    u32_entry,
    write_model,
    write_shards,
)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Three shards; the last one ends with blk.8.ffn_up_exps.weight, without padding after it."""
    tensors: list[Tensor] = [
        (f"blk.{layer}.ffn_{part}_exps.weight", (64, 8, 4), GGMLType.F32)
        for layer in range(9)
        for part in ("gate", "up")
    ]
    return write_shards(tmp_path / "in", [string_entry("general.architecture", "llama")],
                        [tensors[:6], tensors[6:12], tensors[12:]])  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "out.gguf"


def tiny_shards(directory: Path, **options: object) -> list[Path]:
    tensors = tiny_tensors()
    return write_shards(directory, tiny_entries(), [tensors[:2], tensors[2:4], tensors[4:]], **options)  # type: ignore[arg-type]


def assert_refused(first: Path, out: Path, message: str, error: type[Exception] = ShardError) -> None:
    with pytest.raises(error, match=message):
        merge(plan_merge(first), out)

    assert list(out.parent.iterdir()) == []


def test_truncated_last_shard_is_refused_before_anything_is_written(shards: list[Path], out: Path) -> None:
    shards[-1].write_bytes(shards[-1].read_bytes()[:-1])

    with pytest.raises(FormatError, match=r"00003-of-00003\.gguf.*blk\.8\.ffn_up_exps\.weight.*ends 1 byte past"):
        merge(plan_merge(shards[0]), out)

    assert list(out.parent.iterdir()) == []


def test_no_expert_slice_changes_place_so_that_a_swap_of_two_experts_cannot_pass(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf")
    paths = split(plan_split(model, tmp_path / "shard", max_tensors=7))
    merge(plan_merge(paths[0]), tmp_path / "merged.gguf")

    checked = 0
    with GGUFFile(tmp_path / "merged.gguf") as merged:
        for name, shape, _type in model_tensors():
            if "_exps" not in name:
                continue
            data = merged.read_tensor(name)
            length = len(data) // EXPERTS
            assert shape[2] == EXPERTS
            for expert in range(EXPERTS):
                assert data[expert * length : (expert + 1) * length] == expert_slice(name, expert, length)
                checked += 1
    assert checked == 6 * 3 * EXPERTS


def test_every_tensor_of_the_merged_file_has_the_bytes_it_had(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf")
    paths = split(plan_split(model, tmp_path / "shard", max_tensors=5))
    merge(plan_merge(paths[0]), tmp_path / "merged.gguf")

    with GGUFFile(tmp_path / "merged.gguf") as merged:
        assert [tensor.name for tensor in merged.header.tensors] == [name for name, _, _ in model_tensors()]
        for name, shape, type_ in model_tensors():
            assert merged.read_tensor(name) == payload(name, shape, type_), name


@pytest.mark.parametrize("alignment", [64, 4096, 8])
def test_another_alignment_gives_a_readable_file_where_the_peer_corrupts_it(alignment: int, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf", alignment=alignment)
    paths = split(plan_split(model, tmp_path / "shard", max_tensors=9))
    merge(plan_merge(paths[0]), tmp_path / "merged.gguf")

    for path in paths:
        assert read_header(path).alignment == alignment
    with GGUFFile(tmp_path / "merged.gguf") as merged:
        assert merged.header.alignment == alignment
        for name, shape, type_ in model_tensors():
            assert merged.read_tensor(name) == payload(name, shape, type_), name


def test_later_shard_with_an_alignment_of_its_own_is_padded_anew(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    write_shards(tmp_path, tiny_entries(), [tensors[:2], tensors[2:]])

    def keys(number: int, count: int, total: int) -> list[bytes]:
        return [u32_entry("general.alignment", 256), *split_entries(number, count, total)]

    wide = write_shards(tmp_path / "wide", tiny_entries(), [tensors[:2], tensors[2:]], alignment=256, keys=keys)
    wide[1].rename(tmp_path / wide[1].name)
    assert read_header(tmp_path / wide[1].name).alignment == 256

    merge(plan_merge(tmp_path / "model-00001-of-00002.gguf"), tmp_path / "merged.gguf")

    with GGUFFile(tmp_path / "merged.gguf") as merged:
        assert merged.header.alignment == 32
        for name, shape, type_ in tensors:
            assert merged.read_tensor(name) == payload(name, shape, type_)


def test_padding_of_the_output_is_zeroes_whatever_the_shards_hold_there(tmp_path: Path) -> None:
    odd: list[Tensor] = [("a.weight", (5,), GGMLType.F32), ("b.weight", (3,), GGMLType.F32)]
    clean = write_shards(tmp_path / "clean", tiny_entries(), [odd])
    merge(plan_merge(clean[0]), tmp_path / "clean.gguf")
    header = read_header(clean[0])
    data = bytearray(clean[0].read_bytes())
    data[header.data_offset + 20 : header.data_offset + 32] = b"\xff" * 12
    clean[0].write_bytes(data)

    merge(plan_merge(clean[0]), tmp_path / "dirty.gguf")

    assert sha256(tmp_path / "dirty.gguf") == sha256(tmp_path / "clean.gguf")


def test_hashes_of_sources_are_those_of_the_files_on_disk(tmp_path: Path, out: Path) -> None:
    paths = tiny_shards(tmp_path / "in")
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]

    plain = merge(plan_merge(paths[0]), out.with_name("plain.gguf"))
    hashed = merge(plan_merge(paths[0]), out, hash_sources=True)

    assert list(hashed.shard_sha256) == expected
    assert plain.shard_sha256 == (None, None, None)
    assert sha256(out) == sha256(out.with_name("plain.gguf"))


def test_buffer_takes_over_where_the_kernel_does_not_copy(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = tiny_shards(tmp_path / "in")
    merge(plan_merge(paths[0]), out.with_name("kernel.gguf"))

    def refuse(*arguments: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    merge(plan_merge(paths[0]), out)

    assert sha256(out) == sha256(out.with_name("kernel.gguf"))


# What the peer lets through


def test_missing_shard_is_named(shards: list[Path], out: Path) -> None:
    shards[1].unlink()
    assert_refused(shards[0], out, r"1 of 3 shards missing: model-00002-of-00003\.gguf")


def test_second_shard_in_place_of_the_first_says_which_to_give(shards: list[Path], out: Path) -> None:
    assert_refused(shards[1], out, r"is shard 2 of 3; give the first one, model-00001-of-00003\.gguf", UsageError)


def test_shards_in_each_others_place_are_refused_by_split_no(shards: list[Path], out: Path) -> None:
    third = shards[2].read_bytes()
    shards[2].write_bytes(shards[1].read_bytes())
    shards[1].write_bytes(third)
    assert_refused(shards[0], out, r"00002-of-00003.*has split\.no 2 where 1 belongs")


def test_shard_of_a_set_of_another_size_is_refused(tmp_path: Path, out: Path) -> None:
    paths = tiny_shards(tmp_path / "in", keys=lambda n, count, total: split_entries(n, 4 if n == 1 else count, total))
    assert_refused(paths[0], out, r"00002-of-00003.*split\.count 4, the first shard says 3")


def test_wrong_number_of_tensors_is_refused(tmp_path: Path, out: Path) -> None:
    paths = tiny_shards(tmp_path / "in", keys=lambda n, count, total: split_entries(n, count, total + 1))
    assert_refused(paths[0], out, r"the model has 7 tensors, its 3 shards hold 6")


def test_shard_that_claims_another_model_size_is_refused(tmp_path: Path, out: Path) -> None:
    paths = tiny_shards(tmp_path / "in", keys=lambda n, count, total: split_entries(n, count, total + (n == 2)))
    assert_refused(paths[0], out, r"00003-of-00003.*7 tensors, the first shard says 6; it is of another model")


def test_tensor_that_stands_in_two_shards_is_refused(tmp_path: Path, out: Path) -> None:
    tensors = tiny_tensors()
    paths = write_shards(tmp_path / "in", tiny_entries(), [tensors[:4], tensors[3:]])
    assert_refused(paths[0], out, r"00002-of-00002.*blk\.1\.ffn_gate_exps\.weight.*stands in model-00001")


def test_shard_of_a_wider_model_is_refused_by_its_shapes(tmp_path: Path, out: Path) -> None:
    tensors = model_tensors()
    paths = write_shards(tmp_path / "in", model_entries(), [tensors[:20], tensors[20:]])
    wide = model_tensors(columns=512)
    write_shards(tmp_path / "wide", model_entries(columns=512), [wide[:20], wide[20:]])
    (tmp_path / "wide" / paths[1].name).rename(paths[1])
    assert_refused(paths[0], out, r"00002-of-00002.*has 512 where the model's embedding_length is 256")


def test_shard_with_layers_beyond_the_model_is_refused(tmp_path: Path, out: Path) -> None:
    tensors = tiny_tensors()
    tensors[4] = ("blk.2.attn_norm.weight", (64,), GGMLType.F32)
    paths = write_shards(tmp_path / "in", tiny_entries(), [tensors[:3], tensors[3:]])
    assert_refused(paths[0], out, r"blk\.2\.attn_norm\.weight.*beyond the model's 2 layers")


def test_shard_whose_keys_contradict_the_first_is_refused(tmp_path: Path, out: Path) -> None:
    def keys(number: int, count: int, total: int) -> list[bytes]:
        own = split_entries(number, count, total)
        return [*own, string_entry("general.name", "another")] if number == 1 else own

    paths = tiny_shards(tmp_path / "in", keys=keys)
    assert_refused(paths[0], out, r"00002-of-00003.*general\.name.*differs from the first shard's")


def test_experts_of_another_type_in_one_shard_are_noted_and_not_refused(tmp_path: Path) -> None:
    def group(layer: int, type_: GGMLType) -> list[Tensor]:
        return [(f"blk.{layer}.ffn_up_exps.weight", (256, 2, 3), type_)]

    groups = [group(0, GGMLType.IQ1_S), group(1, GGMLType.Q8_0), group(2, GGMLType.IQ1_S)]
    paths = write_shards(tmp_path / "in", [string_entry("general.architecture", "llama")], groups)

    assert "Q8_0 in model-00002-of-00003.gguf" in plan_merge(paths[0]).notes[0]


def test_bytes_after_the_last_tensor_are_refused_and_the_fix_is_named(shards: list[Path], out: Path) -> None:
    size = shards[1].stat().st_size
    with shards[1].open("ab") as file:
        file.write(b"GGUF")
    assert_refused(shards[0], out, rf"00002-of-00003.*4 bytes stand after its last tensor.*truncate -s {size}")


# Not a shard, or not named as one


def test_whole_model_is_no_shard(tmp_path: Path, out: Path) -> None:
    assert_refused(write_model(tmp_path / "model.gguf"), out, r"not a shard \(split\.count is missing\)")


def test_merged_file_is_not_merged_again(shards: list[Path], tmp_path: Path, out: Path) -> None:
    merge(plan_merge(shards[0]), tmp_path / "whole.gguf")
    assert_refused(tmp_path / "whole.gguf", out, r"a whole model, not a shard \(split\.count is 0\)")


def test_shard_that_was_renamed_says_how_it_must_be_named(shards: list[Path], out: Path) -> None:
    renamed = shards[0].rename(shards[0].with_name("model.gguf"))
    assert_refused(renamed, out, r"must be named like PREFIX-00001-of-00003\.gguf")


def test_name_that_claims_99999_shards_is_refused_by_the_key_without_looking_for_them(
    shards: list[Path], out: Path
) -> None:
    renamed = shards[0].rename(shards[0].with_name("model-00001-of-99999.gguf"))
    assert_refused(renamed, out, r"its name says shard 1 of 99999, its keys say 1 of 3")


@pytest.mark.thorough
def test_key_that_claims_65535_shards_names_few_of_the_missing(tmp_path: Path, out: Path) -> None:
    paths = write_shards(tmp_path / "in", tiny_entries(), [tiny_tensors()],
                         keys=lambda n, count, total: split_entries(n, 65535, total))  # fmt: skip
    renamed = paths[0].rename(paths[0].with_name("model-00001-of-65535.gguf"))
    assert_refused(renamed, out, r"65,534 of 65,535 shards missing: .*00002-of-65535.*and 65,531 more")


@pytest.mark.parametrize("prefix", ["..", "a\nb", "-o", "\u202egguf", "$(touch x)", "%s%n"])
def test_hostile_prefix_stays_a_name_in_the_directory_of_the_first_shard(prefix: str, tmp_path: Path) -> None:
    paths = tiny_shards(tmp_path / "in", prefix=prefix)

    plan = plan_merge(paths[0])
    merge(plan, merged_path(paths[0]))

    assert {path.parent for path in (merged_path(paths[0]), *(s.path for s in plan.shards))} == {tmp_path / "in"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_nul_in_a_name_is_refused_in_a_sentence(out: Path) -> None:
    assert_refused(Path("model\0-00001-of-00002.gguf"), out, "cannot open", UsageError)


def test_split_count_that_is_no_number_is_refused(tmp_path: Path, out: Path) -> None:
    paths = write_shards(tmp_path / "in", tiny_entries(), [tiny_tensors()],
                         keys=lambda n, count, total: [string_entry("split.count", "1"), u16_entry("split.no", 0),
                                                       i32_entry("split.tensors.count", total)])  # fmt: skip
    assert_refused(paths[0], out, "must be a whole number")


# The output


def test_output_that_exists_is_left_as_it_is(shards: list[Path], out: Path) -> None:
    out.write_bytes(b"precious")

    with pytest.raises(UsageError, match="exists already"):
        merge(plan_merge(shards[0]), out)

    assert out.read_bytes() == b"precious"


def test_output_that_is_a_source_is_refused_even_when_overwriting(shards: list[Path], tmp_path: Path) -> None:
    (tmp_path / "link.gguf").symlink_to(shards[1])
    before = sha256(shards[1])

    with pytest.raises(UsageError, match=r"is one of the shards \(model-00002-of-00003\.gguf\)"):
        merge(plan_merge(shards[0]), tmp_path / "link.gguf", overwrite=True)

    assert sha256(shards[1]) == before


def test_shard_that_was_cut_between_plan_and_merge_is_refused(shards: list[Path], out: Path) -> None:
    plan = plan_merge(shards[0])
    shards[2].write_bytes(shards[2].read_bytes()[:-100])

    with pytest.raises(ShardError, match=r"00003-of-00003.*when it was planned"):
        merge(plan, out)

    assert list(out.parent.iterdir()) == []


def test_too_little_space_is_said_before_anything_is_written(
    shards: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = os.statvfs(out.parent)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*state[:4], 1, *state[5:])))

    with pytest.raises(SpaceError, match=r"free, .* are needed; --in-place and --consume"):
        merge(plan_merge(shards[0]), out)

    assert list(out.parent.iterdir()) == []


def test_ctrl_c_leaves_nothing_half_written(shards: list[Path], out: Path) -> None:
    def interrupt(done: int, total: int | None = None, note: str = "") -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(plan_merge(shards[0]), out, progress=interrupt)

    assert list(out.parent.iterdir()) == []
