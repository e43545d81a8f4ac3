"""Odd surroundings: streams that cannot be written, a directory that is gone, names that are more than a line, models
that are elsewhere. One clear sentence, the exit code of the convention, and the work is done or not begun."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dfqs.cli import main as cli_main
from dfqs.cli import output
from dfqs.cli.main import MODEL_FIRST, run
from dfqs.cli.refusals import describe_refusal
from dfqs.config import option_defaults
from dfqs.errors import UsageError, WorkerCrash
from dfqs.pull import list_kept
from dfqs.runtime.choice import read_choice
from dfqs.storage.cache import NoHome, cache_directory
from gguf_builder import write_small
from shard_inputs import tiny_entries, tiny_tensors, u32_entry, write_shards

FULL = Path("/dev/full")
TWO_LINES = "m\ndfqs: all is well.gguf"


@pytest.fixture(name="shards")
def shards_fixture(tmp_path: Path) -> list[Path]:
    tensors = tiny_tensors()
    entries = [*tiny_entries(), *(u32_entry(f"llama.{key}", 8) for key in ("context_length", "feed_forward_length"))]
    entries += [u32_entry(f"llama.{key}", 1) for key in ("expert_used_count", "attention.head_count")]
    return write_shards(tmp_path, entries, [tensors[:2], tensors[2:4], tensors[4:]])


@pytest.fixture(name="full")
def full_fixture() -> Iterator[io.TextIOWrapper]:
    """A stream on a disk that is full."""
    stream = FULL.open("w", encoding="utf-8")
    yield stream
    with suppress(OSError):
        stream.close()


@pytest.fixture(name="unread")
def unread_fixture() -> Iterator[io.TextIOWrapper]:
    """A pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w", encoding="utf-8")  # noqa: SIM115
    yield stream
    with suppress(OSError):
        stream.close()


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["people", "json"])
def test_data_that_cannot_be_written_is_no_success(
    form: list[str],
    tmp_path: Path,
    full: io.TextIOWrapper,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdout", full)

    assert run(["inspect", str(write_small(tmp_path / "m.gguf")), *form]) == 3

    told = capsys.readouterr().err
    assert "standard output: No space left on device; free some space and run this again" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("stream", ["full", "unread"])
def test_a_log_that_cannot_be_written_does_not_stop_the_work(
    stream: str,
    shards: list[Path],
    full: io.TextIOWrapper,
    unread: io.TextIOWrapper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", full if stream == "full" else unread)
    out = shards[0].parent / "out.gguf"

    output.warn("something")
    codes = [run(["merge", str(shards[0]), "-o", str(out)]), run(["inspect", "nothing.gguf"])]

    assert codes == [0, 2]
    assert out.is_file()


def test_a_reader_that_leaves_early_does_not_turn_a_failed_check_into_a_success(
    tmp_path: Path, unread: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = write_small(tmp_path / "good.gguf"), write_small(tmp_path / "bad.gguf")
    bad.write_bytes(bad.read_bytes()[:-200])
    monkeypatch.setattr(sys, "stdout", unread)

    assert [run(["inspect", str(good)]), run(["verify", str(bad)])] == [0, 1]

    assert capsys.readouterr().err == ""


def test_another_pipe_that_breaks_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    assert cli_main._guarded(fail) == 3
    assert capfd.readouterr().err == "dfqs: Broken pipe; the program at the other end of a pipe has gone\n"


def test_a_stream_that_another_program_left_non_blocking_waits_for_its_reader() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    code = "from dfqs.cli.main import _ready_streams; import os; _ready_streams(); print(os.get_blocking(1))"

    result = subprocess.run([sys.executable, "-c", code], stdout=writer, check=True, stderr=subprocess.PIPE)

    assert (os.read(reader, 100), result.stderr) == (b"True\n", b"")
    os.close(reader)
    os.close(writer)


def test_a_directory_that_was_removed_is_named_as_the_reason(
    tmp_path: Path, shards: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    assert run(["quantize", str(shards[0]), "out.gguf"]) in (2, 3)

    told = capsys.readouterr().err
    assert "Errno" not in told and told.startswith("dfqs: ")
    assert describe_refusal(FileNotFoundError(2, "No such file or directory")).startswith(
        "the directory that this runs"
    )


def test_a_refusal_of_the_system_says_what_to_do_and_a_long_name_does_not_hide_it() -> None:
    said = describe_refusal(OSError(36, "File name too long", "x" * 5000))

    assert len(said) < 400
    assert said.endswith("x...: File name too long; choose a shorter name")


@pytest.mark.parametrize("verb", ["inspect", "verify", "merge", "repair", "run", "quantize", "plan"])
def test_a_name_of_two_lines_says_nothing_in_the_name_of_the_program(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = {"repair": ["-o", str(tmp_path / "out")], "run": ["-p", "x"]}.get(verb, [])

    assert run([verb, str(tmp_path / TWO_LINES), *extra]) in (2, 3)

    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "m\\x0adfqs: all is well.gguf" in told


def test_a_row_of_a_table_is_a_line_whatever_a_name_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_small(tmp_path / TWO_LINES)

    assert run(["find", str(tmp_path)]) == 0
    assert run(["verify", str(tmp_path / TWO_LINES)]) == 0

    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("dfqs:")]


def test_lines_that_belong_to_an_error_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (UsageError("there are several\nof them:", "  a", "  b"), WorkerCrash("died", ("a",))):

        def fail(error: Exception = error) -> None:
            raise error

        cli_main._guarded(fail)

    told = capsys.readouterr().err
    assert told == "dfqs: there are several\\x0aof them:\n  a\n  b\ndfqs: died\nlast lines of its log:\n  a\n"


@pytest.mark.parametrize("columns", ["0", "1", "20", "1000", "9" * 5000, "wide", "-5"])
def test_a_width_that_no_terminal_has_ends_nothing(
    columns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERMINAL_WIDTH", columns)
    monkeypatch.setattr(output.SafeConsole, "is_terminal", True)

    assert run(["inspect", str(write_small(tmp_path / "m.gguf"))]) == 0
    assert "llama" in capsys.readouterr().out
    assert run(["split", "--help"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [["merge"], ["split", "-o", "parts"], ["repair", "-o", "out"], ["manifest"], ["verify"], ["quantize"]],
    ids=lambda arguments: str(arguments[0]),
)
def test_a_verb_for_files_that_are_here_says_how_a_model_of_the_hub_gets_here(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path))
    verb, *options = arguments

    assert run([verb, "hf:owner/name", *options]) == run([verb, "owner/name", *options]) == 2

    told = capsys.readouterr().err.splitlines()
    assert "'dfqs pull hf:owner/name -o FILE' to where you want it" in told[0]
    assert "a model of the Hub is written hf:owner/name" in told[1]


def test_a_set_of_shards_that_is_not_whole_fails_whichever_shard_is_given(
    shards: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = shards[0].parent / "renamed.gguf"
    renamed.write_bytes(shards[1].read_bytes())

    assert [run(["verify", str(path)]) for path in (*shards, renamed)] == [0, 0, 0, 1]
    assert "it is shard 2 of 3, all of them there" in capsys.readouterr().out

    shards[0].unlink()
    assert [run(["verify", str(path)]) for path in shards[1:]] == [1, 1]
    assert f"no such file: {shards[0]}" in capsys.readouterr().out


@pytest.mark.parametrize("place", [".", "/", ""])
def test_a_place_that_has_no_name_is_no_output(
    place: str, shards: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    calls = [["merge"], ["merge", "--consume"], ["merge", "--in-place"], ["repair"], ["split"], ["manifest"]]

    assert [run([*words, str(shards[0]), "-o", place]) for words in calls] == [2] * len(calls)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len(calls) and "internal error" not in "".join(told)


@pytest.mark.parametrize("verb", MODEL_FIRST)
def test_nobody_waits_for_a_verb_to_load_that_has_no_model(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(cli_main, "_verb_module", loaded.append)

    assert run([verb, "nothing.gguf", "--no-such-option"]) == 2

    assert (loaded, capsys.readouterr().err) == ([], "dfqs: no such file: nothing.gguf\n")


def test_an_empty_pipe_is_no_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    assert run(["run", str(write_small(tmp_path / "m.gguf"))]) == 2
    assert "stdin is empty" in capsys.readouterr().err


def test_a_user_without_a_home_has_kept_nothing_and_is_told_so_only_where_something_is_to_be_kept(
    tmp_path: Path, shards: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("DFQS_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "DFQS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    out = tmp_path / "out.gguf"

    assert (option_defaults(), read_choice(), list_kept()) == ({}, None, ())
    assert run(["merge", str(shards[0]), "-o", str(out)]) == 0
    assert run(["inspect", str(out)]) == 0
    assert "home" not in capsys.readouterr().err
    assert [run(words) for words in (["find"], ["merge", str(shards[0]), "-o", f"{out}2", "--consume"])] == [2, 2]
    told = capsys.readouterr().err.splitlines()
    assert all("this user has no home directory" in line for line in told) and len(told) == 2


@pytest.mark.parametrize("home", ["", "here"])
def test_a_home_that_is_no_place_puts_nothing_into_the_root_or_the_directory_of_the_moment(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DFQS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", home)

    with pytest.raises(NoHome, match="set DFQS_CACHE"):
        cache_directory()
