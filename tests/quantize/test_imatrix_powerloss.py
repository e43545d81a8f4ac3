"""Power cut after every operation of a measurement of importance: the sums that are kept are those that are claimed."""

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfqs.quantize import checkpoint as module
from dfqs.quantize.checkpoint import Checkpoint
from dfqs.quantize.imatrix_file import Accumulated, Imatrix
from memory_disk import MemoryDisk, PowerLoss

OUT, CHUNKS, CHUNK_TOKENS = Path("/d/out.gguf"), 4, 128
EXPECTED = 2**CHUNKS - 1


def squares(matrix: Imatrix) -> int:
    return int(matrix.entries["w"].squares[0, 0])


class Files:
    """How a checkpoint's files are written, read and named, on a disk in memory."""

    def __init__(self, disk: MemoryDisk) -> None:
        self.disk = disk

    def write(self, path: Path, matrix: Imatrix, *, overwrite: bool = False) -> None:
        temporary = path.with_name(f".{path.name}.partial")
        self.disk.unlink(temporary)
        file = self.disk.create(temporary)
        file.write_at(0, f"{squares(matrix)} ".encode() + bytes(5000))
        file.sync()
        self.publish(temporary, path)

    def read(self, path: Path) -> Imatrix:
        value = float(self.disk.contents(path).split(b" ")[0])
        return Imatrix({"w": Accumulated(np.array([[value]], np.float32), np.array([1]))})

    def sha256(self, path: Path) -> str:
        return hashlib.sha256(self.disk.contents(path)).hexdigest()

    def publish(self, temporary: Path, path: Path, *, overwrite: bool = False) -> None:
        self.disk.step(f"rename {temporary.name} -> {path.name}")
        self.disk.names[path] = self.disk.names.pop(temporary)
        self.disk.sync_directory(path.parent)


def measure(disk: MemoryDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run does: go on from what is kept, add a chunk and keep it, write the file, forget the rest."""
    files = Files(disk)
    for name, function in (
        ("write_imatrix", files.write),
        ("read_imatrix", files.read),
        ("hash_file", files.sha256),
        ("publish_file", files.publish),
    ):
        monkeypatch.setattr(module, name, function)
    if OUT in disk.paths():
        # Its receipt says so.
        module.forget_checkpoint(OUT, "f", disk=disk)  # type: ignore[arg-type]
        return
    stored: Any = disk
    with Checkpoint(OUT, "f", disk=stored) as checkpoint:
        kept, done = checkpoint.read()
        matrix = kept if kept is not None else files_of_nothing()
        assert squares(matrix) == 2**done - 1 and matrix.tokens == done * CHUNK_TOKENS
        for chunk in range(done, CHUNKS):
            matrix.entries["w"].squares += 2**chunk
            matrix.tokens += CHUNK_TOKENS
            checkpoint.write(matrix, chunk + 1)
        files.write(OUT, matrix)
        checkpoint.forget()


def files_of_nothing() -> Imatrix:
    return Imatrix({"w": Accumulated(np.zeros((1, 1), np.float32), np.array([1]))})


@pytest.mark.thorough
@pytest.mark.parametrize("seed", ["lost", "kept", 1, 2, 3])
def test_every_cut_ends_in_the_same_sums_and_nothing_else(
    seed: str | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path))
    whole = MemoryDisk()
    measure(whole, monkeypatch)
    assert whole.paths() == {OUT} and whole.contents(OUT).startswith(b"%d " % EXPECTED)
    for point in range(len(whole.log)):
        disk = MemoryDisk(power_fails_at=point)
        with pytest.raises(PowerLoss):
            measure(disk, monkeypatch)
        for again in (9, 5, None):
            choose = random.Random(f"{point}/{seed}/{again}") if isinstance(seed, int) else None
            disk = disk.crash(choose, keep_all=seed == "kept")
            disk.power_fails_at = again
            try:
                measure(disk, monkeypatch)
                break
            except PowerLoss:
                continue
        assert disk.contents(OUT) == whole.contents(OUT), point
        assert {path for path in disk.paths() if not path.name.endswith(".partial")} == {OUT}, point
