"""A killed run goes on where it was, and ends with the bytes that an uninterrupted one has."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dfqs.cli.main import run
from dfqs.errors import AlreadyDone, IntegrityError, UsageError
from dfqs.gguf import GGMLType, TensorSource, write_gguf
from dfqs.gguf.quants import quantize as encode
from dfqs.integrity import ModelHashes, hash_model
from dfqs.integrity.manifest import read_manifest
from dfqs.model.classes import CLASSES
from dfqs.quantize import quantize as module
from dfqs.quantize.journal import Journal
from dfqs.quantize.quantize import plan_source, plan_work, quantize, read_source
from dfqs.quantize.recipe import find_class
from dfqs.runtime import Worker
from quantize_inputs import hashed_values, model_keys, write_model

TENSORS, SHAPE = 24, (256, 256, 4)
Q8_0 = CLASSES["Q8_0"]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=2) as worker:
        yield worker


@pytest.fixture
def slow(tmp_path: Path) -> tuple[Path, Path]:
    """A model whose experts take some seconds as IQ3_S, and the recipe that says so."""
    names = [f"blk.{index}.ffn_up_exps.weight" for index in range(TENSORS)]

    def source(name: str) -> TensorSource:
        def read() -> Iterator[bytes]:
            yield encode(hashed_values(name, SHAPE[0] * SHAPE[1] * SHAPE[2]), GGMLType.F16)

        return TensorSource(name, SHAPE, GGMLType.F16, read)

    write_gguf(tmp_path / "slow.gguf", model_keys(), [source(name) for name in names])
    (tmp_path / "slow.toml").write_text('name = "slow"\n[types]\n"routed experts" = "IQ3_S"\n')
    return tmp_path / "slow.gguf", tmp_path / "slow.toml"


def journal_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.quantize-journal")


def partial_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.quantizing")


def run_until_journalled(model: Path, out: Path, recipe: Path, lines: int, end: signal.Signals) -> tuple[int, str]:
    """Start the command, send it a signal once so many lines stand in its journal; returns (exit code, stderr)."""
    command = [sys.executable, "-m", "dfqs.cli.main", "quantize", str(model), str(out), "--class", str(recipe)]
    process = subprocess.Popen([*command, "--threads", "1"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if journal_of(out).exists() and journal_of(out).read_bytes().count(b"\n") >= lines:
            break
        time.sleep(0.01)
    process.send_signal(end)
    _, said = process.communicate()
    return process.returncode, said.decode()


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    slow: tuple[Path, Path], worker: Worker, tmp_path: Path
) -> None:
    model, recipe = slow
    out, reference = tmp_path / "out.gguf", tmp_path / "reference.gguf"
    assert run_until_journalled(model, out, recipe, 3, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not out.exists()

    resumed = quantize(model, out, find_class(str(recipe)), worker=worker)
    quantize(model, reference, find_class(str(recipe)), worker=worker)

    assert 2 <= resumed.outcome.resumed < TENSORS
    assert out.read_bytes() == reference.read_bytes()
    assert not journal_of(out).exists()
    assert not partial_of(out).exists()


def test_ctrl_c_ends_at_once_keeps_what_is_done_and_says_how_to_go_on(
    slow: tuple[Path, Path], worker: Worker, tmp_path: Path
) -> None:
    model, recipe = slow
    out = tmp_path / "out.gguf"

    code, said = run_until_journalled(model, out, recipe, 3, signal.SIGINT)

    assert code == 130
    assert "the same command goes on from there" in said
    assert not out.exists()
    assert quantize(model, out, find_class(str(recipe)), worker=worker).outcome.resumed >= 2


def leave_as_interrupted(model: Path, out: Path, worker: Worker, finished: int, complete: bool = False) -> Journal:
    """Make `out`, then put things back to where a run stood that had `finished` tensors in its journal."""
    source = read_source(model)
    result = quantize(model, out, Q8_0, worker=worker)
    work = plan_work(source, plan_source(source, Q8_0), out, None, None, 2**31, 2, False)
    out.rename(partial_of(out))
    journal = Journal(work.journal, work.fingerprint)
    journal.add(list(result.outcome.tensors[:finished]))
    if complete:
        journal.mark_complete()
    journal.close()
    return journal


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.gguf")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.gguf"


def test_a_run_killed_before_the_rename_only_renames(model: Path, out: Path, worker: Worker) -> None:
    leave_as_interrupted(model, out, worker, 13, complete=True)
    before = partial_of(out).read_bytes()

    result = quantize(model, out, Q8_0, worker=worker)

    assert result.outcome.quantized_parameters == 0
    assert out.read_bytes() == before


def test_a_run_killed_between_its_rename_and_its_manifest_writes_the_manifest(
    model: Path, out: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not be told that its own file exists already, nor need the room for a second one."""
    leave_as_interrupted(model, out, worker, 13, complete=True)
    partial_of(out).rename(out)
    manifest = out.with_name("out.gguf.manifest.json")
    manifest.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))

    quantize(model, out, Q8_0, worker=worker)

    assert read_manifest(manifest).file_name == "out.gguf"
    assert not journal_of(out).exists()
    with pytest.raises(UsageError, match="exists already"):
        quantize(model, out, Q8_0, worker=worker)


