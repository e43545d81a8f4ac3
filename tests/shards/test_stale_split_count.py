"""A whole model with a split.count left over from its shards: it is shown, and what cannot be done says why."""

import json
from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.errors import ShardError
from dfqs.gguf import GGMLType, KeyValue, i32, read_header, u16
from dfqs.gguf.shard import read_model_shards, read_shards
from dfqs.integrity import verify_structure
from dfqs.runtime.checks import check_model
from dfqs.shards.repair import plan_repair, repair
from gguf_builder import SMALL_KEYS, SMALL_TENSORS, write_small

COMPLETE = (*SMALL_TENSORS, ("output_norm.weight", (64,), GGMLType.F32))
STALE: dict[str, tuple[str, list[KeyValue]]] = {
    "all by its own count": ("m.gguf", [u16("split.no", 0), u16("split.count", 3), i32("split.tensors.count", 6)]),
    "named as a shard too": (
        "m-00001-of-00003.gguf",
        [u16("split.no", 0), u16("split.count", 3), i32("split.tensors.count", 6)],
    ),
    "every layer is there": ("m.gguf", [u16("split.no", 0), u16("split.count", 3)]),
    "without a number": ("m.gguf", [u16("split.count", 3)]),
}


@pytest.fixture(params=STALE)
def stale(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name, keys = STALE[request.param]
    return write_small(tmp_path / name, COMPLETE, [*SMALL_KEYS, *keys])


def test_inspect_shows_the_model_and_not_a_missing_shard(stale: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(stale), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)

    assert (record["files"], record["experts"]) == (1, 3)


def test_run_names_the_key_and_the_fix_before_llama_cpp_looks_for_shards(stale: Path) -> None:
    with pytest.raises(ShardError, match=r"split\.count.*holds the whole model.*dfqs repair"):
        check_model(stale)


def test_merge_says_that_it_is_whole(stale: Path) -> None:
    with pytest.raises(ShardError, match="a whole model, not a shard"):
        read_shards(stale)


def test_verify_finds_it_and_repair_fixes_it(stale: Path, tmp_path: Path) -> None:
    findings = [f for f in verify_structure(stale).findings if f.code == "shard-keys"]
    repair(plan_repair(stale), tmp_path / "out.gguf")

    assert len(findings) == 1
    assert read_header(tmp_path / "out.gguf").metadata["split.count"] == 0
    assert check_model(tmp_path / "out.gguf").file_bytes > 0


def test_a_first_shard_is_still_a_shard_whatever_its_name(tmp_path: Path) -> None:
    keys = [*SMALL_KEYS, u16("split.no", 0), u16("split.count", 3), i32("split.tensors.count", 9)]
    renamed = write_small(tmp_path / "m.gguf", SMALL_TENSORS, keys)
    named = write_small(tmp_path / "m-00001-of-00003.gguf", COMPLETE, keys)

    with pytest.raises(ShardError, match="must be named like"):
        read_model_shards(renamed)
    with pytest.raises(ShardError, match="2 of 3 shards missing"):
        read_model_shards(named)
