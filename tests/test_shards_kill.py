"""A sample of merges killed with SIGKILL; `scripts/kill-merges` is the full run."""

import random
from pathlib import Path

import pytest

from dfqs.shards.disk import probe_insert_unit
from kill_rounds import MODES, kill_round, states_of, timed_round


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


def test_killed_plain_merge_leaves_nothing_that_stops_the_next(tmp_path: Path) -> None:
    generator = random.Random(4)
    for _ in range(3):
        timed_round(tmp_path, [], generator, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_many_killed_merges(mode: str, tmp_path: Path) -> None:
    from kill_rounds import stratified_rounds

    if mode.startswith("in-place") and probe_insert_unit(tmp_path) is None:
        pytest.skip("this file system cannot insert ranges")
    counts = stratified_rounds(tmp_path, mode, 10, seed=2)

    assert all(count >= 10 for count in counts.values())
