"""Likelihoods with the low-level API, in a plain loop that shares no code with the engine; runs inside a worker."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfqs.runtime.context import Context, Model
from dfqs.runtime.worker_context import WorkerContext

Pair = tuple[Sequence[int], Sequence[int]]


def plain_scores(worker: WorkerContext, path: Path, pairs: Sequence[Pair]) -> list[tuple[list[float], list[bool]]]:
    """Of each pair: log-probability of every token of the continuation, and whether it is the largest.

    Every pair goes whole through an empty cache, in one batch.
    """
    results = []
    longest = max(len(before) + len(after) for before, after in pairs)
    with (
        Model(worker.library, path, load_mode="none", gpu_layers=0) as model,
        Context(model, longest, n_batch=longest, n_ubatch=longest, flash_attention="off", swa_full=True) as context,
    ):
        for before, after in pairs:
            context.clear()
            rows = context.decode([*before, *after], logits="all")
            assert rows is not None
            logprobs, greedy = [], []
            for place, token in enumerate(after, len(before) - 1):
                row: NDArray[np.float64] = rows[place].astype(np.float64)
                logprobs.append(float(np.log(np.exp(row - row.max())[token] / np.exp(row - row.max()).sum())))
                greedy.append(int(row.argmax()) == token)
            results.append((logprobs, greedy))
    return results


def plain_top(worker: WorkerContext, path: Path, tokens: Sequence[int], count: int) -> list[list[int]]:
    """The most probable tokens after each of `tokens`."""
    with (
        Model(worker.library, path, load_mode="none", gpu_layers=0) as model,
        Context(model, len(tokens), flash_attention="off", swa_full=True) as context,
    ):
        rows = context.decode(tokens, logits="all")
        assert rows is not None
        return [[int(token) for token in np.argsort(-row, kind="stable")[:count]] for row in rows]


def plain_scores_of_text(
    worker: WorkerContext, path: Path, pairs: Sequence[tuple[str, str]]
) -> list[tuple[list[float], list[bool]]]:
    """As `plain_scores`, of texts that are cut where the context's own tokens end."""
    with Model(worker.library, path, vocab_only=True) as model:
        split = []
        for context, continuation in pairs:
            before = model.tokenize(context, add_special=False)
            split.append((before, model.tokenize(context + continuation, add_special=False)[len(before) :]))
    return plain_scores(worker, path, split)
