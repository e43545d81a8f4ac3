"""A model against its shards: proofs of equality that a single changed byte must break."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfqs.gguf import read_header
from dfqs.inplace import merge_inplace, plan_inplace
from dfqs.integrity import verify_against
from dfqs.shards import merge, plan_merge
from dfqs.storage.disk import probe_insert_unit
from gguf_builder import SMALL_TENSORS, write_small
from shard_inputs import (
    EXPERTS,
    flip,
    model_tensors,
    offset_in,
    write_three_shards,
    write_tiny,
)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return write_three_shards(tmp_path / "shards")


def test_a_merge_is_proved_equal_to_its_shards(tmp_path: Path, shards: list[Path]) -> None:
    out = tmp_path / "out.gguf"
    merge(plan_merge(shards[0]), out)

    found = verify_against(out, shards[0])

    assert found.equal
    assert found.findings == ()
    assert found.tensors == len(model_tensors())
    assert found.compared_bytes == sum(t.length for t in read_header(out).tensors)


def test_one_flipped_byte_is_found_with_its_tensor_its_expert_and_its_place(tmp_path: Path, shards: list[Path]) -> None:
    out = tmp_path / "out.gguf"
    merge(plan_merge(shards[0]), out)
    header = read_header(out)
    tensor = header.tensor("blk.2.ffn_gate_exps.weight")
    place = tensor.length // EXPERTS * 5 + 3
    flip(out, offset_in(out, tensor.name, place))

    (finding,) = verify_against(out, shards[0]).findings

    assert finding.name == tensor.name
    assert "expert 5, the first at byte" in finding.message
    assert f"byte {place:,} of the tensor" in finding.message
    assert finding.offset == offset_in(out, tensor.name, place)


def test_another_tokenizer_than_the_first_shards_is_an_error_unless_content_alone_is_asked_for(
    tmp_path: Path, shards: list[Path]
) -> None:
    out = tmp_path / "out.gguf"
    merge(plan_merge(shards[0]), out)
    entry = next(entry for entry in read_header(out).entries if entry.name == "general.architecture")
    flip(out, entry.end - 1)

    (finding,) = verify_against(out, shards[0]).findings

    assert (finding.code, finding.name) == ("key", "general.architecture")
    assert verify_against(out, shards[0], content_only=True).equal


def test_a_merge_in_place_is_proved_equal_although_it_has_a_key_for_padding(tmp_path: Path, shards: list[Path]) -> None:
    copies = [Path(shutil.copy(shard, tmp_path / shard.name)) for shard in shards]
    if probe_insert_unit(tmp_path) is None:
        pytest.skip("this file system cannot insert ranges; ext4 and XFS can")
    merge_inplace(plan_inplace(plan_merge(copies[0]), tmp_path / "out.gguf", "in-place"))

    assert verify_against(tmp_path / "out.gguf", shards[0]).findings == ()


@settings(max_examples=40)
@given(data=st.data())
def test_no_flipped_tensor_byte_goes_unseen_and_no_padding_byte_is_blamed_on_a_tensor(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("flips")
    original, copy = write_tiny(directory / "a.gguf"), write_tiny(directory / "b.gguf")
    header = read_header(original)
    offset = data.draw(st.integers(header.data_offset, original.stat().st_size - 1))
    owner = [t.name for t in header.tensors if header.span(t).offset <= offset < header.span(t).end]
    flip(copy, offset)

    assert [f.name for f in verify_against(copy, original).findings] == owner


def test_lost_added_and_renamed_tensors_are_told_apart(tmp_path: Path) -> None:
    a = write_small(tmp_path / "a.gguf")
    renamed = [("other.weight", *SMALL_TENSORS[-1][1:]), *SMALL_TENSORS[:-1]]
    b = write_small(tmp_path / "b.gguf", renamed)

    codes = {(f.code, f.name) for f in verify_against(b, a).findings}

    assert codes == {("missing-tensor", "output.weight"), ("extra-tensor", "other.weight")}
