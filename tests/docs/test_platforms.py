"""What README says of other systems: every verb has its row, and what is said to load does, without what they lack."""

import subprocess
import sys

import pytest

from dfqs.cli.main import VERBS
from dfqs.cli.platforms import LOADS, PLATFORMS

SIMULATED = """
import asyncio, enum, importlib, importlib.abc, multiprocessing, os, selectors, signal, subprocess, sys, sysconfig
import tempfile
# Packages of others know these systems; only ours are tried.
import huggingface_hub.repocard, jinja2, numpy, psutil, pydantic, requests, rich, typer, urllib.request, yaml
from jinja2 import sandbox
sysconfig.get_config_vars()
system, verbs = sys.argv[1], sys.argv[2:]
UNIX = {"fcntl", "resource", "termios", "tty", "pty", "grp", "pwd", "readline"}
CALLS = "posix_fadvise posix_fallocate sched_getaffinity sched_setaffinity copy_file_range memfd_create getxattr"
MORE = "fork geteuid getuid getgid mkfifo killpg setsid statvfs O_NOFOLLOW O_CLOEXEC O_DIRECTORY O_NONBLOCK chown"
MORE += " fchmod nice getloadavg pread preadv pwrite sysconf WNOHANG uname openpty getpriority setpriority wait4 pipe2"
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in UNIX:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
for name in (CALLS + " " + MORE if system == "win32" else CALLS).split():
    if hasattr(os, name):
        delattr(os, name)
if system == "win32":
    kept = ("SIGINT", "SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV")
    for each in list(signal.Signals):
        if each.name not in kept:
            delattr(signal, each.name)
    signal.Signals = enum.IntEnum("Signals", {name: int(getattr(signal, name)) for name in kept})
    for name in UNIX:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Missing())
sys.platform = system
import dfqs.cli.main
for verb in verbs:
    importlib.import_module(f"dfqs.cli.{verb.replace('-', '_')}")
"""


def test_every_verb_has_its_row() -> None:
    assert sorted(verb for each in PLATFORMS for verb in each.verbs.split()) == sorted(VERBS)


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_what_is_said_to_load_on_a_system_loads_without_what_it_lacks(system: str) -> None:
    said = [each for each in PLATFORMS if (each.macos if system == "darwin" else each.windows) == LOADS]
    verbs = [verb for each in said for verb in each.verbs.split()]

    done = subprocess.run(
        [sys.executable, "-c", SIMULATED, system, *verbs], capture_output=True, text=True, timeout=120, check=False
    )

    assert verbs and (done.returncode, done.stderr[-800:]) == (0, "")
