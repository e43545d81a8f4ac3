"""What the tests of the embedded model do inside a worker."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfqs.runtime.context import Context, Model
from dfqs.runtime.worker_context import WorkerContext


def logits(worker: WorkerContext, path: Path, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Of every token, [tokens, vocabulary]."""
    with Model(worker.library, path) as model, Context(model, len(tokens), flash_attention="off") as context:
        rows = context.decode(tokens, logits="all")
        assert rows is not None
        return rows


def detokenize(worker: WorkerContext, path: Path, tokens: Sequence[int]) -> str:
    with Model(worker.library, path, vocab_only=True) as model:
        return model.detokenize(tokens)
