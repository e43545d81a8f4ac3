"""A sample of merges killed with SIGKILL; `scripts/kill-merges` is the full run."""

import errno
import random
from pathlib import Path

import pytest

from dfqs.errors import DfqsError
from dfqs.inplace import is_unfinished
from dfqs.inplace import merge as inplace
from dfqs.storage.disk import LocalDisk, probe_insert_unit, probe_punch
from kill_rounds import (
    MODES,
    content_sha256,
    expected_sha256,
    kill_round,
    make_shards,
    states_of,
    stratified_rounds,
    timed_round,
)
from killed_merge import CountingDisk, run_merge


@pytest.mark.parametrize("mode", MODES)
def test_killed_merge_is_resumed_with_every_tensor_right(mode: str, tmp_path: Path) -> None:
    if mode.startswith("in-place") and probe_insert_unit(tmp_path) is None:
        pytest.skip("this file system cannot insert ranges")
    generator = random.Random(mode)
    states = states_of(tmp_path, mode)
    hit = set()
    for state in sorted({state for state in states if state is not None}):
        places = [index for index, found in enumerate(states) if found == state]
        hit.update(kill_round(tmp_path, mode, generator.choice(places), generator))

    assert hit >= {state for state in states if state is not None}


@pytest.mark.thorough
def test_killed_plain_merge_leaves_nothing_that_stops_the_next(tmp_path: Path) -> None:
    generator = random.Random(4)
    for _ in range(3):
        timed_round(tmp_path, [], generator, 0.1)


class FailingDisk(CountingDisk):
    """Fails with EIO in place of operation `kill_at`."""

    def count(self) -> None:
        self.states.append(None)
        if len(self.states) - 1 == self.kill_at:
            raise OSError(errno.EIO, "Input/output error")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_error_of_the_disk_at_any_operation_loses_nothing(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode.startswith("in-place") and probe_insert_unit(tmp_path) is None:
        pytest.skip("this file system cannot insert ranges")
    # `run_merge` sets it for the mode by deletion.
    monkeypatch.setattr(inplace, "probe_punch", probe_punch)
    for operation in range(len(states_of(tmp_path, mode))):
        folder = tmp_path / str(operation)
        first, out = make_shards(folder, mode)[0], folder / "out.gguf"

        with pytest.raises((OSError, DfqsError)):
            run_merge(first, out, mode, FailingDisk(operation, out))
        if is_unfinished(out) or not out.exists():
            run_merge(first, out, mode, LocalDisk())

        assert content_sha256(out) == expected_sha256(tmp_path, mode)
        assert [path.name for path in folder.iterdir()] == ["out.gguf"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_many_killed_merges(mode: str, tmp_path: Path) -> None:
    if mode.startswith("in-place") and probe_insert_unit(tmp_path) is None:
        pytest.skip("this file system cannot insert ranges")
    counts = stratified_rounds(tmp_path, mode, 10, seed=2)

    # A second kill can come before the journal is made anew: that is no state of it.
    del counts["none"]
    assert set(counts) >= {"begun", "ready", "moving", "sealed"}
    assert all(count >= 10 for count in counts.values())
