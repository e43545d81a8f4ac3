"""What verbs print under --json: one form a verb, whichever way its work went."""

import json
from pathlib import Path
from typing import Any

import pytest

from dfqs.cli.documents.shards import MergeDocument
from dfqs.cli.main import run
from dfqs.inplace import plan_inplace
from dfqs.inplace.execute import Place, begin
from dfqs.shards import plan_merge
from dfqs.storage.disk import LocalDisk
from inplace_cases import make_shards


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert run([str(word) for word in words]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert next(iter(document)) == "schema"
    return document


def test_a_merge_has_the_same_keys_planned_fresh_resumed_done_and_undone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out = make_shards(tmp_path), tmp_path / "out.gguf"
    merge = ["merge", shards[0], "-o", out, "--consume", "--json"]

    def cut_off() -> None:
        """A merge that was cut off right after its working file was made ready."""
        plan = plan_inplace(plan_merge(shards[0]), out, "consume")
        begin(LocalDisk(), plan.job, Place(out, tmp_path)).close()

    planned = printed(capsys, *merge, "--dry-run")
    fresh = printed(capsys, "merge", shards[0], "-o", tmp_path / "copy.gguf", "--json")
    again = printed(capsys, "merge", shards[0], "-o", tmp_path / "copy.gguf", "--json")
    cut_off()
    undone = printed(capsys, *merge, "--abort")
    cut_off()
    resumed = printed(capsys, *merge)

    documents = (planned, fresh, again, undone, resumed)
    assert {tuple(document) for document in documents} == {tuple(planned)}
    assert {tuple(shard) for document in documents for shard in document["shards"]} == {tuple(planned["shards"][0])}
    for document in documents:
        assert json.loads(MergeDocument.model_validate(document).model_dump_json()) == document
    told = [(d["dry_run"], d["done_already"], d["aborted"], d["resumed"]) for d in documents]
    assert told == [
        (True, False, False, False),
        (False, False, False, False),
        (False, True, False, False),
        (False, False, True, False),
        (False, False, False, True),
    ]
    assert resumed["tensors"] == planned["tensors"]
    assert [shard["path"] for shard in resumed["shards"]] == [str(path) for path in shards]
