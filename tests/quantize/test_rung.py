"""What a ladder keeps of a measurement is what was measured, or nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from dfqs.quantize.logits_file import Conditions, Losses
from dfqs.quantize.perplexity import Measured, PerplexityJob
from dfqs.quantize.rung import measure_rung
from dfqs.runtime import Worker

TOKENS = 3


class Scripted:
    """Stands for a worker: gives what it was told to, and counts."""

    def __init__(self, *kls: float) -> None:
        self.kls = list(kls)

    def call(self, *_: object) -> Measured:
        conditions = Conditions(text_sha256="0" * 64, vocabulary=8, window_tokens=4, stride_tokens=2, numerics="cpu")
        ids, logs = np.zeros((TOKENS, 2), np.int32), np.full((TOKENS, 2), -1.0, np.float32)
        losses = Losses("m", conditions, np.zeros(TOKENS, np.int32), np.full(TOKENS, 1.5, np.float32), ids, logs)
        return Measured(losses, np.full(TOKENS, self.kls.pop(0)))


def measure(worker: Scripted, directory: Path, fingerprint: str) -> Any:
    job = cast(PerplexityJob, SimpleNamespace(fingerprint=fingerprint, floor_tokens=0))
    kl = measure_rung(cast(Worker, worker), directory, "Q8_0", job).kl
    assert kl is not None
    return kl.tolist()


def test_an_infinite_divergence_is_measured_again_and_never_another_model_s_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    worker = Scripted(0.25, np.inf, np.inf)

    assert measure(worker, tmp_path, "one file") == measure(worker, tmp_path, "one file") == [0.25] * TOKENS
    assert len(worker.kls) == 2
    assert measure(worker, tmp_path, "another file") == [np.inf] * TOKENS
    assert measure(worker, tmp_path, "another file") == [np.inf] * TOKENS
    assert worker.kls == []
