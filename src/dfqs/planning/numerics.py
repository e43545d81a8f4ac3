"""Whether cache types leave a model's output alone, held against how far a file is from itself.

A file is not the same to the bit token by token, or with flash attention, as in whole batches without. The larger of
those two divergences is the model's noise floor; a cache type beyond it changes the output.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import RuntimeFailure, UsageError
from dfqs.quantize.calibration import heldout_text
from dfqs.records import Amount, Record, Whole
from dfqs.runtime import Worker
from dfqs.runtime.context import Context, Model
from dfqs.runtime.logprobs import ROWS, log_softmax
from dfqs.runtime.timing import spread_tokens
from dfqs.runtime.worker_context import WorkerContext

TEXT_TOKENS = 128
_TEXT_CHARACTERS = 4000
CachePair = tuple[str, str]
"""(type of K, type of V)"""


class CacheQuality(Record):
    """How far one pair of cache types is from f16."""

    type_k: str
    type_v: str
    divergence_nats: Amount | None
    """Mean KL divergence from the reference, a token; None where llama.cpp refuses the pair for this model."""
    offered: bool
    """Not beyond the noise floor."""


class OutputNoise(Record):
    """A model against itself. The reference: f16 caches, no flash attention, whole batches."""

    tokens: Whole
    """Of the held-out text that dfqs ships (for a model without a tokenizer: of a fixed sequence)."""
    token_by_token_nats: Amount
    flash_attention_nats: Amount | None
    floor_nats: Amount
    """The larger of the two."""
    caches: tuple[CacheQuality, ...]


def measure_noise(path: Path, pairs: Sequence[CachePair], tokens: int = TEXT_TOKENS) -> OutputNoise:
    """Hold cache types against a model's noise floor.

    Raises:
        RuntimeFailure: llama.cpp failed under the reference's settings.
        WorkerCrash: it died.
    """
    text = heldout_text()[:_TEXT_CHARACTERS]
    with Worker() as worker:
        return worker.reporting(doing="measuring the noise floor").call(compare_caches, path, text, pairs, tokens)


def compare_caches(
    worker: WorkerContext, path: Path, text: str, pairs: Sequence[CachePair], tokens: int
) -> OutputNoise:
    """In the worker."""
    with Model(worker.library, path) as model:
        read = _tokens_of(model, text)[: min(tokens, model.trained_context_tokens)]
        reference = _log_probabilities(model, read, "off", ("f16", "f16"))
        single = _divergence(reference, _log_probabilities(model, read, "off", ("f16", "f16"), batch=1))
        flash = _divergence_with(model, read, reference, "on", ("f16", "f16"))
        floor = max(single, flash or 0.0)
        caches = []
        for k, v in pairs:
            # llama.cpp quantizes V under flash attention only.
            found = _divergence_with(model, read, reference, "auto", (k, v))
            caches.append(
                CacheQuality(type_k=k, type_v=v, divergence_nats=found, offered=found is not None and found <= floor)
            )
    return OutputNoise(
        tokens=len(read),
        token_by_token_nats=single,
        flash_attention_nats=flash,
        floor_nats=floor,
        caches=tuple(caches),
    )


def _tokens_of(model: Model, text: str) -> list[int]:
    try:
        return model.tokenize(text)
    except RuntimeFailure:
        return spread_tokens(model.vocab_size, 0, TEXT_TOKENS)


def _log_probabilities(
    model: Model, tokens: Sequence[int], flash_attention: str, caches: CachePair, batch: int = 512
) -> NDArray[np.float32]:
    """[tokens, vocabulary]"""
    k, v = caches
    with Context(
        model, len(tokens), n_batch=batch, n_ubatch=batch, flash_attention=flash_attention, type_k=k, type_v=v
    ) as context:
        rows = context.decode(tokens, logits="all")
    assert rows is not None
    for first in range(0, len(rows), ROWS):
        rows[first : first + ROWS] = log_softmax(rows[first : first + ROWS])
    return rows


def _divergence(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Mean over tokens of the KL divergence from the reference, in nats."""
    p = np.exp(reference)
    # Tokens that are ruled out count nothing: their product is not a number.
    terms = np.where(p > 0, p * (reference - other), 0.0)
    return max(0.0, float(terms.sum(axis=1, dtype=np.float64).mean()))


def _divergence_with(
    model: Model, tokens: Sequence[int], reference: NDArray[np.float32], flash_attention: str, caches: CachePair
) -> float | None:
    try:
        return _divergence(reference, _log_probabilities(model, tokens, flash_attention, caches))
    except (RuntimeFailure, UsageError):
        return None
