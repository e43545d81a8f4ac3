"""Models that many tests share, built once a session (the embedded one: once a machine, in dfqs's cache)."""

import sys
from pathlib import Path

import pytest

from cli_processes import let_signals_through
from dfqs.embedded import cached_embedded_model, cached_source
from fixtures_deepseek4 import write_tiny_deepseek4
from quick_run import QuickRun

let_signals_through()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only tests that need neither a model nor a process")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("quick"):
        quick = QuickRun()
        config.pluginmanager.register(quick)
        sys.addaudithook(quick.audit)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, dense: the source of the embedded model."""
    return cached_source()


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The demonstration model: a small real Mixture-of-Experts."""
    return cached_embedded_model()


@pytest.fixture(scope="session")
def tiny_deepseek4(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    """A random DeepSeek-V4 with every kind of layer."""
    return write_tiny_deepseek4(tmp_path_factory.mktemp("deepseek4") / "tiny-deepseek4.gguf", smollm2_gguf)
