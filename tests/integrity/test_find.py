"""find counts bytes that are really there twice: not links, not what merely looks alike; and it changes nothing."""

import json
import os
from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.find import find_models, taken_bytes, usual_directories
from dfqs.gguf import string
from dfqs.shards import merge, plan_merge
from gguf_builder import write_small
from shard_inputs import tiny_entries, tiny_tensors, write_shards, write_tiny


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in directory.rglob("*")}


def test_a_copy_under_another_name_is_found_by_content_and_nothing_is_changed(tmp_path: Path) -> None:
    a = write_tiny(tmp_path / "a.gguf")
    (tmp_path / "deep").mkdir()
    copy = tmp_path / "deep" / "sha256-abcdef"
    copy.write_bytes(a.read_bytes())
    before = snapshot(tmp_path)

    (group,) = find_models([tmp_path]).same

    assert {model.files[0].path for model in group.models} == {a, copy}
    assert group.content_sha256 is not None
    assert group.freeable_bytes == min(a.stat().st_blocks, copy.stat().st_blocks) * 512
    assert snapshot(tmp_path) == before


def test_links_cost_nothing_and_are_no_copies(tmp_path: Path) -> None:
    a = write_tiny(tmp_path / "a.gguf")
    os.link(a, tmp_path / "hard.gguf")
    (tmp_path / "soft.gguf").symlink_to(a)

    result = find_models([tmp_path])

    assert len(result.models) == 1
    assert len(result.models[0].files[0].names) == 3
    assert result.same == ()
    assert result.freeable_bytes == 0


def test_a_hub_cache_shows_each_model_once_under_its_name(tmp_path: Path) -> None:
    repo = tmp_path / "hub" / "models--o--n"
    (repo / "blobs").mkdir(parents=True)
    (repo / "snapshots" / "abc").mkdir(parents=True)
    blob = write_tiny(repo / "blobs" / ("ab" * 32))
    (repo / "snapshots" / "abc" / "m-Q8_0.gguf").symlink_to(blob)

    (model,) = find_models([tmp_path / "hub"]).models

    assert model.name == "m-Q8_0.gguf"


