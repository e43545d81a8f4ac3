"""Models of the Hub that are kept under their names: fetched once whatever interrupts it, found offline, taken away."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from cli_processes import run_dfqs
from dfqs.cli import fetching
from dfqs.cli.main import run
from dfqs.errors import UsageError
from dfqs.pull import find_kept, hub_endpoint, list_kept, models_directory
from dfqs.pull.output import part_path
from dfqs.shards.hub_address import HubAddress, names_hub_model, parse_hub_address
from fixtures_moe import write_tiny_moe
from hub_server import FakeHub
from pull_cases import Repository, single_model, write_repository

CHUNK = 64 << 10


@pytest.fixture
def kept_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def repository(tmp_path: Path, kept_in: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """Three shards of a model called IQ1_S, and a file that is another model."""
    shards, merged = write_repository(tmp_path)
    files = {path.name.replace("model", "model-IQ1_S"): path.read_bytes() for path in shards}
    with FakeHub(files={**files, "model-Q8_0.gguf": single_model()}) as hub:
        use(hub, monkeypatch)
        yield Repository(hub, shards, merged)


def use(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, in this process and in those that it starts."""
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", "none")


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run(["cache", *words, "--json"]) == 0
    models: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["models"]
    return models


def test_shards_become_one_file_under_the_name_and_a_second_time_nobody_is_asked(
    repository: Repository, kept_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "add", "owner/model:IQ1_S"]) == 0

    path = Path(capsys.readouterr().out.strip())
    assert path.is_relative_to(kept_in / "owner" / "model")
    assert path.read_bytes() == repository.merged
    assert sorted(p.name for p in path.parent.iterdir()) == [
        ".lock", "kept.json", path.name, f"{path.name}.manifest.json",
    ]  # fmt: skip
    repository.hub.api_troubles.extend([(500, {})] * 20)
    assert fetching.keep_model("hf:owner/model:IQ1_S") == path
    assert run(["inspect", "owner/model:IQ1_S", "--json"]) == 0
    assert len(repository.hub.api_troubles) == 20
    (model,) = listed(capsys)
    assert (model["name"], model["state"], model["file_bytes"]) == (
        "hf:owner/model:IQ1_S", "whole", len(repository.merged),
    )  # fmt: skip
    assert model["taken_bytes"] >= len(repository.merged)


