"""SIGKILL at a sample of states (all of them, ten times each: scripts/kill-pulls)."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pull_kills import CHUNK_BYTES, STATES, kill_once, read_journal, slow_repository

SAMPLE = ("chunks of the first file", "header written, not named", "named, no manifest")


@pytest.mark.parametrize("state", [s if s in SAMPLE else pytest.param(s, marks=pytest.mark.slow) for s in STATES])
def test_a_killed_pull_goes_on_to_the_right_file_and_fetches_nothing_recorded_again(tmp_path: Path, state: str) -> None:
    (tmp_path / "out").mkdir()
    with slow_repository(tmp_path) as repository:
        result = kill_once(repository, tmp_path / "out" / "m.gguf", state, random.Random(7))

    assert result.state == state
    assert result.right
    assert result.kept_recorded


def test_ctrl_c_says_what_is_kept_and_does_not_wait_for_the_server(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    with slow_repository(tmp_path) as repository:
        repository.hub.bytes_per_s = 100_000
        command = [sys.executable, "-m", "dfqs.cli.main", "pull", "owner/model", "-o", str(out), "--no-cache"]
        process = subprocess.Popen(
            [*command, "--chunk", str(CHUNK_BYTES)],
            env={**os.environ, "HF_ENDPOINT": repository.hub.endpoint, "HF_TOKEN": "none"},
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 30
        while not any("chunk" in record for record in read_journal(out)) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)

    assert process.returncode == 130
    assert "what was fetched is kept in m.gguf.part; the same command goes on" in said
    assert not out.exists()
