"""Files with names that are no text, and files that are no files: every verb works with the first and waits for none of
the second."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfqs.cli.eval import identify
from dfqs.cli.main import run
from dfqs.inplace.journal import journal_path
from dfqs.quantize.calibration import MAX_TEXT_BYTES
from dfqs.receipts import find_receipt, write_receipt
from dfqs.records import canonical_json
from gguf_builder import write_small
from memory_limits import MIB, peak_under_limit
from shard_inputs import tiny_entries, tiny_tensors, write_shards

NO_TEXT = os.fsdecode(b"m\xff\xe9")
"""Latin-1 in a file name, as old archives have it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / NO_TEXT
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def _nobody_waits() -> Iterator[None]:
    """A verb that waits for a pipe's other end fails here, not the whole run."""

    def late(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def shards_in(folder: Path) -> Path:
    tensors = tiny_tensors()
    write_shards(folder, tiny_entries(), [tensors[:3], tensors[3:]], prefix=NO_TEXT)
    return next(folder.glob("*-00001-of-*"))


def test_a_model_in_a_folder_that_is_no_text_gets_a_manifest_that_verifies(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_small(folder / f"{NO_TEXT}.gguf")
    assert run(["manifest", str(model)]) == 0
    assert run(["verify", str(model), "--manifest", f"{model}.manifest.json"]) == 0
    assert "every tensor has the hash" in capsys.readouterr().out


def test_shards_whose_names_are_no_text_are_merged_and_the_second_time_it_is_done(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, out = shards_in(folder), folder / f"{NO_TEXT}.gguf"

    assert [run(["merge", str(first), "-o", str(out)]) for _ in range(2)] == [0, 0]
    assert "done already" in "".join(capsys.readouterr())


@pytest.mark.parametrize("mode", ["--consume", "--in-place"])
def test_a_merge_whose_journal_could_not_be_read_back_is_not_begun(
    mode: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, out = shards_in(folder), folder / "out.gguf"
    before = sorted(folder.iterdir())

    assert run(["merge", str(first), "-o", str(out), mode]) == 2

    assert "rename the shards" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before
    assert not journal_path(out).exists()


def test_an_evaluated_file_is_known_again_by_a_name_that_is_no_text(folder: Path) -> None:
    model = write_small(folder / f"{NO_TEXT}.gguf")

    subject = identify(model, folder / "results")

    assert subject.location.endswith(r"m\xff\xe9.gguf")
    assert canonical_json(subject)


def test_a_quantization_is_done_already_in_a_folder_that_is_no_text_and_after_a_second_time(folder: Path) -> None:
    out = write_small(folder / f"{NO_TEXT}.gguf")
    for work in ("first", "second"):
        write_receipt(work, [out])
        assert find_receipt(work, [out])


@pytest.mark.parametrize(
    "arguments",
    [
        ["imatrix", "MODEL", "-o", "OUT", "--corpus", "PIPE"],
        ["imatrix", "MODEL", "-o", "OUT", "--add", "PIPE"],
        ["perplexity", "MODEL", "--text", "PIPE"],
        ["perplexity", "MODEL", "--reference", "PIPE"],
        ["ladder", "MODEL", "OUT", "--classes", "Q8_0", "--text", "PIPE"],
        ["quantize", "MODEL", "OUT", "--imatrix", "PIPE"],
        ["route", "trace", "MODEL", "-o", "OUT", "--prompts", "PIPE"],
        ["verify", "MODEL", "--manifest", "PIPE"],
        ["verify", "MODEL", "--against", "PIPE"],
        ["manifest", "MODEL", "--shards", "PIPE", "-o", "OUT"],
        ["run", "PIPE", "-p", "x"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_no_verb_waits_for_the_other_end_of_a_pipe(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    places = {"MODEL": write_small(tmp_path / "m.gguf"), "OUT": tmp_path / "out", "PIPE": tmp_path / "pipe"}

    assert run([str(places.get(word, word)) for word in arguments]) in (2, 3)

    assert "regular file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["diff", "stats"])
def test_a_trace_may_come_through_a_pipe_and_nobody_waits_where_nobody_writes(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")

    assert run(["route", verb, *[str(tmp_path / "pipe")] * (2 if verb == "diff" else 1)]) == 3

    assert "not a routing trace" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["merge", "repair"])
def test_a_disk_that_fails_is_told_with_the_file_that_it_failed_in(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Reading a process's memory at 0 fails as a bad sector does.
    assert run([verb, f"/proc/{os.getpid()}/mem", "-o", str(tmp_path / "out")]) == 3

    assert f"/proc/{os.getpid()}/mem: Input/output error" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["merge", "FILE/x", "-o", "out"], "no such file: "),
        (["perplexity", "FILE", "--reference", "FILE/x"], "no such file: "),
        (["find", "FILE"], "is a file; name the folder"),
        (["verify", "FILE", "--manifest", "EMPTY"], "not usable JSON: it is empty"),
        (["verify", "FILE", "--manifest", "FOLDER"], "is a directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_stands_in_the_way_is_said_in_words(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, empty = str(write_small(tmp_path / "m.gguf")), tmp_path / "empty"
    empty.touch()
    places = {"FILE": model, "EMPTY": str(empty), "FOLDER": str(tmp_path), "FILE/x": f"{model}/x"}

    assert run([places.get(word, word) for word in arguments]) in (2, 3)

    told = capsys.readouterr().err
    assert said in told
    assert "Errno" not in told


@pytest.mark.parametrize("option", [["imatrix", "-o", "OUT", "--corpus"], ["perplexity", "--text"]], ids=lambda o: o[0])
def test_a_text_at_its_limit_stays_within_the_memory_and_beyond_it_is_refused(
    option: list[str], tmp_path: Path
) -> None:
    model, text = write_small(tmp_path / "m.gguf"), tmp_path / "text.txt"
    with text.open("wb") as file:
        # One character beyond the first plane: Python then keeps four bytes of each.
        file.write("\U0001f600 ".encode())
        file.truncate(MAX_TEXT_BYTES)
    words = [option[0], str(model), *option[1:], str(text), "--dry-run"]
    words = [str(tmp_path / "out") if word == "OUT" else word for word in words]
    call = f"from dfqs.cli.main import run\nraise SystemExit(run({words!r}))"

    at = peak_under_limit(call)
    os.truncate(text, MAX_TEXT_BYTES + 1)
    beyond = peak_under_limit(call)

    assert at.returncode == 0, at.stderr
    assert at.peak_bytes < 600 * MIB
    assert beyond.returncode == 2
    assert "is larger than" in beyond.stderr
