"""What goes wrong under a streaming model ends in a sentence that says what and where: no hang, no wrong text."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import streaming_jobs
from dfqs.errors import RuntimeFailure, WorkerCrash
from dfqs.runtime import Worker
from fixtures_moe import write_tiny_moe
from fuse_folder import NAME, fuse_folder
from memory_cgroup import memory_group, run_in_group
from runtime_functions import WORKER_ENV

TOKENS = [(7 * i * i + 13 * i) % 4000 for i in range(64)]
CACHES = [0, 1 << 30]
"""Nothing cached: the processor reads the mapped file. Everything cached: only the reader does."""


@pytest.fixture
def model(tmp_path: Path, smollm2_gguf: Path) -> Path:
    return write_tiny_moe(tmp_path / "m.gguf", smollm2_gguf, "qwen3moe", alignment=4096)


def fail_while_running(path: Path, cache_bytes: int, harm: Callable[[Worker], object], gate: Path | None = None) -> str:
    """Decode in a worker, do `harm` when it has begun, and return the sentence in which that ends.

    Args:
        gate: a file without which it does not begin.
    """
    with Worker(threads=2, omp_wait_policy="passive", env=WORKER_ENV) as worker:
        worker.watch([path])

        def begun(_: object) -> None:
            time.sleep(0.2)
            harm(worker)

        started = time.monotonic()
        with pytest.raises((RuntimeFailure, WorkerCrash)) as raised:
            worker.reporting(begun, doing="answering").call(
                streaming_jobs.decode_on, [path], TOKENS, cache_bytes, gate=gate
            )
        assert raised.value.exit_code == 3
        assert time.monotonic() - started < 30
        return raised.value.sentence


@pytest.mark.parametrize("cache_bytes", CACHES)
def test_a_file_cut_short_is_said_to_be_shorter_also_where_the_processor_met_it(model: Path, cache_bytes: int) -> None:
    size = model.stat().st_size
    sentence = fail_while_running(model, cache_bytes, lambda _: os.truncate(model, 70_000))

    assert f"it became shorter (70,000 bytes, and it had {size:,}); load it again" in sentence
    assert str(model) in sentence


@pytest.mark.parametrize("cache_bytes", CACHES)
def test_a_file_written_to_in_place_ends_the_run(model: Path, cache_bytes: int) -> None:
    def write(_: Worker) -> None:
        with model.open("r+b") as file:
            file.seek(-4096, os.SEEK_END)
            file.write(b"\x55" * 4096)

    assert "it was written to; load it again" in fail_while_running(model, cache_bytes, write)


def test_a_file_replaced_under_its_name_ends_the_run(model: Path, tmp_path: Path) -> None:
    def replace(_: Worker) -> None:
        shutil.copy(model, tmp_path / "new.gguf")
        (tmp_path / "new.gguf").replace(model)

    assert "another file has taken its place" in fail_while_running(model, 1 << 30, replace)


def test_a_file_that_is_removed_ends_the_run(model: Path) -> None:
    assert "it was removed or renamed" in fail_while_running(model, 1 << 30, lambda _: model.unlink())


def test_a_worker_that_somebody_kills_is_not_said_to_have_run_out_of_memory(model: Path) -> None:
    sentence = fail_while_running(model, 1 << 30, lambda worker: os.kill(worker.pid, signal.SIGKILL))

    assert sentence.startswith("llama.cpp died with SIGKILL while answering: ")
    # Another job on this machine may run out of memory in the same second.
    assert "somebody ended it (kill -9)" in sentence or "because memory ran out" in sentence


@contextlib.contextmanager
def failing_disk(tmp_path: Path, bytes_: int) -> Iterator[Path]:
    """A mounted ext4 on a loop device over a file, which a test may cut short: reads of what is gone fail then."""
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(bytes_)
    commands = (
        ["mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=0", str(image)],
        ["mount", "-o", "loop", str(image), str(place)],
    )
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except OSError as error:
            pytest.skip(f"no loop device can be made here: {error}")
        if done.returncode:
            pytest.skip(f"no loop device can be made here: {done.stderr.decode(errors='replace')}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.parametrize("cache_bytes", [30_000, 0])
def test_a_disk_that_fails_in_the_middle_of_reading_is_named_with_the_file(
    tmp_path: Path, smollm2_gguf: Path, cache_bytes: int
) -> None:
    with failing_disk(tmp_path, 32 << 20) as disk:
        path = write_tiny_moe(disk / "m.gguf", smollm2_gguf, "qwen3moe", alignment=4096)
        os.sync()
        gate = tmp_path / "go"

        def break_disk(_: Worker) -> None:
            os.truncate(tmp_path / "disk.img", 1 << 20)
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            gate.touch()

        sentence = fail_while_running(path, cache_bytes, break_disk, gate)
    assert names_what_failed(sentence, path, read_by_us=cache_bytes > 0)


def names_what_failed(sentence: str, path: Path, read_by_us: bool) -> bool:
    """What fails first may be a row of the embeddings, which llama.cpp itself reads from the mapping."""
    died = sentence.startswith("llama.cpp died with SIGBUS while answering: ") and f"bytes of {path}" in sentence
    said = f"{path} cannot be read at byte " in sentence and "Input/output error" in sentence
    return died or (said and read_by_us)


@pytest.mark.thorough
@pytest.mark.parametrize("cache_bytes", [30_000, 0])
def test_a_file_system_in_user_space_that_begins_to_fail_is_a_sentence_and_no_hang(
    model: Path, tmp_path: Path, cache_bytes: int
) -> None:
    broken, gate, place = tmp_path / "broken", tmp_path / "go", tmp_path / "mount"
    place.mkdir()
    with fuse_folder(place, model, broken=broken) as why:
        if why:
            pytest.skip(f"no FUSE here: {why}")
        path = place / NAME

        def break_folder(_: Worker) -> None:
            broken.touch()
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            gate.touch()

        sentence = fail_while_running(path, cache_bytes, break_folder, gate)
    assert names_what_failed(sentence, path, read_by_us=cache_bytes > 0)


_CROWDED = """
import os, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import streaming_jobs, test_streaming_faults
from dfqs.errors import DfqsError
from dfqs.runtime import Worker

