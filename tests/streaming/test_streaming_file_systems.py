"""On real file systems, where this machine can mount them: what is chosen there gives the logits of memory."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import streaming_jobs
from dfqs.gguf import read_header
from dfqs.runtime import Worker
from dfqs.streaming.layout import plan_layout
from dfqs.streaming.mechanism import Choice, Mechanism, choose_mechanism
from dfqs.streaming.surroundings import read_facts
from fixtures_moe import write_tiny_moe
from fuse_folder import NAME, fuse_folder
from runtime_functions import WORKER_ENV

TOKENS = [(7 * i * i + 13 * i) % 4000 for i in range(60)]
IMAGE_BYTES = 320 << 20


def run(command: Sequence[str | Path]) -> None:
    """Of the system; skips the test where that does not do it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"{command[0]}: {error.strerror}")
    if done.returncode:
        pytest.skip(f"{command[0]}: {done.stderr.strip()}")


@contextlib.contextmanager
def mounted(kind: str, tmp_path: Path, here: Path) -> Iterator[Path]:
    """The file `here` on a file system of this kind."""
    place = tmp_path / "mount"
    place.mkdir()
    if kind.startswith("fuse"):
        with fuse_folder(place, here, refuses_direct=kind.endswith("refusing")) as why:
            if why:
                pytest.skip(f"no FUSE here: {why}")
            yield place / NAME
        return
    if kind == "tmpfs":
        run(["mount", "-t", "tmpfs", "none", place])
    elif kind == "overlay":
        parts = [tmp_path / name for name in ("lower", "upper", "work")]
        for part in parts:
            part.mkdir()
        lower, upper, work = parts
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        run(["mount", "-t", "overlay", "overlay", "-o", options, place])
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        name, _, options = kind.partition(" ")
        run([f"mkfs.{name}", "-q", image])
        run(["mount", "-t", name, "-o", ",".join(filter(None, ["loop", options])), image, place])
    try:
        path = Path(shutil.copy(here, place / NAME))
        subprocess.run(["sync", "-f", str(path)], check=True)
        yield path
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def choose(path: Path) -> Choice:
    layout = plan_layout([read_header(path)])
    return choose_mechanism(read_facts([path], layout, 2))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "mechanism"),
    [
        ("tmpfs", Mechanism.WHOLE),
        ("overlay", Mechanism.CACHE),
        ("xfs", Mechanism.CACHE),
        ("btrfs", None),
        ("btrfs compress-force=zstd", Mechanism.HINTS),
        ("fuse", Mechanism.CACHE),
        ("fuse refusing", Mechanism.HINTS),
    ],
)
def test_a_model_says_the_same_on_every_file_system_in_the_way_that_is_chosen_there(
    kind: str, mechanism: Mechanism | None, tmp_path: Path, smollm2_gguf: Path
) -> None:
    here = write_tiny_moe(tmp_path / "m.gguf", smollm2_gguf, "qwen3moe", alignment=4096)
    with mounted(kind, tmp_path, here) as path, Worker(threads=2, omp_wait_policy="passive", env=WORKER_ENV) as worker:
        wanted = worker.call(streaming_jobs.run_in_memory, [here], TOKENS)
        choice = choose(path)

        if mechanism is not None:
            assert choice.mechanism is mechanism, choice
        assert (choice.reason is None) == (choice.mechanism is Mechanism.CACHE)
        if choice.mechanism is Mechanism.WHOLE:
            outcome = worker.call(streaming_jobs.run_in_memory, [path], TOKENS)
        else:
            hints = choice.mechanism is Mechanism.HINTS
            room = 10 * plan_layout([read_header(path)]).largest_expert_bytes
            outcome = worker.call(streaming_jobs.run_streamed, [path], TOKENS, room, hints)
        assert outcome.logits_sha256 == wanted.logits_sha256
