"""Traces made up for tests: no model needed."""

from pathlib import Path
from typing import Any

import numpy as np

from dfqs.routing.identity import ModelIdentity
from dfqs.routing.trace import RouteConditions, Trace, TraceChunk, TraceHeader
from dfqs.routing.tracefile import write_trace


def make_header(layers: int = 3, experts: int = 8, used: int = 2, **changes: Any) -> TraceHeader:
    model = {
        "name": "made up",
        "architecture": "llama",
        "layers": layers,
        "experts": experts,
        "experts_used": used,
        "file_bytes": 1000,
        "header_sha256": "a" * 64,
        "tokenizer_sha256": "b" * 64,
        "router_sha256": "c" * 64,
        "expert_types": ("F16",),
        **changes.pop("model", {}),
    }
    conditions = RouteConditions(runtime="none", flash_attention="off", **changes.pop("conditions", {}))
    return TraceHeader(
        **{
            "model": ModelIdentity(**model),
            "layers": tuple(range(layers)),
            "conditions": conditions,
            **changes,
        }
    )


def make_chunk(
    header: TraceHeader, tokens: int, seed: int = 0, prompt: int = 0, position: int = 0, skew: float = 0.0
) -> TraceChunk:
    """Random routing; with `skew` the experts of low number are chosen more often."""
    rng = np.random.default_rng(seed)
    layers, experts = len(header.layers), header.model.experts
    logits = rng.gumbel(size=(layers, tokens, experts)) - skew * np.arange(experts)
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = (exponents / exponents.sum(-1, keepdims=True)).astype(np.float32)
    ids = np.argsort(-probabilities, axis=-1, kind="stable")[..., : header.model.experts_used]
    return TraceChunk(
        prompt,
        position,
        rng.integers(0, 1000, tokens, dtype=np.int32),
        ids.astype(header.id_dtype),
        probabilities if "probabilities" in header.scores else None,
        (probabilities + np.float32(0.5)) if "selection" in header.scores else None,
    )


def make_trace(header: TraceHeader, *lengths: int, seed: int = 0, skew: float = 0.0) -> Trace:
    """One prompt of each length."""
    chunks = [make_chunk(header, n, seed + i, prompt=i, skew=skew) for i, n in enumerate(lengths)]
    return Trace(header, tuple(chunks))


def write(path: Path, trace: Trace) -> Path:
    write_trace(path, trace.header, trace.chunks)
    return path
