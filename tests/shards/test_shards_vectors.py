"""Split and merge against what llama-gguf-split made of the same inputs (tests/README.md says how that was recorded).

With DFQS_GGUF_SPLIT set to a binary, the tool is asked again, live.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

import shard_cases
from dfqs.shards import merge, plan_merge
from dfqs.shards.split import plan_split, split
from shard_cases import FOREIGN_SHARDS, SPLITS
from shard_inputs import sha256

RECORDED = json.loads((Path(__file__).parents[1] / "vectors" / "gguf_split.json").read_text())
PEER = os.environ.get("DFQS_GGUF_SPLIT")


@pytest.mark.parametrize("name", SPLITS)
def test_shards_are_the_bytes_of_the_peer_so_that_hashes_published_for_its_shards_fit_ours(
    name: str, tmp_path: Path
) -> None:
    case, recorded = SPLITS[name], RECORDED["splits"][name]
    model = case.write(tmp_path / "model.gguf")
    assert sha256(model) == recorded["input"], "the generator changed; the vectors must be recorded again"

    plan = plan_split(
        model,
        tmp_path / "shard",
        max_bytes=case.max_bytes,
        max_tensors=case.max_tensors,
        no_tensor_first_split=case.no_tensor_first_split,
    )
    paths = split(plan)

    assert [sha256(path) for path in paths] == recorded["shards"]


@pytest.mark.parametrize("name", SPLITS)
def test_merge_of_the_peers_shards_is_the_bytes_of_the_peers_merge(name: str, tmp_path: Path) -> None:
    case, recorded = SPLITS[name], RECORDED["splits"][name]
    model = case.write(tmp_path / "model.gguf")
    options = {"max_bytes": case.max_bytes, "max_tensors": case.max_tensors}
    paths = split(plan_split(model, tmp_path / "s", no_tensor_first_split=case.no_tensor_first_split, **options))
    assert [sha256(path) for path in paths] == recorded["shards"]

    merge(plan_merge(paths[0]), tmp_path / "out.gguf")

    assert sha256(tmp_path / "out.gguf") == recorded["merged"]


@pytest.mark.parametrize("name", FOREIGN_SHARDS)
def test_merge_of_shards_by_other_writers_has_the_peers_key_order(name: str, tmp_path: Path) -> None:
    recorded = RECORDED["merges"][name]
    shards = FOREIGN_SHARDS[name](tmp_path / "shards")
    assert [sha256(path) for path in shards] == recorded["shards"], "the generator changed; record the vectors again"

    merge(plan_merge(shards[0]), tmp_path / "out.gguf")

    assert sha256(tmp_path / "out.gguf") == recorded["merged"]


def test_every_case_was_recorded_so_that_none_passes_by_absence() -> None:
    assert set(RECORDED["splits"]) == set(SPLITS)
    assert set(RECORDED["merges"]) == set(FOREIGN_SHARDS)
    assert RECORDED["built_from"] == shard_cases.PEER_SOURCE


@pytest.mark.skipif(PEER is None, reason="DFQS_GGUF_SPLIT names no llama-gguf-split")
@pytest.mark.parametrize("name", FOREIGN_SHARDS)
def test_live_peer_merges_to_our_bytes(name: str, tmp_path: Path) -> None:
    assert PEER is not None
    shards = FOREIGN_SHARDS[name](tmp_path / "shards")
    subprocess.run([PEER, "--merge", shards[0], tmp_path / "peer.gguf"], check=True, capture_output=True)

    merge(plan_merge(shards[0]), tmp_path / "ours.gguf")

    assert sha256(tmp_path / "ours.gguf") == sha256(tmp_path / "peer.gguf")


@pytest.mark.skipif(PEER is None, reason="DFQS_GGUF_SPLIT names no llama-gguf-split")
@pytest.mark.parametrize("name", SPLITS)
def test_live_peer_splits_to_our_bytes(name: str, tmp_path: Path) -> None:
    assert PEER is not None
    case = SPLITS[name]
    model = case.write(tmp_path / "model.gguf")
    options = {"max_bytes": case.max_bytes, "max_tensors": case.max_tensors}
    paths = split(plan_split(model, tmp_path / "ours", no_tensor_first_split=case.no_tensor_first_split, **options))
    peer_prefix = tmp_path / "peer"
    subprocess.run([PEER, "--split", *case.peer_options, model, peer_prefix], check=True, capture_output=True)

    peers = sorted(tmp_path.glob("peer-*.gguf"))
    assert [sha256(path) for path in paths] == [sha256(path) for path in peers]
