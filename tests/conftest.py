"""Models that many tests share, built once a session (the embedded one: once a machine, in dfqs's cache).

Tests may run in several processes (pytest-xdist: `make test`), each of which has a session of its own: what is built
once is built under a lock, where all of them find it.
"""

import gc
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from cli_processes import let_signals_through
from dfqs.embedded import cached_embedded_model, cached_source
from dfqs.storage import identity
from fixtures_deepseek4 import write_tiny_deepseek4
from fixtures_moe import write_tiny_moe
from late_grammar import load_grammar_late
from quick_run import NEEDS_MODEL, QuickRun
from shared_files import build_once

let_signals_through()
pytest_plugins = ["pull_fixtures"]
load_grammar_late()
# Where Python is told to keep no bytecode, each of the hundreds of processes that tests start would compile dfqs anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Whoever runs the tests has settings of his own.
os.environ["DFQS_CONFIG"] = "/nonexistent/dfqs/config.toml"
for variable in ("DFQS_THREADS", "DFQS_CONTEXT", "DFQS_MODEL_FOLDER"):
    os.environ.pop(variable, None)
# How long an example takes says how busy the machine is, and nothing about what is tested.
settings.register_profile("dfqs", deadline=None)
settings.load_profile("dfqs")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads that spin for each other are several times slower where another test has the CPU. A session would see that
    # and choose the same, but only what goes on in the moment in which it begins.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if sys.platform == "linux":
    # Tests write and look at once, hundreds of times, and their files lie on a disk of this machine, whose kernel tells
    # its own tick (of CLOCK_REALTIME_COARSE, which file systems take their times from): shorter than the longest.
    identity._TICK_NS = int(2e9 * time.clock_getres(5))
# No test loses power (those that do have a disk in memory), and a disk takes its time for each of thousands of syncs.
# What is larger is synced: there are tests of its pages, which must be clean.
SYNCED_BYTES, _fsync = 128 << 10, os.fsync


def _sync_what_is_large(fd: Any) -> None:
    handle = fd if isinstance(fd, int) else fd.fileno()
    state = os.fstat(handle)
    if stat.S_ISREG(state.st_mode) and state.st_size >= SYNCED_BYTES:
        _fsync(handle)


os.fsync = _sync_what_is_large


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only tests that need neither a model nor a process")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("quick"):
        quick = QuickRun()
        config.pluginmanager.register(quick)
        sys.addaudithook(quick.audit)


def pytest_collection_finish() -> None:
    """Thousands of tests stay to the end: none of them is looked at again by every collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm2_gguf(request: pytest.FixtureRequest) -> Path:
    """SmolLM2-135M-Instruct, dense: the source of the embedded model."""
    _leave_models_out_of_a_quick_run(request)
    return cached_source()


@pytest.fixture(scope="session")
def embedded_model(request: pytest.FixtureRequest) -> Path:
    """The demonstration model: a small real Mixture-of-Experts."""
    _leave_models_out_of_a_quick_run(request)
    return cached_embedded_model()


@pytest.fixture(scope="session")
def tiny_deepseek4(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    """A random DeepSeek-V4 with every kind of layer."""
    return build_once(tmp_path_factory, "tiny-deepseek4.gguf", lambda path: write_tiny_deepseek4(path, smollm2_gguf))


@pytest.fixture(scope="session")
def tiny_moe(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    """A random Mixture-of-Experts of 2 MB, for whoever needs a model that converses and not what it says."""
    return build_once(tmp_path_factory, "tiny-moe.gguf", lambda path: write_tiny_moe(path, smollm2_gguf, "qwen3moe"))


def _leave_models_out_of_a_quick_run(request: pytest.FixtureRequest) -> None:
    """Those that a test asks for by name while it runs, which no signature shows."""
    if request.config.getoption("quick"):
        pytest.skip(NEEDS_MODEL)
