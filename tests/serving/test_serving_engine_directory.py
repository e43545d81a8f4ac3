"""What a killed server leaves is taken away by the next one, and a living one's directory never."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dfqs.serving.engine_directory import engine_directory

HOLD = """
import sys
from dfqs.serving.engine_directory import engine_directory
with engine_directory() as directory:
    print(directory, flush=True)
    sys.stdin.read()
"""


def test_directory_of_a_killed_server_goes_and_that_of_a_living_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    short = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path))
    processes = [
        subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    directories = []
    for process in processes:
        assert process.stdout is not None
        directories.append(Path(process.stdout.readline().decode().strip()))
    (short / "dfqs-serve-without-a-lock").mkdir()
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0].wait()
    assert directories[0].exists()

    with engine_directory() as own:
        assert own.parent == short
        assert not directories[0].exists() and directories[1].exists()
        assert (short / "dfqs-serve-without-a-lock").exists()

    processes[1].communicate(b"")
    assert not directories[1].exists() and not own.exists()
