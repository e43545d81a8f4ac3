"""Power cut after every operation on a quantization's journal: what it says to be finished has its bytes on disk."""

import hashlib
import random
from pathlib import Path

import pytest

from dfqs.quantize.journal import FinishedTensor, Journal
from memory_disk import MemoryDisk, PowerLoss

OUT, JOURNAL = Path("/d/out.gguf.quantizing"), Path("/d/out.gguf.quantize-journal")
TENSORS, BYTES = 9, 3000


def contents(number: int) -> bytes:
    return hashlib.shake_128(f"tensor {number}".encode()).digest(BYTES)


def quantize(disk: MemoryDisk) -> None:
    """What a run does: go on after what is finished, sync the bytes of two tensors, then write down that they are."""
    journal = Journal(JOURNAL, "f", disk=disk)  # type: ignore[arg-type]
    out = disk.open(OUT) if disk.identify(OUT) else disk.create(OUT)
    disk.sync_directory(OUT.parent)
    for name, tensor in journal.finished.items():
        number = int(name)
        assert out.read_at(number * BYTES, BYTES) == contents(number), f"tensor {name} is said to be finished"
        assert tensor.sha256 == hashlib.sha256(contents(number)).hexdigest()
    assert not journal.complete or len(journal.finished) == TENSORS
    unsynced: list[FinishedTensor] = []
    for number in range(TENSORS):
        if str(number) in journal.finished:
            continue
        out.write_at(number * BYTES, contents(number))
        unsynced.append(FinishedTensor(str(number), "a" * 64, hashlib.sha256(contents(number)).hexdigest()))
        if len(unsynced) == 2 or number == TENSORS - 1:
            out.sync()
            journal.add(unsynced)
            unsynced = []
    if not journal.complete:
        journal.mark_complete()
    journal.remove()


@pytest.mark.thorough
@pytest.mark.parametrize("seed", ["lost", "kept", 1, 2, 3])
def test_every_cut_ends_in_the_same_tensors(seed: str | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path))
    whole = MemoryDisk()
    quantize(whole)
    for point in range(len(whole.log)):
        disk = MemoryDisk(power_fails_at=point)
        with pytest.raises(PowerLoss):
            quantize(disk)
        for again in (5, 3, None):
            choose = random.Random(f"{point}/{seed}/{again}") if isinstance(seed, int) else None
            disk = disk.crash(choose, keep_all=seed == "kept")
            disk.power_fails_at = again
            try:
                quantize(disk)
                break
            except PowerLoss:
                continue
        assert disk.contents(OUT) == whole.contents(OUT) and JOURNAL not in disk.paths()
