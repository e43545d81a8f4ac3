"""SIGKILL at a sample of states (all of them, ten times each: python tests/pull_kills.py)."""

import random
from pathlib import Path

import pytest

from pull_kills import STATES, kill_once, slow_repository

SAMPLE = ("chunks of the first file", "header written, not named", "named, no manifest")


@pytest.mark.parametrize("state", [s if s in SAMPLE else pytest.param(s, marks=pytest.mark.slow) for s in STATES])
def test_a_killed_pull_goes_on_to_the_right_file_and_fetches_nothing_recorded_again(tmp_path: Path, state: str) -> None:
    (tmp_path / "out").mkdir()
    with slow_repository(tmp_path) as repository:
        result = kill_once(repository, tmp_path / "out" / "m.gguf", state, random.Random(7))

    assert result.state == state
    assert result.right
    assert result.thrifty