def test_another_name_for_what_is_kept_fetches_nothing(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fetching.keep_model("owner/model:IQ1_S")
    repository.hub.reset_counts()

    assert fetching.keep_model("hf:owner/model:model-IQ1") == first

    assert repository.hub.sent_bytes < len(repository.merged) / 2, "headers only"
    assert len(list_kept()) == 1
    address = HubAddress("owner/model", "main", "model-IQ1")
    assert (found := find_kept(address, hub_endpoint())) is not None and found.path == first


def test_a_name_that_means_several_models_fetches_none(repository: Repository, kept_in: Path) -> None:
    with pytest.raises(UsageError, match="several models"):
        fetching.keep_model("hf:owner/model")

    assert list_kept() == ()


def test_without_the_hub_a_shorter_name_finds_the_only_one_that_is_kept(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fetching.keep_model("owner/model:IQ1_S")
    monkeypatch.setattr("dfqs.pull.hub.METADATA_ATTEMPTS", 0)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")

    assert fetching.keep_model("hf:owner/model:iq1") == path

    assert "cannot be reached" in (said := capsys.readouterr().err) and "taking the one that is kept" in said


def test_a_local_path_wins_over_a_name_that_could_be_the_hubs(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "model:IQ1_S").write_bytes(single_model())
    monkeypatch.chdir(tmp_path)

    assert run(["inspect", "owner/model:IQ1_S", "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["file_bytes"] == len(single_model())
    assert repository.hub.data_requests == []


@pytest.mark.parametrize(
    "name",
    ["hf:../../etc:x", "hf:..%2f..%2fetc/x:y", "hf:%2e%2e/x:y", "hf:/etc/passwd:x", "hf:owner/..:x", "hf:~/x:y",
     "hf:./x:y", "hf:owner/a\x1bb:x", "hf:-o/model:x", "hf:owner/" + "m" * 200 + ":x", "hf:owner\\x/y:z"],
)  # fmt: skip
def test_a_hostile_name_becomes_no_path(
    name: str, repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))

    for words in (["cache", "add", name], ["cache", "remove", name], ["run", name, "-p", "x"], ["plan", name]):
        assert run(words) == 2, words
        assert "internal error" not in capsys.readouterr().err

    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name, meant", [("o/n:Q4", True), ("hf:o/n", True), ("o/n", False), ("./o/n:Q4", False),
                                         ("/o/n:Q4", False), ("m.gguf", False), ("a/b/c:Q", False)])  # fmt: skip
def test_only_a_name_with_a_colon_or_hf_means_the_hub(name: str, meant: bool) -> None:
    assert names_hub_model(name) is meant


def test_ctrl_c_while_it_is_fetched_and_the_same_command_goes_on(
    repository: Repository, kept_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository.hub.bytes_per_s = 150_000
    process = start("cache", "add", "owner/model:IQ1_S")
    wait_for(lambda: [kept for kept in list_kept() if kept.taken_bytes > CHUNK])
    assert [model["state"] for model in listed(capsys)] == ["being fetched"]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "the same command goes on" in said
    assert [model["state"] for model in listed(capsys)] == ["unfinished"]
    repository.hub.settle()
    repository.hub.bytes_per_s = None

    assert fetching.keep_model("owner/model:IQ1_S").read_bytes() == repository.merged

    assert [model["state"] for model in listed(capsys)] == ["whole"]


def test_of_two_processes_one_fetches_and_the_other_waits(repository: Repository) -> None:
    repository.hub.bytes_per_s = 500_000
    first = start("cache", "add", "owner/model:IQ1_S")
    wait_for(lambda: [kept for kept in list_kept() if kept.is_busy])
    second = start("cache", "add", "owner/model:IQ1_S")
    said = [process.communicate(timeout=60)[1] for process in (first, second)]

    assert (first.returncode, second.returncode) == (0, 0), said
    assert "another dfqs is fetching it; waiting" in said[1] and "another dfqs" not in said[0]
    (kept,) = list_kept()
    assert kept.path.read_bytes() == repository.merged
    # Whole once, and the headers of two plans and what they read ahead.
    assert repository.hub.sent_bytes < 1.5 * repository.remote_bytes


def test_what_is_large_is_asked_about_and_not_fetched_where_nobody_can_be_asked(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetching, "ASKED_ABOVE_BYTES", 1000)

    assert run(["cache", "add", "owner/model:IQ1_S"]) == 2

    said = capsys.readouterr().err
    assert "2.6 MB in 3 files" in said and "free on the disk" in said and "--yes" in said
    assert list_kept() == ()
    monkeypatch.setattr(fetching, "confirm", lambda *_: False)
    assert run(["cache", "add", "owner/model:IQ1_S"]) == 2
    assert "not fetched" in capsys.readouterr().err
    assert run(["cache", "add", "owner/model:IQ1_S", "--yes"]) == 0


def test_remove_takes_away_one_model_and_prune_only_what_is_unfinished(
    repository: Repository, kept_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fetching.keep_model("owner/model:IQ1_S")
    other = fetching.keep_model("owner/model:Q8_0")
    assert run(["cache", "remove", "owner/model"]) == 2
    assert "means 2 models" in capsys.readouterr().err

    assert [model["name"] for model in listed(capsys, "remove", "owner/model:IQ1_S", "--dry-run")] == [
        "hf:owner/model:IQ1_S"
    ]
    assert path.exists()
    assert run(["cache", "remove", "hf:owner/model:iq1_s"]) == 0
    assert not path.parent.exists() and other.exists()

    begun = fetching.keep_model("owner/model:IQ1_S")
    begun.rename(part_path(begun))
    assert [model["state"] for model in listed(capsys, "prune")] == ["unfinished"]
    assert [kept.path for kept in list_kept()] == [other]
    assert run(["cache", "remove", "owner/model"]) == 0
    assert list(kept_in.iterdir()) == []


def test_nothing_of_another_is_listed_or_removed(
    repository: Repository, kept_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fetching.keep_model("owner/model:IQ1_S")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (kept_in / "linked").symlink_to(tmp_path / "mine")
    (kept_in / "owner" / "model" / "notes").mkdir()
    (path.parent / "diary").mkdir()
    (path.parent / "link").symlink_to(tmp_path / "mine" / "thesis.txt")
    (kept_in / "owner" / "broken" / "x").mkdir(parents=True)
    (kept_in / "owner" / "broken" / "x" / "kept.json").write_text('{"schema": "dfqs.kept-model/1", "file": "../../x"}')

    assert len(listed(capsys)) == 1
    assert run(["cache", "remove", "owner/model"]) == 0

    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert (path.parent / "diary").is_dir() and (kept_in / "owner" / "model" / "notes").is_dir()
    assert not path.exists()


def test_a_model_is_not_fetched_that_memory_cannot_take(
    kept_in: Path,
    tmp_path: Path,
    smollm2_gguf: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_tiny_moe(tmp_path / "m.gguf", smollm2_gguf, "qwen3moe").read_bytes()
    with FakeHub(files={"m.gguf": data}) as hub:
        use(hub, monkeypatch)
        assert run(["run", "hf:owner/model", "-p", "x", "--ram", "100MB"]) == 3
        said = capsys.readouterr().err
        assert "it needs 236 MB" in said and "nothing was fetched" in said and "--force" in said
        assert not any(kept.is_whole for kept in list_kept())

        assert run(["run", "hf:owner/model", "-p", "x", "-n", "3", "--raw", "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["generated_tokens"] > 0
    # The Hub is gone now.
    done = run_dfqs("run", "hf:owner/model", "-p", "x", "-n", "3", "--raw")
    assert done.returncode == 0, done.stderr


def test_the_folder_of_models_is_where_the_user_says(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DFQS_MODEL_FOLDER", str(tmp_path / "elsewhere"))
    assert models_directory() == tmp_path / "elsewhere"
    assert fetching.keep_model("owner/model:Q8_0").is_relative_to(tmp_path / "elsewhere")

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DFQS_MODEL_FOLDER", str(tmp_path / "file"))
    assert run(["cache", "add", "owner/model:Q8_0"]) == 2
    assert "DFQS_MODEL_FOLDER" in capsys.readouterr().err
    assert parse_hub_address("owner/model:Q8_0").pattern == "Q8_0"


def start(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "dfqs.cli.main", *words], env=os.environ, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def test_verbs_that_need_files_take_the_name_of_what_is_kept_and_say_how_else_to_get_it(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["verify"], ["perplexity"], ["route", "check"], ["quantize"]):
        assert run([*words, "owner/model:IQ1_S"]) == 2
        assert "'dfqs cache add owner/model:IQ1_S' fetches it" in capsys.readouterr().err

    fetching.keep_model("owner/model:IQ1_S")

    assert run(["verify", "hf:owner/model:IQ1_S"]) == 0
