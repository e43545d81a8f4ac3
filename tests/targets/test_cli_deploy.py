"""`dfqs deploy` from the command line: written, listed, taken back; refused beforehand with the numbers."""

import json
import sys
from pathlib import Path

import pytest
from deployments import snapshot

from dfqs.cli.documents.deploy import DeployDocument, UndoDocument
from dfqs.cli.main import run
from dfqs.records import parse_record
from evaluate_server import Reply, serve
from gguf_builder import write_small


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of the test's own, with nothing on the search path."""
    home = tmp_path / "home"
    (tmp_path / "bin").mkdir()
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "DFQS_API_KEY", "OLLAMA_MODELS", "JAN_DATA_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    write_small(tmp_path / "m.gguf")
    monkeypatch.chdir(tmp_path)
    return home


def program(folder: Path, name: str, body: str) -> None:
    """A program of the test's own on the search path."""
    path = folder / "bin" / name
    path.write_text(f"#!{sys.executable}\nimport sys, pathlib\n{body}\n")
    path.chmod(0o755)


def deployed(capsys: pytest.CaptureFixture[str], *words: str) -> DeployDocument:
    capsys.readouterr()
    assert run(["deploy", *words, "--json"]) == 0
    return parse_record(capsys.readouterr().out, DeployDocument)


def test_a_dry_run_says_what_would_be_and_writes_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = deployed(capsys, "lm-studio", "m.gguf", "--dry-run")

    assert (document.dry_run, document.changed, document.level) == (True, True, None)
    assert [file.action for file in document.files] == ["hard link"]
    assert snapshot(home) == {}


