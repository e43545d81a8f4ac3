"""Looking at models, and merging, does not need Linux: what other systems have not is hidden from a new process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dfqs.integrity import hash_model
from shard_inputs import write_three_shards

MACOS = """
import ctypes, fcntl, os
del fcntl.F_SETLEASE, fcntl.F_SETSIG
hidden = "sched_getaffinity posix_fadvise posix_fallocate copy_file_range preadv O_DIRECT"
class CDLL(ctypes.CDLL):
    def __getattr__(self, name):
        if name in ("renameat2", "fallocate", "fallocate64", "sync_file_range", "prctl"):
            raise AttributeError(name)
        return super().__getattr__(name)
ctypes.CDLL = CDLL
"""
WINDOWS = """
import ctypes, os, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
hidden = "sched_getaffinity posix_fadvise posix_fallocate copy_file_range pread preadv pwrite pwritev statvfs geteuid"
hidden += " O_DIRECT O_CLOEXEC O_NONBLOCK O_NOFOLLOW O_DIRECTORY SEEK_HOLE SEEK_DATA mkfifo"
class CDLL:
    def __init__(self, name, *arguments, **settings):
        raise TypeError("bad argument type for built-in operation")
ctypes.CDLL = CDLL
"""
HIDE = """
for name in hidden.split():
    delattr(os, name)
"""
LOOK = """
import dfqs, dfqs.gguf, dfqs.shards
from pathlib import Path
from dfqs.integrity import hash_model
from dfqs.cli.main import run
shard, out = sys.argv[1:]
print(hash_model(Path(shard)).content_sha256)
print(hash_model(Path(shard), file=False).content_sha256)
assert run(["inspect", shard]) == 0
assert run(["verify", shard]) == 0
"""
MERGE = """
assert run(["merge", shard, "-o", out]) == 0
"""


def run_where(system: str, what: str, shard: Path, out: Path) -> str:
    code = f"import sys\n{system}\n{HIDE}\n{what}"
    # The runtime is another matter; its library is not to be found here.
    result = subprocess.run(
        [sys.executable, "-c", code, str(shard), str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "DFQS_CACHE": str(out.parent / "cache"), "DFQS_DEBUG": "1"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(("system", "what"), [(MACOS, LOOK + MERGE), (WINDOWS, LOOK)], ids=["macos", "windows"])
def test_models_are_hashed_inspected_and_verified_where_linux_calls_do_not_exist(
    system: str, what: str, tmp_path: Path
) -> None:
    shard = write_three_shards(tmp_path / "in")[0]

    shown = run_where(system, what, shard, tmp_path / "out.gguf")

    assert shown.splitlines()[:2] == [hash_model(shard).content_sha256] * 2
    assert (tmp_path / "out.gguf").exists() == ("merge" in what)