def test_what_does_not_read_back_as_it_was_written_never_gets_its_name(
    model: Path, out: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(path: Path) -> ModelHashes:
        with path.open("r+b") as file:
            file.seek(-100, 2)
            file.write(b"?")
        return hash_model(path)

    monkeypatch.setattr(module, "hash_model", damaged)

    with pytest.raises(IntegrityError, match="does not read back as it was written"):
        quantize(model, out, Q8_0, worker=worker)

    assert not out.exists()


def test_a_torn_last_line_of_the_journal_is_not_believed(model: Path, out: Path, worker: Worker) -> None:
    leave_as_interrupted(model, out, worker, 5)
    expected = partial_of(out).read_bytes()
    with journal_of(out).open("ab") as file:
        file.write(b'0123456789abcdef 0123456789abcdef0123456789abcdef {"tensor": "blk.0.attn_v.weight", "source_sha')

    result = quantize(model, out, Q8_0, worker=worker)

    assert result.outcome.resumed == 5
    assert out.read_bytes() == expected


def test_a_damaged_line_of_the_journal_puts_no_wrong_hash_into_the_file(model: Path, out: Path, worker: Worker) -> None:
    leave_as_interrupted(model, out, worker, 5)
    expected = partial_of(out).read_bytes()
    lines = journal_of(out).read_text().splitlines()
    # With a checksum that fits, so that only the seal tells.
    seal, text = lines[3][17:49], lines[3][50:]
    damaged = json.dumps({**json.loads(text), "source_sha256": "0" * 64}, separators=(",", ":"))
    rest = f"{seal} {damaged}"
    lines[3] = f"{hashlib.sha256(rest.encode()).hexdigest()[:16]} {rest}"
    journal_of(out).write_text("\n".join(lines) + "\n")

    result = quantize(model, out, Q8_0, worker=worker)

    assert result.outcome.resumed == 2
    assert out.read_bytes() == expected


def test_a_header_that_was_damaged_before_the_rename_is_written_again(model: Path, out: Path, worker: Worker) -> None:
    leave_as_interrupted(model, out, worker, 13, complete=True)
    expected = partial_of(out).read_bytes()
    with partial_of(out).open("r+b") as file:
        file.seek(expected.find(b"quantize-vector"))
        file.write(b"Q")

    quantize(model, out, Q8_0, worker=worker)

    assert out.read_bytes() == expected


def test_a_journalled_tensor_whose_bytes_were_lost_is_made_again(model: Path, out: Path, worker: Worker) -> None:
    leave_as_interrupted(model, out, worker, 5)
    expected = partial_of(out).read_bytes()
    with partial_of(out).open("r+b") as file:
        file.seek(len(expected) // 10)
        file.truncate()

    result = quantize(model, out, Q8_0, worker=worker)

    assert result.outcome.resumed < 5
    assert out.read_bytes() == expected


def test_a_finished_file_that_was_changed_before_its_rename_is_not_published(
    model: Path, out: Path, worker: Worker
) -> None:
    leave_as_interrupted(model, out, worker, 13, complete=True)
    with partial_of(out).open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"?")

    with pytest.raises(IntegrityError, match="changed after it was written"):
        quantize(model, out, Q8_0, worker=worker)

    assert not out.exists()


def test_an_unfinished_run_of_another_class_is_not_continued(model: Path, out: Path, worker: Worker) -> None:
    leave_as_interrupted(model, out, worker, 5)

    with pytest.raises(UsageError, match="is of another quantization; finish that one, or give --restart"):
        quantize(model, out, CLASSES["Q4_K-XL"], worker=worker)

    assert journal_of(out).exists()


def test_an_input_that_changed_meanwhile_is_not_mixed_into_what_was_made_of_the_old_one(
    model: Path, out: Path, worker: Worker
) -> None:
    leave_as_interrupted(model, out, worker, 5)
    os.utime(model, ns=(1, 1))

    with pytest.raises(UsageError, match="is of another quantization"):
        quantize(model, out, Q8_0, worker=worker)


def test_two_runs_never_write_the_same_output(model: Path, out: Path, worker: Worker) -> None:
    leave_as_interrupted(model, out, worker, 5)
    with partial_of(out).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        with pytest.raises(UsageError, match="another process is writing"):
            quantize(model, out, Q8_0, worker=worker)


def test_padding_is_zero_even_over_the_leavings_of_something_else(model: Path, out: Path, worker: Worker) -> None:
    quantize(model, out, Q8_0, worker=worker)
    expected = out.read_bytes()
    out.unlink()
    partial_of(out).write_bytes(b"\xff" * (len(expected) + 1000))

    quantize(model, out, Q8_0, worker=worker)

    assert out.read_bytes() == expected


def test_the_same_command_after_the_end_says_done_and_any_other_says_exists(
    model: Path, out: Path, worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after the last rename, it said that its own file exists."""
    quantize(model, out, Q8_0, worker=worker)
    made = out.read_bytes()

    assert run(["quantize", str(model), str(out), "--class", "Q8_0"]) == 0
    assert "done already" in capsys.readouterr().err and out.read_bytes() == made
    with pytest.raises(AlreadyDone):
        quantize(model, out, Q8_0, worker=worker)
    assert run(["quantize", str(model), str(out), "--class", "Q4_K-XL"]) == 2
    assert "exists already" in capsys.readouterr().err
    with out.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    assert run(["quantize", str(model), str(out), "--class", "Q8_0"]) == 2


def test_restart_throws_away_what_an_unfinished_run_of_another_class_wrote(
    model: Path, out: Path, worker: Worker
) -> None:
    leave_as_interrupted(model, out, worker, 5)

    result = quantize(model, out, CLASSES["Q4_K-XL"], restart=True, worker=worker)

    assert result.outcome.resumed == 0 and out.exists()
    assert not journal_of(out).exists() and not partial_of(out).exists()


@pytest.mark.parametrize("name", [".out.gguf.quantizing", ".out.gguf.quantizing.journal"])
def test_what_0_1_left_unfinished_is_named_and_not_passed_over(
    name: str, model: Path, out: Path, worker: Worker
) -> None:
    left = out.with_name(name)
    left.write_bytes(b'{"format": "dfqs.quantize-journal/1", "fingerprint": "f"}\n')

    with pytest.raises(UsageError, match=r"left by an unfinished quantization of dfqs 0\.1; .*--restart"):
        quantize(model, out, Q8_0, worker=worker)
    assert left.exists() and not out.exists()

    quantize(model, out, Q8_0, restart=True, worker=worker)
    assert out.exists() and not left.exists()
