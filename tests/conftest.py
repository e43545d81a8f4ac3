"""Models that many tests share, built once a session (the embedded one: once a machine, in dfqs's cache)."""

from pathlib import Path

import pytest

from cli_processes import let_signals_through
from dfqs.embedded import cached_embedded_model, cached_source
from fixtures_deepseek4 import write_tiny_deepseek4

let_signals_through()


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
