"""Whether cache types leave a model's output alone, held against how far a file is from itself.

The measure is `dfqs.quantize.noise_floor`: a file is not the same to the bit token by token, or with flash attention,
as in whole batches without. The larger of those two divergences is the floor; a cache type beyond it changes the
output.
"""

from collections.abc import Sequence
from pathlib import Path

from dfqs.errors import RuntimeFailure
from dfqs.quantize.noise_floor import (
    FLASH_ATTENTION,
    TOKEN_BY_TOKEN,
    OtherNumerics,
    SelfDifference,
    measure_floor,
    tokens_for_floor,
)
from dfqs.records import Amount, Record, Whole
from dfqs.runtime import Worker
from dfqs.runtime.context import Model
from dfqs.runtime.worker_context import WorkerContext

TEXT_TOKENS = 128
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
    with Worker() as worker:
        return worker.reporting(doing="measuring the noise floor").call(compare_caches, path, pairs, tokens)


def compare_caches(worker: WorkerContext, path: Path, pairs: Sequence[CachePair], tokens: int) -> OutputNoise:
    """In the worker."""
    # llama.cpp quantizes V under flash attention only.
    caches = [OtherNumerics(f"{k}/{v}", "auto", k, v) for k, v in pairs]
    with Model(worker.library, path) as model:
        read, text_sha256 = tokens_for_floor(model, None, tokens)
        found = measure_floor(model, read, text_sha256, others=[TOKEN_BY_TOKEN, FLASH_ATTENTION, *caches])
    single, flash, *others = map(_nats, found.others)
    if single is None:
        raise RuntimeFailure(f"the model could not be computed token by token: {found.others[0].reason}")
    floor = max(single, flash or 0.0)
    return OutputNoise(
        tokens=len(read),
        token_by_token_nats=single,
        flash_attention_nats=flash,
        floor_nats=floor,
        caches=tuple(
            CacheQuality(type_k=k, type_v=v, divergence_nats=nats, offered=nats is not None and nats <= floor)
            for (k, v), nats in zip(pairs, others, strict=True)
        ),
    )


def _nats(found: SelfDifference) -> float | None:
    return found.kl.mean if found.kl is not None else None
