"""Defaults that people keep: which comes before which, what is wrong told with its line, and the file left as it was
written; and completion in a real shell."""

import json
import os
import pty
import select
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dfqs.cli.completing import complete_model, completed_words
from dfqs.cli.main import ALSO, PANELS, VERBS, build_app, run
from dfqs.config import KNOWN, change_file, config_path, held, held_settings, option_defaults, read_file
from dfqs.errors import UsageError
from dfqs.pull import hub_endpoint, models_directory


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for known in KNOWN:
        monkeypatch.delenv(known.variable, raising=False)
    monkeypatch.setenv("DFQS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "config.toml"


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[Any, str, str | None]]:
    assert run(["config", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    return {one["key"]: (one["value"], one["origin"], one["where"]) for one in document["settings"]}


def test_the_environment_comes_before_the_file_and_the_file_before_the_default(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(capsys)["threads"] == (None, "default", None)
    file.write_text('# mine\nthreads = 3\ncontext = "8k"\n')
    assert shown(capsys)["threads"] == (3, "file", f"{file}, line 2")
    assert shown(capsys)["context"] == (8192, "file", f"{file}, line 3")
    monkeypatch.setenv("DFQS_THREADS", "5")
    assert shown(capsys)["threads"] == (5, "environment", "DFQS_THREADS")
    assert option_defaults() == {"threads": 5, "ctx": 8192}


@pytest.mark.parametrize("verb", ["run", "chat", "serve"])
def test_an_option_comes_before_everything(verb: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int | None, int | None]] = []

    def take(threads: int | None = typer.Option(None), ctx: int | None = typer.Option(None)) -> None:
        taken.append((threads, ctx))

    monkeypatch.setattr(f"dfqs.cli.{verb}.command", take)
    file.write_text("threads = 3\ncontext = 512\n")

    assert run([verb]) == 0
    assert run([verb, "--threads", "7"]) == 0

    assert taken == [(3, 512), (7, 512)]


def test_what_measures_is_not_changed_by_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int | None] = []

    def take(threads: int | None = typer.Option(None)) -> None:
        taken.append(threads)

    for verb in ("eval", "forecast", "tune"):
        monkeypatch.setattr(f"dfqs.cli.{verb}.command", take)
        file.write_text("threads = 3\n")
        assert run([verb]) == 0

    assert taken == [None] * 3


def test_where_models_are_kept_and_which_hub_is_meant_follow_it(file: Path, tmp_path: Path) -> None:
    assert models_directory() == tmp_path / "cache" / "models"
    file.write_text(f'model-folder = "{tmp_path}/big disk"\nhub-endpoint = "https://hub.example/"\n')

    assert models_directory() == tmp_path / "big disk"
    assert hub_endpoint() == "https://hub.example"


@pytest.mark.parametrize(
    "text, line, words",
    [
        ("\nthreds = 4\n", 2, "there is no setting 'threds'"),
        ("threads = 'many'", 1, "threads is a number from 1 to 512, not 'many'"),
        ("# a\n# b\nthreads = 0", 3, "threads is a number from 1 to 512, not 0"),
        ("threads = true", 1, "threads is a number from 1 to 512"),
        ("threads = 1.5", 1, "threads is a number"),
        ("[threads]\nx = 1", 1, "threads is a number"),
        ("context = '9 apples'", 1, "context is a number of tokens"),
        ("threads = 2\nmodel-folder = 'here'", 2, "model-folder is an absolute path"),
        ("hub-endpoint = 'ftp://x'", 1, "hub-endpoint is an address"),
        ("hub-endpoint = 'https://user:secret@x'", 1, "hub-endpoint is an address"),
        ("context = 99999999999999999999999999", 1, "context is a number of tokens"),
        ("threads = 4\nthreads = 5", 2, "is no TOML"),
        ("threads = \n", 1, "is no TOML"),
        ("a = " + "[" * 5000, 1, ""),
    ],
)
def test_what_is_wrong_in_the_file_is_told_with_its_line(
    text: str, line: int, words: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)

    assert run(["run", "nothing.gguf", "-p", "x"]) == 2

    said = capsys.readouterr().err
    assert words in said and str(file) in said and said.count("\n") == 1
    assert f"line {line}" in said or not words


def test_what_is_no_text_is_no_traceback(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    assert run(["config"]) == 2
    file.write_bytes(b"#" * 100_000)
    assert run(["config"]) == 2
    file.unlink()
    os.mkfifo(file)
    assert run(["config"]) == 2
    assert "internal error" not in capsys.readouterr().err


def test_a_variable_that_is_wrong_is_told_by_its_name(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DFQS_CONTEXT", "long")

    assert run(["run", "nothing.gguf", "-p", "x"]) == 2

    assert "DFQS_CONTEXT: context is a number of tokens" in capsys.readouterr().err


def test_a_verb_without_settings_does_not_read_the_file(file: Path, tmp_path: Path) -> None:
    file.write_text("nonsense")

    assert run(["find", str(tmp_path)]) == 0


def test_set_and_unset_leave_every_other_line_as_it_stands(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "set", "threads", "2"]) == 0
    assert file.read_text() == "threads = 2\n"
    file.write_text('# mine\n\n  threads = 3 # three\nmodel-folder = "/m"')
    assert run(["config", "set", "context", "8k"]) == 0
    assert run(["config", "set", "threads", "4"]) == 0
    assert file.read_text() == '# mine\n\nmodel-folder = "/m"\ncontext = 8192\nthreads = 4\n'
    assert run(["config", "unset", "threads"]) == 0
    assert run(["config", "unset", "hub-endpoint"]) == 0
    assert file.read_text() == '# mine\n\nmodel-folder = "/m"\ncontext = 8192\n'
    assert run(["config", "set", "threads", "none"]) == 2
    assert run(["config", "set", "colour", "red"]) == 2
    assert run(["config", "path"]) == 0
    assert capsys.readouterr().out == f"{file}\n"


def test_a_file_that_is_written_otherwise_is_not_spoilt(file: Path) -> None:
    file.write_text('model-folder = """\n/a"""\n')
    before = file.read_text()

    with pytest.raises(UsageError, match="with an editor"):
        change_file("model-folder", "/b")

    assert file.read_text() == before


def test_a_linked_file_stays_linked(file: Path, tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    (tmp_path / "dotfiles" / "dfqs.toml").write_text("threads = 1\n")
    file.symlink_to(tmp_path / "dotfiles" / "dfqs.toml")

    change_file("threads", "2")

    assert file.is_symlink() and (tmp_path / "dotfiles" / "dfqs.toml").read_text() == "threads = 2\n"


@pytest.mark.thorough
@given(name=st.text(min_size=1, max_size=40).filter(lambda text: "\0" not in text and "\r" not in text))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_folder_that_can_be_named_is_read_back_as_it_was_set(name: str, file: Path) -> None:
    file.unlink(missing_ok=True)
    try:
        name.encode()
    except UnicodeEncodeError:
        return

    change_file("model-folder", f"/{name}")

    assert held("model-folder").value == str(Path(f"/{name}"))


def test_the_file_is_where_the_desktop_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DFQS_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert config_path() == tmp_path / ".config/dfqs/config.toml"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert config_path() == tmp_path / "xdg/dfqs/config.toml"
    change_file("threads", "2")
    assert stat.S_ISREG(config_path().stat().st_mode)
    assert read_file(config_path())["threads"] == (2, 1)
    assert {one.known.key for one in held_settings()} == {known.key for known in KNOWN}


@pytest.mark.parametrize("words", [["--version"], ["-V"], ["version"]])
def test_the_version_is_told_however_it_is_asked_for(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 0
    assert capsys.readouterr().out == "dfqs 0.1.0\n"


@pytest.mark.thorough
def test_help_of_a_verb_is_what_its_option_shows(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["merge"], ["route", "trace"], ["config", "set"], []):
        assert run(["help", *verb]) == run([*verb, "--help"]) == 0
        said = capsys.readouterr().out
        assert said[: len(said) // 2] == said[len(said) // 2 :]
    assert run(["help", "nonsense"]) == 2


def test_every_verb_stands_in_a_group_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0

    said = capsys.readouterr().out
    assert all(f" {title} " in said for title in PANELS.values())
    assert " Commands " not in said
    assert set(PANELS) <= set(VERBS)
    assert all(f" {verb} " in said for verb in (*VERBS, *ALSO))


def test_no_color_takes_the_colours_away() -> None:
    def colours(**more: str) -> bool:
        environment = {**os.environ, "TERM": "xterm-256color", **more}
        reading, side = pty.openpty()
        command = [sys.executable, "-m", "dfqs.cli.main", "--help"]
        with subprocess.Popen(command, stdout=side, stderr=side, env=environment):
            os.close(side)
            seen = read_all(reading)
        return b"\x1b[3" in seen or b"\x1b[1;3" in seen

    assert colours() and not colours(NO_COLOR="1")


def read_all(descriptor: int) -> bytes:
    seen = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:
            return seen
        if not piece:
            return seen
        seen += piece


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    (folder / "other models").mkdir(parents=True)
    for name in ("tiny.gguf", "tiny model.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf", "tiny.txt"):
        (folder / name).write_text("")
    (folder / "other models" / "deep.GGUF").write_text("")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "cache"))
    return folder


def test_models_are_offered_by_their_files_and_folders(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete_model("ti") == ["tiny model.gguf", "tiny.gguf"]
    assert complete_model("") == ["big-00001-of-00002.gguf", "tiny model.gguf", "tiny.gguf", "other models/"]
    assert complete_model("other models/") == ["other models/deep.GGUF"]
    assert complete_model(f"{models}/bi") == [f"{models}/big-00001-of-00002.gguf"]
    assert complete_model("nowhere/x") == complete_model("~nobody/x") == []
    monkeypatch.setenv("_DFQS_COMPLETE", "complete_bash")
    assert complete_model("ti") == ["tiny\\ model.gguf", "tiny.gguf"]
    assert complete_model("o") == []


def test_the_verb_that_is_completed_is_the_one_that_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed_words() is None
    monkeypatch.setenv("_DFQS_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "dfqs run ti")
    assert completed_words() == ["run", "ti"]
    assert build_app("run").registered_commands


@pytest.mark.parametrize(
    "typed, seen",
    [
        ("dfqs insp", "dfqs inspect "),
        ("dfqs run tiny.g", "dfqs run tiny.gguf "),
        ("dfqs chat tiny\\ ", "dfqs chat tiny\\ model.gguf "),
        ("dfqs run tiny.gguf --repeat-p", "--repeat-penalty "),
        ("dfqs route tra", "dfqs route trace "),
        ("dfqs run oth", "dfqs run other\\ models/"),
    ],
)
def test_a_real_bash_completes_when_tab_is_pressed(typed: str, seen: str, models: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PS1": "$ ",
        "TERM": "dumb",
    }
    reading, side = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"], stdin=side, stdout=side, stderr=side, env=environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(side)
    try:
        os.write(reading, b"eval \"$(_DFQS_COMPLETE=source_bash dfqs)\"; echo rea''dy\n")
        wait_for(reading, "ready")
        os.write(reading, f"{typed}\t".encode())
        wait_for(reading, seen)
    finally:
        shell.kill()
        shell.wait()
        os.close(reading)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not here")
@pytest.mark.parametrize(
    "typed, seen",
    [("dfqs insp", "dfqs inspect"), ("dfqs chat tiny\\ ", "tiny\\ model.gguf"), ("dfqs run it", "it\\'s.gguf")],
)
def test_a_real_zsh_completes_at_the_first_press_of_tab(typed: str, seen: str, models: Path) -> None:
    (models / "it's.gguf").touch()
    own = models / ".zfunc"
    own.mkdir()
    program = Path(sys.executable).parent
    environment = {
        "HOME": str(models),
        "ZDOTDIR": str(models),
        "PATH": f"{program}:{os.environ['PATH']}",
        "TERM": "dumb",
    }
    shown = {**environment, "_DFQS_COMPLETE": "source_zsh"}
    script = subprocess.run([program / "dfqs"], env=shown, capture_output=True, text=True, check=True).stdout
    (own / "_dfqs").write_text(script.lstrip())
    (models / ".zshrc").write_text("fpath+=~/.zfunc; autoload -Uz compinit; compinit -u; PS1='rea''dy '\n")
    reading, side = pty.openpty()
    shell = subprocess.Popen(
        ["zsh", "-i"], stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True
    )
    os.close(side)
    try:
        wait_for(reading, "ready")
        os.write(reading, f"{typed}\t".encode())
        wait_for(reading, seen.removeprefix(typed))
    finally:
        shell.kill()
        shell.wait()
        os.close(reading)


def wait_for(descriptor: int, text: str) -> None:
    seen, deadline = b"", time.monotonic() + 30
    while text.encode() not in seen.replace(b"\x07", b""):
        assert time.monotonic() < deadline, seen
        if select.select([descriptor], [], [], 0.2)[0]:
            seen += os.read(descriptor, 65536)