def crowd(worker):
    Path(f"/proc/{{worker.pid}}/oom_score_adj").write_text("1000")
    if os.fork() == 0:
        held = []
        for _ in range(200):
            held.append(bytearray(os.urandom(1) * (4 << 20)))
        os._exit(0)

print(test_streaming_faults.fail_while_running(Path({model!r}), 1 << 30, crowd))
"""


def test_memory_that_another_process_of_the_group_took_is_said_to_have_ended_the_worker(
    model: Path, tmp_path: Path
) -> None:
    script = tmp_path / "crowded.py"
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    script.write_text(_CROWDED.format(paths=paths, model=str(model)))
    with memory_group(500_000_000) as group:
        if group is None:
            pytest.skip("no control group can be made here")
        done = run_in_group(group, [sys.executable, str(script)])
        deadline = time.monotonic() + 10
        while (group / "cgroup.procs").read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert done.returncode == 0, done.stderr
    assert "control group's processes together reached their memory limit" in done.stdout


def start_long_run(model: Path) -> tuple[subprocess.Popen[bytes], list[str]]:
    """A streamed run that has begun to answer, and its processes."""
    command = [sys.executable, "-m", "dfqs", "run", str(model), "-p", "Tell me a long story.", "-n", "2000"]
    process = subprocess.Popen(
        [*command, "--ram", "480000000", "--ctx", "2200", "--temp", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(1)
    return process, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def test_an_interrupted_run_ends_at_once_and_leaves_no_process(embedded_model: Path) -> None:
    process, children = start_long_run(embedded_model)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)

    assert b"streaming experts from disk" in errors
    assert b"Traceback" not in errors
    assert process.returncode in (0, 130)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def test_a_run_that_is_killed_takes_its_worker_along(embedded_model: Path) -> None:
    process, children = start_long_run(embedded_model)
    assert children
    process.kill()
    process.communicate(timeout=20)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{child}").exists() for child in children):
        time.sleep(0.02)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
