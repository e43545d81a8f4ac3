"""What the Hub's tools wrote down of a download is compared, so that a shard of a twin model is not merged unseen."""

from pathlib import Path

import pytest

from dfqs.errors import IntegrityError
from dfqs.inplace import is_unfinished, merge_inplace, plan_inplace
from dfqs.shards import merge, plan_merge
from dfqs.shards.provenance import HubRecord, read_hub_record
from shard_inputs import sha256, tiny_entries, tiny_tensors, write_shards

COMMITS = ("a" * 40, "b" * 40)


def twin_shards(folder: Path) -> list[Path]:
    """Two shards, the second one of a model with the same names, shapes and types."""
    tensors = tiny_tensors()
    shards = write_shards(folder, tiny_entries(), [tensors[:3], tensors[3:]])
    twin = write_shards(folder / "twin", tiny_entries(), [tensors[:3], tensors[3:]], seed="fine-tuned")
    record(folder, shards[0], COMMITS[0], sha256(shards[0]))
    record(folder, shards[1], COMMITS[0], sha256(shards[1]))
    twin[1].replace(shards[1])
    return shards


def record(folder: Path, path: Path, commit: str, digest: str) -> None:
    target = folder / ".cache/huggingface/download" / f"{path.relative_to(folder)}.metadata"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"{commit}\n{digest}\n1700000000.0\n")


def test_shard_of_a_twin_model_is_refused_by_the_hash_that_the_hub_gave(tmp_path: Path) -> None:
    shards = twin_shards(tmp_path / "in")
    (tmp_path / "out").mkdir()

    with pytest.raises(IntegrityError, match=r"00002-of-00002\.gguf has the SHA-256 .* Hub's record of it says"):
        merge(plan_merge(shards[0]), tmp_path / "out/model.gguf", hash_sources=True)

    assert list((tmp_path / "out").iterdir()) == []


def test_right_shards_pass_the_same_comparison(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    shards = write_shards(tmp_path / "in", tiny_entries(), [tensors[:3], tensors[3:]])
    for shard in shards:
        record(tmp_path / "in", shard, COMMITS[0], sha256(shard))

    result = merge(plan_merge(shards[0]), tmp_path / "out.gguf", hash_sources=True)

    assert result.shard_sha256 == tuple(map(sha256, shards))


def test_shards_from_different_commits_are_noted(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    shards = write_shards(tmp_path, tiny_entries(), [tensors[:3], tensors[3:]])
    for shard, commit in zip(shards, COMMITS, strict=True):
        record(tmp_path, shard, commit, sha256(shard))

    assert "different commits" in plan_merge(shards[0]).notes[0]


def test_name_of_a_blob_in_the_hubs_cache_is_its_hash(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    blob = tmp_path / "blobs" / ("c" * 64)
    blob.write_bytes(b"x")
    (tmp_path / "snapshots" / "model.gguf").symlink_to(Path("../blobs") / blob.name)

    assert read_hub_record(tmp_path / "snapshots" / "model.gguf") == HubRecord(None, "c" * 64)


@pytest.mark.parametrize("text", ["", "\n", "x\ny\nz\n", "a" * 5000, "\0\n\xff"])
def test_record_that_makes_no_sense_is_no_record(text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"x")
    target = tmp_path / ".cache/huggingface/download/model.gguf.metadata"
    target.parent.mkdir(parents=True)
    target.write_text(text)

    assert read_hub_record(path) in (None, HubRecord(None, None))


def test_twin_shard_is_refused_before_a_merge_that_would_use_it_up(tmp_path: Path) -> None:
    shards = twin_shards(tmp_path / "in")
    before = [sha256(path) for path in shards]
    plan = plan_inplace(plan_merge(shards[0]), tmp_path / "model.gguf", "consume")

    with pytest.raises(IntegrityError, match="Hub's record of it says"):
        merge_inplace(plan, hash_first=True)

    assert [sha256(path) for path in shards] == before
    assert not is_unfinished(tmp_path / "model.gguf")
