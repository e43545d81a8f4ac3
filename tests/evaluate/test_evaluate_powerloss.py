"""Power cut after every operation on an evaluation's results: what was stored is there, and the run goes on."""

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

from dfqs.evaluate.store import Line, RunRecord, Store, open_run
from memory_disk import MemoryDisk, PowerLoss
from report_documents import run_documents

DIRECTORY = Path("/d/run-1")
RECORD, DOCUMENTS = run_documents()
LINES = [Line.model_validate(line) for line in DOCUMENTS][:12]


def evaluate(disk: Any, stored: list[Line]) -> Store:
    """What a run does: take what is there, and store what is not."""
    store = open_run(DIRECTORY, RunRecord.model_validate(RECORD), disk)
    for line in LINES:
        if store.get(line.stage, line.key) is None:
            store.append(line.stage, line.key, line.data)
        stored.append(line)
    return store


@pytest.mark.thorough
@pytest.mark.parametrize("seed", ["lost", "kept", 1, 2, 3, 4])
def test_every_cut_keeps_what_was_stored_and_the_run_goes_on(seed: str | int) -> None:
    whole = MemoryDisk()
    evaluate(whole, [])
    for point in range(len(whole.log)):
        disk = MemoryDisk(power_fails_at=point)
        for again in (point % 5 + 2, None):
            stored: list[Line] = []
            with contextlib.suppress(PowerLoss):
                evaluate(disk, stored)
            choose = random.Random(f"{point}/{seed}/{again}") if isinstance(seed, int) else None
            disk = disk.crash(choose, keep_all=seed == "kept")
            before: Any = disk.crash(None, keep_all=True)
            found = open_run(DIRECTORY, RunRecord.model_validate(RECORD), before)
            assert all(found.get(line.stage, line.key) == line.data for line in stored), (point, again)
            disk.power_fails_at = again
        evaluate(disk, [])
        assert disk.contents(DIRECTORY / "results.jsonl") == whole.contents(DIRECTORY / "results.jsonl")
