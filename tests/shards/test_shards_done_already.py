"""A plain merge that was killed after its output had its name is done, and the same command says so."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.shards import merge, plan_merge
from dfqs.shards.plain_merge import merged_already
from dfqs.shards.split import plan_split, split
from dfqs.storage.cache import cache_directory
from inplace_cases import shards_fixture  # noqa: F401 - fixtures
from shard_inputs import sha256


class Killed(BaseException):
    """As kill -9: nothing is tidied up."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_merge_killed_right_after_its_output_got_its_name_is_done_already(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"

    def kill(directory: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("dfqs.storage.atomic.fsync_directory", lambda path: kill(path) if out.exists() else None)
        merge(plan_merge(shards[0]), out)
    before = sha256(out)

    command = ["merge", str(shards[0]), "-o", str(out)]
    assert run(command) == 0
    assert f"done already: {out}" in capsys.readouterr().out
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done_already"] is True
    assert sha256(out) == before


def change_output(shards: list[Path], out: Path) -> None:
    data = bytearray(out.read_bytes())
    data[-100] ^= 1
    out.write_bytes(data)


def change_output_and_put_the_time_back(shards: list[Path], out: Path) -> None:
    state = out.stat()
    change_output(shards, out)
    os.utime(out, ns=(state.st_atime_ns, state.st_mtime_ns))


def replace_output(shards: list[Path], out: Path) -> None:
    state = out.stat()
    shutil.copyfile(out, out.with_name("other"))
    out.with_name("other").replace(out)
    os.utime(out, ns=(state.st_atime_ns, state.st_mtime_ns))


def change_shard(shards: list[Path], out: Path) -> None:
    change_output([], shards[1])


def lose_receipt(shards: list[Path], out: Path) -> None:
    shutil.rmtree(cache_directory())


def damage_receipt(shards: list[Path], out: Path) -> None:
    (receipt,) = cache_directory().glob("receipts/*.json")
    receipt.write_text('{"schema":')


@pytest.mark.parametrize(
    "change",
    [change_output, change_output_and_put_the_time_back, replace_output, change_shard, lose_receipt, damage_receipt],
)
def test_output_that_may_be_another_one_exists_and_is_not_called_done(
    change: Callable[[list[Path], Path], None],
    shards: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.gguf"
    merge(plan_merge(shards[0]), out)
    change(shards, out)
    before = sha256(out)

    assert run(["merge", str(shards[0]), "-o", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert sha256(out) == before


def test_merge_that_is_to_hash_is_done_only_when_it_had_hashed(shards: list[Path], tmp_path: Path) -> None:
    plan = plan_merge(shards[0])
    merge(plan, tmp_path / "plain.gguf")
    hashed = merge(plan, tmp_path / "hashed.gguf", hash_sources=True)

    assert merged_already(plan, tmp_path / "plain.gguf", hash_sources=True) is None
    found = merged_already(plan, tmp_path / "hashed.gguf", hash_sources=True)
    assert found is not None and found.shard_sha256 == hashed.shard_sha256


def test_cache_that_cannot_be_written_does_not_stop_a_merge(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "file" / "cache"))

    merge(plan_merge(shards[0]), tmp_path / "out.gguf")

    assert (tmp_path / "out.gguf").exists()


@pytest.fixture(name="model")
def model_fixture(shards: list[Path], tmp_path: Path) -> Path:
    merge(plan_merge(shards[0]), tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("named", [1, 2, -1])
def test_split_killed_while_its_shards_got_their_names_is_done_or_finished_by_the_same_command(
    named: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It said that its own last shard exists."""
    whole = split(plan_split(model, tmp_path / "whole", max_tensors=9))
    expected = [sha256(path) for path in whole]
    (tmp_path / "out").mkdir()
    plan = plan_split(model, tmp_path / "out" / "s", max_tensors=9)
    assert len(plan.paths) > 2

    def kill(directory: Path) -> None:
        if sum(path.exists() for path in plan.paths) == named % (len(plan.paths) + 1):
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("dfqs.storage.atomic.fsync_directory", kill)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        split(plan)

    assert run(["split", str(model), "-o", str(tmp_path / "out" / "s"), "--max-tensors", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done_already"] is (named == -1)
    assert [sha256(path) for path in plan.paths] == expected
    if named != -1:
        assert sorted((tmp_path / "out").iterdir()) == sorted(plan.paths)


def test_split_does_not_take_a_shard_of_its_name_that_it_did_not_write_for_its_own(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["split", str(model), "-o", str(tmp_path / "s"), "--max-tensors", "9"]
    assert run(command) == 0
    assert run(command) == 0
    assert "done already" in capsys.readouterr().err
    paths = plan_split(model, tmp_path / "s", max_tensors=9).paths
    paths[1].write_bytes(paths[1].read_bytes())

    assert run(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert all(path.exists() for path in paths)
