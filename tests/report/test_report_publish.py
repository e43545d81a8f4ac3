"""Publishing: nothing unasked, all or nothing, only what is missing, never a token, never a file that changed."""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from cli_processes import RunningDfqs, run_dfqs
from dfqs.cli.main import run
from dfqs.gguf import GGMLType, string
from dfqs.integrity.manifest import make_manifest, write_manifest
from dfqs.model.hashes import hash_model
from gguf_builder import SMALL_KEYS, SMALL_TENSORS, write_small
from report_documents import report_document
from report_pages import GOLDEN
from shard_inputs import tiny_entries, tiny_tensors, u32_entry, write_shards
from upload_server import TOKEN, UploadHub

REPO = "me/model-GGUF"
ENTRIES = [*tiny_entries(), u32_entry("llama.expert_used_count", 2)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with UploadHub(lfs_from=10_000) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model with its manifest, a report of it, and a plan, so that no runtime is asked."""
    path = write_small(tmp_path / "m.gguf", keys=[*SMALL_KEYS, string("general.license", "mit")])
    write_manifest(path, make_manifest(path))
    hashes = hash_model(path)
    document = report_document()
    document["artifact"].update(content_sha256=hashes.content_sha256, file_sha256=hashes.file_sha256)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/report.json").write_text(json.dumps(document))
    plan = json.loads((GOLDEN / "plan-1.json").read_text())
    (tmp_path / "results/plan.json").write_text(json.dumps({**plan, "file_bytes": hashes.file_bytes}))
    return path


def publish(model: Path, *words: str, report: bool = True) -> int:
    report_words = ["--report", str(model.parent / "results")] if report else []
    return run(["publish", str(model), REPO, *report_words, *words])


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_nothing_is_uploaded_unless_told_to(model: Path, hub: UploadHub, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in model.parent.iterdir())

    assert publish(model) == 0

    assert "nothing was uploaded; --yes uploads" in capsys.readouterr().out
    assert not hub.created and not hub.puts and not hub.commits
    assert sorted(path.name for path in model.parent.iterdir()) == before
    assert publish(model, "--yes", "--dry-run") == 2


def test_everything_is_there_in_one_commit_and_the_second_call_does_nothing(
    model: Path, hub: UploadHub, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in (".sig", ".derivation.sigstore.json"):
        (model.parent / f"m.gguf{suffix}").write_text("{}")

    assert publish(model, "--yes", "--json") == 0

    document = told(capsys)
    of_model = {"m.gguf", "m.gguf.manifest.json", "m.gguf.sig", "m.gguf.derivation.sigstore.json"}
    assert set(hub.files) == {*of_model, "README.md", "CITATION.cff", "preset.ini", "report.json", "report.html"}
    assert document["commit"] == hub.commit and len(hub.commits) == 1
    assert document["private"] is True and hub.private is True
    assert hub.files["m.gguf"] == model.read_bytes()
    assert ModelCard(hub.files["README.md"].decode()).data["license"] == "mit"
    assert (
        json.loads(hub.files["m.gguf.manifest.json"])["file_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    )

    assert publish(model, "--yes", "--json") == 0
    document = told(capsys)
    assert document["done_already"] and document["commit"] is None and len(hub.commits) == 1
    assert {file["action"] for file in document["files"]} == {"unchanged"}


def test_a_preset_sets_only_what_llama_cpp_takes_from_a_network(model: Path, hub: UploadHub) -> None:
    assert publish(model, "--yes") == 0

    lines = hub.files["preset.ini"].decode().splitlines()
    assert lines == ["; Written by dfqs publish.", "batch-size = 512", "ubatch-size = 512"]


def test_a_new_repository_is_public_only_when_told_to(model: Path, hub: UploadHub) -> None:
    assert publish(model, "--yes", "--public") == 0
    assert hub.private is False


def test_shards_are_published_without_a_manifest_and_without_a_report(
    tmp_path: Path, hub: UploadHub, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_ = write_shards(tmp_path, ENTRIES, [tiny_tensors()[:3], tiny_tensors()[3:]], prefix="s")

    assert run(["publish", str(first), REPO, "--yes", "--json"]) == 0

    assert set(hub.files) == {"s-00001-of-00002.gguf", "s-00002-of-00002.gguf", "preset.ini"}
    assert "these shards have no manifests" in " ".join(told(capsys)["notes"])


def test_manifests_of_shards_go_with_them_and_are_believed(tmp_path: Path, hub: UploadHub) -> None:
    shards = write_shards(tmp_path, ENTRIES, [tiny_tensors()[:3], tiny_tensors()[3:]], prefix="s")
    for shard in shards:
        write_manifest(shard, make_manifest(shard))

    assert run(["publish", str(shards[0]), REPO, "--yes"]) == 0
    assert {f"{shard.name}.manifest.json" for shard in shards} <= set(hub.files)

    data = bytearray(shards[1].read_bytes())
    data[-1] ^= 1
    shards[1].write_bytes(data)
    assert run(["publish", str(shards[0]), REPO, "--yes"]) == 3
    assert len(hub.commits) == 1


def test_a_missing_manifest_is_made_and_kept(model: Path, hub: UploadHub) -> None:
    manifest = model.with_name("m.gguf.manifest.json")
    manifest.unlink()

    assert publish(model) == 0
    assert not manifest.exists()
    assert publish(model, "--yes") == 0
    assert hub.files["m.gguf.manifest.json"] == manifest.read_bytes()
    assert b"the file agrees with it" in hub.files["README.md"]
    assert publish(model, "--yes") == 0
    assert len(hub.commits) == 1


def test_a_file_that_changed_since_its_manifest_is_refused(
    model: Path, hub: UploadHub, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)

    assert publish(model, "--yes") == 3

    assert "is not what m.gguf.manifest.json recorded" in capsys.readouterr().err
    assert not hub.created and not hub.files


def test_a_file_that_changes_under_the_upload_is_not_committed(
    model: Path, hub: UploadHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.on_put = lambda oid, number: os.utime(model, ns=(1, 1))

    assert publish(model, "--yes") == 3

    assert "changed while it was uploaded" in capsys.readouterr().err
    assert not hub.commits


@pytest.mark.parametrize("name", ["README.md", "preset.ini"])
def test_a_persons_own_card_is_not_replaced_unless_told_to(name: str, model: Path, hub: UploadHub) -> None:
    hub.created, hub.files[name] = True, b"years of work"

    assert publish(model, "--yes") == 2
    assert hub.files == {name: b"years of work"} and not hub.commits
    assert publish(model, "--yes", "--overwrite") == 0
    assert hub.files[name] != b"years of work"


@pytest.mark.thorough
def test_a_card_of_an_earlier_report_is_replaced(model: Path, hub: UploadHub) -> None:
    assert publish(model, "--yes", "--author", "first") == 0
    assert publish(model, "--yes", "--author", "second") == 0

    assert b"second" in hub.files["CITATION.cff"] and len(hub.commits) == 2
    assert hub.puts[hashlib.sha256(model.read_bytes()).hexdigest()] == 1


@pytest.mark.thorough
def test_files_in_parts_arrive_whole(model: Path, hub: UploadHub) -> None:
    hub.lfs_from, hub.part_bytes = 1, 5000

    assert publish(model, "--yes") == 0
    assert hub.files["m.gguf"] == model.read_bytes()


def test_a_killed_upload_sends_only_what_is_missing(tmp_path: Path, hub: UploadHub) -> None:
    """Two shards: the first had arrived, the second was under way."""
    hub.lfs_from = 1
    first, second = write_shards(tmp_path, ENTRIES, [tiny_tensors()[:3], tiny_tensors()[3:]], prefix="s")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)]
    reached, killed = threading.Event(), threading.Event()

    def stall(oid: str, number: int) -> None:
        if oid == digests[1] and number == 1:
            reached.set()
            killed.wait(60)
            raise ConnectionResetError

    hub.on_put = stall
    words = ["publish", str(first), REPO, "--yes"]
    with RunningDfqs(*words) as running:
        assert reached.wait(60)
        running.process.kill()
        running.process.wait()
    killed.set()
    assert not hub.commits

    assert run(words) == 0

    assert hub.puts[digests[0]] == 1 and hub.puts[digests[1]] == 2
    assert {hub.files[path.name] for path in (first, second)} == {first.read_bytes(), second.read_bytes()}


@pytest.mark.thorough
def test_a_killed_upload_to_storage_in_pieces_goes_on_within_the_file(
    tmp_path: Path, hub: UploadHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of two blocks of the Hub's present storage: the first had arrived, the second was under way."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    # Else what was sent in the last seconds before the kill is sent again.
    monkeypatch.setenv("HF_XET_DATA_SESSION_XORB_METADATA_FLUSH_INTERVAL", "0s")
    monkeypatch.setenv("HF_XET_DATA_SESSION_XORB_METADATA_FLUSH_MAX_COUNT", "1")
    hub.xet, hub.lfs_from = True, 1 << 20
    big = ("big.weight", (1024, 17 * 1024), GGMLType.F32)
    model = write_small(tmp_path / "m.gguf", [*SMALL_TENSORS, big])
    reached, killed = threading.Event(), threading.Event()
    seen: list[str] = []

    def stall(digest: str, number: int) -> None:
        seen.append(digest)
        if number == 2 and not reached.is_set():
            reached.set()
            killed.wait(60)
            raise ConnectionResetError

    hub.on_put = stall
    words = ["publish", str(model), REPO, "--yes"]
    with RunningDfqs(*words) as running:
        assert reached.wait(60)
        running.process.kill()
        running.process.wait()
    killed.set()
    assert not hub.commits and hub.blocks == {seen[0]: 1, seen[1]: 1}

    again = run_dfqs(*words)

    assert again.returncode == 0, again.stderr
    assert hub.blocks == {seen[0]: 1, seen[1]: 2}
    assert hub.lfs_oids["m.gguf"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert TOKEN not in again.stdout + again.stderr


def test_the_token_is_in_nothing_that_is_printed_or_sent_to_the_storage(
    model: Path, hub: UploadHub, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.fail["commit"] = 403
    assert publish(model, "--yes", "--json", report=False) == 2
    hub.fail = {"batch": 403}
    said = capsys.readouterr()
    publish(model, "--yes", "--json", report=False)
    hub.fail = {}
    assert publish(model, "--yes", report=False) == 0

    more = capsys.readouterr()
    assert TOKEN not in said.out + said.err + more.out + more.err + caplog.text
    assert not any(TOKEN.encode() in data for data in hub.files.values())
    assert set(hub.storage_tokens) == {None}
    assert "signature=secret" not in said.err + more.err


@pytest.mark.parametrize(
    ("what", "status", "code"), [("commit", 403, 2), ("create", 401, 2), ("preupload", 404, 2), ("commit", 412, 2)]
)
def test_a_refusal_is_a_sentence(
    what: str, status: int, code: int, model: Path, hub: UploadHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail[what] = status

    assert publish(model, "--yes") == code

    said = capsys.readouterr().err
    assert f"HTTP {status}" in said and "internal error" not in said
    assert not hub.commits


def test_a_wrong_token_is_found_out_before_anything_is_hashed_and_not_shown(
    model: Path, hub: UploadHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")

    assert publish(model) == 2

    said = capsys.readouterr().err
    assert "HF_TOKEN" in said and "hf_wrong" not in said


def test_a_card_that_the_hub_refuses_stops_before_the_commit(
    model: Path, hub: UploadHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuse_card = "license is not\x1b[2J one"

    assert publish(model, "--yes") == 2

    said = capsys.readouterr().err
    assert "license is not" in said and "\x1b[2J" not in said and not hub.commits


def test_a_file_that_the_repository_ignores_is_not_left_out_in_silence(
    model: Path, hub: UploadHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.gitignore = frozenset({"m.gguf"})

    assert publish(model, "--yes") == 2
    assert "leaves out m.gguf" in capsys.readouterr().err and not hub.commits


def test_a_hub_that_is_not_there_is_said(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")

    assert publish(model, "--yes") == 3
    assert "internal error" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["m\x1b[2J.gguf", ".hidden.gguf", "m\n.gguf"])
def test_a_name_that_a_repository_cannot_have_is_refused(name: str, model: Path, hub: UploadHub) -> None:
    renamed = model.rename(model.with_name(name))

    assert publish(renamed, "--yes", report=False) == 2
    assert not hub.created