def test_shards_and_their_merge_are_the_same_model(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    shards = write_shards(tmp_path / "s", tiny_entries(), [tensors[:2], tensors[2:]])
    merge(plan_merge(shards[0]), tmp_path / "merged.gguf")

    (group,) = find_models([tmp_path]).same

    assert sorted(len(model.files) for model in group.models) == [1, 2]


def test_shards_in_a_hub_cache_are_one_set_although_their_blobs_are_not_named_so(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    shards = write_shards(tmp_path / "s", tiny_entries(), [tensors[:2], tensors[2:]])
    blobs, snap = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots"
    blobs.mkdir(parents=True)
    snap.mkdir()
    for index, shard in enumerate(shards):
        shard.rename(blobs / f"{index}")
        (snap / shard.name).symlink_to(blobs / f"{index}")

    (model,) = find_models([tmp_path]).models

    assert len(model.files) == 2
    assert model.complete


def test_models_that_differ_in_one_byte_between_the_samples_are_not_the_same(tmp_path: Path) -> None:
    a = write_tiny(tmp_path / "a.gguf")
    data = bytearray(a.read_bytes())
    data[-2] ^= 1
    (tmp_path / "b.gguf").write_bytes(bytes(data))

    sampled, hashed = find_models([tmp_path], hash_candidates=False), find_models([tmp_path])

    assert len(sampled.same) == 1
    assert sampled.same[0].content_sha256 is None
    assert hashed.same == ()


def test_models_of_the_same_shape_with_other_weights_are_told_apart_without_reading_them_whole(tmp_path: Path) -> None:
    write_small(tmp_path / "a.gguf", seed="a")
    write_small(tmp_path / "b.gguf", seed="b")

    assert find_models([tmp_path], hash_candidates=False).same == ()


def test_broken_incomplete_and_foreign_files_are_listed_or_passed_over_without_an_error(tmp_path: Path) -> None:
    broken = write_tiny(tmp_path / "broken.gguf")
    broken.write_bytes(broken.read_bytes()[:100])
    (tmp_path / "page.gguf").write_text("<html>")
    (tmp_path / "nowhere.gguf").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dir.gguf").mkdir()
    write_shards(tmp_path / "s", tiny_entries(), [tiny_tensors()[:2], tiny_tensors()[2:]])[1].unlink()

    models = {model.name: model for model in find_models([tmp_path]).models}

    assert set(models) == {"broken.gguf", "model (1 of 2 shards)"}
    assert models["broken.gguf"].problem is not None
    assert not models["model (1 of 2 shards)"].complete


def test_vocabularies_without_tensors_are_not_all_the_same_model(tmp_path: Path) -> None:
    write_small(tmp_path / "a.gguf", tensors=(), keys=[string("general.architecture", "a")])
    write_small(tmp_path / "b.gguf", tensors=(), keys=[string("general.architecture", "b")])

    assert find_models([tmp_path]).same == ()


@pytest.mark.parametrize("claimed", [99_999, 9_999_999_999])
def test_a_name_that_claims_many_shards_is_not_counted_to(claimed: int, tmp_path: Path) -> None:
    write_tiny(tmp_path / f"m-00001-of-{claimed}.gguf")

    assert find_models([tmp_path]).models[0].name == f"m (1 of {claimed} shards)"


def test_two_revisions_that_share_a_blob_are_two_whole_sets_and_the_blob_counts_once(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    shards = write_shards(tmp_path / "blobs", tiny_entries(), [tensors[:2], tensors[2:]])
    changed = bytearray(shards[1].read_bytes())
    changed[-1] ^= 1
    other = tmp_path / "blobs" / "changed"
    other.write_bytes(changed)
    for revision, second in (("a", shards[1]), ("b", other)):
        snapshot = tmp_path / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (snapshot / "m-00001-of-00002.gguf").symlink_to(shards[0])
        (snapshot / "m-00002-of-00002.gguf").symlink_to(second)

    result = find_models([tmp_path / "snapshots"])

    assert [(len(model.files), model.complete) for model in result.models] == [(2, True), (2, True)]
    assert taken_bytes(result.models) == sum(path.stat().st_blocks * 512 for path in (*shards, other))


def test_ollamas_blobs_go_by_the_names_in_its_manifests_and_broken_manifests_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    manifests = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "llama3"
    manifests.mkdir(parents=True)
    write_tiny(tmp_path / "blobs" / "sha256-abc")
    (manifests / "8b").write_text('{"layers": [{"digest": "sha256:abc"}, {"digest": 7}]}')
    (manifests / "broken").write_text('{"layers": 3}')
    (manifests / "nested").write_text("[" * 100_000)

    (model,) = find_models([tmp_path]).models

    assert model.name == "llama3:8b"


def test_a_file_that_lacks_its_end_is_called_broken(tmp_path: Path) -> None:
    cut = write_tiny(tmp_path / "m.gguf")
    os.truncate(cut, cut.stat().st_size - 40)

    (model,) = find_models([tmp_path]).models

    assert model.problem is not None and "too soon" in model.problem


def test_usual_places_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_HUB_CACHE", "HF_HOME", "OLLAMA_MODELS", "LLAMA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".lmstudio" / "models").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "elsewhere"))

    found = usual_directories()

    assert {tmp_path / ".lmstudio" / "models", tmp_path / "elsewhere"} <= set(found)
    assert tmp_path / ".ollama" / "models" not in found


def test_command_line_names_what_could_be_freed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_tiny(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(a.read_bytes())

    assert run(["find", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["freeable_bytes"] == a.stat().st_blocks * 512
    assert run(["find", str(tmp_path)]) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert run(["find", str(tmp_path / "none")]) == 2
