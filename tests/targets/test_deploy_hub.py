"""A model of the Hub is deployed by its name: fetched once, and not at all where the system cannot have it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from dfqs.cli.main import run
from gguf_builder import write_small
from hub_server import FakeHub


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Hub with two models, and a home with nothing in it."""
    home = tmp_path / "höme of mine"
    home.mkdir()
    write_small(tmp_path / "m.gguf")
    with FakeHub(files={"m-IQ1_S.gguf": (tmp_path / "m.gguf").read_bytes()}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        for name, value in {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": "none",
            "HF_HOME": str(tmp_path / "hf"),
            "HOME": str(home),
            "DFQS_CACHE": str(tmp_path / "cache"),
            "PATH": str(tmp_path / "nothing"),
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield home


def test_a_name_of_the_hub_is_fetched_once_deployed_and_taken_back(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "hf:owner/model:IQ1_S"
    assert run(["deploy", "lm-studio", name, "--dry-run"]) == 2
    assert f"'dfqs cache add {name}' fetches it" in capsys.readouterr().err
    assert not [*tmp_path.glob("cache/models/**/*.gguf")]

    assert run(["deploy", "lm-studio", name, "--json"]) == 0
    (kept,) = tmp_path.glob("cache/models/**/*.gguf")
    document = json.loads(capsys.readouterr().out)
    (placed,) = [Path(file["path"]) for file in document["files"]]
    assert placed.is_relative_to(home) and placed.samefile(kept)

    assert run(["deploy", "lm-studio", "owner/model:IQ1_S", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] is False
    assert run(["deploy", "--undo", "lm-studio", name]) == 0
    assert not placed.exists() and kept.exists()


def test_what_a_system_cannot_have_is_not_fetched_for_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dfqs.cli.deploy.why_blocked", lambda *_: "it reads no such file")

    assert run(["deploy", "lm-studio", "hf:owner/model:IQ1_S"]) == 2

    assert "here: it reads no such file; nothing was fetched" in capsys.readouterr().err
    assert not [*tmp_path.glob("cache/models/**/*.gguf")]


def test_systems_are_listed_for_a_model_of_the_hub_by_its_header(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["deploy", "--list", "hf:owner/model:IQ1_S", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "dfqs.deploy-list/1"
    assert not [*tmp_path.glob("cache/models/**/*.gguf")]


def test_a_name_that_lacks_its_mark_is_explained(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["deploy", "lm-studio", "owner/model"]) == 2
    assert "a model of the Hub is written hf:owner/model" in capsys.readouterr().err