def test_deployed_again_nothing_changes_and_undone_all_is_as_it_was(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = deployed(capsys, "lm-studio", "m.gguf")
    written = snapshot(home)
    second = deployed(capsys, "lm-studio", "m.gguf")

    assert (first.level, first.changed, second.changed) == ("static", True, False)
    assert "not installed" in str(first.level_reason)
    assert [file.action for file in second.files] == ["unchanged"]
    assert snapshot(home) == written
    capsys.readouterr()
    assert run(["deploy", "lm-studio", "m.gguf", "--undo", "--json"]) == 0
    assert any("removed" in line for line in parse_record(capsys.readouterr().out, UndoDocument).done)
    assert snapshot(home) == {}
    assert run(["deploy", "lm-studio", "m.gguf", "--undo"]) == 2
    assert "was not deployed" in capsys.readouterr().err


def test_undo_needs_the_model_no_more(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deployed(capsys, "jan", "m.gguf")
    Path("m.gguf").unlink()

    assert run(["deploy", "jan", "m.gguf", "--undo"]) == 0
    assert snapshot(home) == {}


def test_a_system_that_lists_the_model_is_registered_and_one_that_does_not_is_static(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(home.parent, "lms", 'print(\'[{"path": "dfqs/m/m.gguf"}]\')')
    assert deployed(capsys, "lm-studio", "m.gguf").level == "registered"

    program(home.parent, "lms", 'print(\'[{"path": "dfqs/m/m.gguf-other"}]\')')
    assert deployed(capsys, "lm-studio", "m.gguf").level == "static"


OLLAMA = """
store = pathlib.Path.home() / "store.txt"
log = store.read_text().split() if store.exists() else []
if sys.argv[1] == "create": log.append(sys.argv[2])
if sys.argv[1] == "rm": log.remove(sys.argv[2])
if sys.argv[1] == "list": print("\\n".join(f"{name}:latest  abc  1 GB" for name in log))
store.write_text(" ".join(log))
"""


def test_ollama_is_told_once_and_told_to_forget(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program(home.parent, "ollama", OLLAMA)

    first = deployed(capsys, "ollama", "m.gguf")
    deployed(capsys, "ollama", "m.gguf")

    assert first.level == "registered"
    assert (home / "store.txt").read_text() == "m"
    assert run(["deploy", "ollama", "m.gguf", "--undo"]) == 0
    assert snapshot(home) == {"store.txt": b""}


def test_a_system_that_fails_leaves_a_deployment_that_the_same_command_ends(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(home.parent, "ollama", "sys.exit(7)")
    assert run(["deploy", "ollama", "m.gguf"]) == 3
    assert "exit code 7" in capsys.readouterr().err

    program(home.parent, "ollama", OLLAMA)
    assert deployed(capsys, "ollama", "m.gguf").level == "registered"


def big_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model takes 62 GB, and the disk has 10 GB."""
    monkeypatch.setattr("dfqs.model.files.ModelFiles.file_bytes", property(lambda _: 62_000_000_000))
    monkeypatch.setattr("dfqs.storage.space.free_bytes", lambda _: 10_000_000_000)


@pytest.mark.parametrize(("target", "amount"), [("ollama", "62.0 GB to 124 GB"), ("docker-model-runner", "62.0 GB")])
def test_a_copy_of_62_gb_where_10_gb_are_free_is_refused_beforehand_with_the_numbers(
    target: str, amount: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    big_model(monkeypatch)

    assert run(["deploy", target, "m.gguf"]) == 3

    said = capsys.readouterr().err
    assert "10.0 GB free" in said and f"it would copy the model ({amount})" in said
    assert snapshot(home) == {}


def test_a_placed_copy_that_does_not_fit_is_refused_beforehand(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("m.gguf", "ab") as file:
        file.truncate(62_000_000_000)
    monkeypatch.setattr("dfqs.storage.space.free_bytes", lambda _: 10_000_000_000)

    assert run(["deploy", "lm-studio", "m.gguf", "--copy"]) == 3

    assert "10.0 GB free, 62.0 GB are needed" in capsys.readouterr().err
    assert snapshot(home) == {}
    # A link takes none.
    assert deployed(capsys, "lm-studio", "m.gguf", "--link").files[0].action == "hard link"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vim", "m.gguf"], "no target of the name 'vim'"),
        (["pi"], "name a system and a model"),
        (["jan", "m.gguf", "--copy"], "Jan has not"),
        (["jan", "m.gguf", "--serve"], "runs the model by itself"),
        (["hermes", "m.gguf"], "refuses a context below 64,000 tokens"),
        (["pi", "m.gguf", "--serve", "--dry-run"], "leave one of the two out"),
        (["hermes", "m.gguf", "--serve"], "refuses a context below 64,000 tokens"),
        (["pi", "m.gguf", "--endpoint", "ftp://x"], "address"),
        (["jan", "m.gguf", "--live"], "--live asks a client's server"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_written(
    words: list[str], said: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["deploy", *words]) == 2
    assert said in capsys.readouterr().err
    assert snapshot(home) == {}


def test_a_key_goes_into_the_configuration_and_into_no_document(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = deployed(capsys, "pi", "m.gguf", "--api-key", "sk-SECRET")

    path = home / ".pi/agent/models.json"
    assert json.loads(path.read_text())["providers"]["dfqs"]["apiKey"] == "sk-SECRET"
    assert path.stat().st_mode & 0o777 == 0o600
    assert "SECRET" not in document.model_dump_json()
    assert document.endpoint is not None and not document.endpoint.answered


def test_paths_with_links_and_dots_are_the_users_own_names(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home.parent / "link.gguf").symlink_to(home.parent / "m.gguf")

    document = deployed(capsys, "jan", "./home/../link.gguf")

    assert document.model == str(home.parent / "link.gguf")
    text = (home / ".local/share/Jan/data/llamacpp/models/link/model.yml").read_text()
    assert text.startswith(f'model_path: "{home.parent}/link.gguf"')


def test_a_client_that_only_seems_to_answer_is_not_live_and_the_check_fails(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(home.parent, "pi", "print('Yes, of course.')")
    with serve(lambda _: Reply("Hello")) as server:
        code = run(["deploy", "pi", "m.gguf", "--endpoint", server.url, "--live", "--json"])

    document = parse_record(capsys.readouterr().out, DeployDocument)
    assert (code, document.level) == (1, "static")
    assert "not live: no request that the server got had the nonce in it" in str(document.level_reason)
    assert document.endpoint is not None and (document.endpoint.model, document.endpoint.answered) == ("fake", True)
