"""What the measurements of routing take of memory beside the weights: their largest context, and what they collect."""

from collections.abc import Mapping, Sequence
from typing import Any

from dfqs.model.spec import ModelSpec
from dfqs.routing.capture import REFERENCE
from dfqs.routing.determinism import LOAD_CONTEXT_TOKENS, PROFILES
from dfqs.runtime.requests import ContextSettings

_KINDS_OF_SCORES = 3
"""Probabilities, what is chosen by, and the same before groups are masked."""
_COPIES = 2
"""Collected layer by layer, and put together."""
_PROBE_TOKENS = 512
"""More than the packaged probe has with any tokenizer."""


def trace_context(spec: ModelSpec, settings: Mapping[str, Any], context_tokens: int) -> ContextSettings:
    """Of a trace's longest prompt."""
    trained = spec.context_tokens or context_tokens
    return ContextSettings(**{**REFERENCE, **settings, "n_ctx": min(context_tokens, trained)})


def check_contexts(spec: ModelSpec, profile: str, matrix_tokens: int) -> tuple[ContextSettings, ...]:
    """Of the standard load, and of the matrix of conditions unless it has no tokens."""
    settings, slots = PROFILES[profile]
    tokens = min(LOAD_CONTEXT_TOKENS, spec.context_tokens or LOAD_CONTEXT_TOKENS)
    load = ContextSettings(**settings, n_ctx=tokens, n_seq_max=slots, kv_unified=True)
    return (load, *matrix_contexts(matrix_tokens)) if matrix_tokens else (load,)


def matrix_contexts(tokens: int) -> tuple[ContextSettings, ...]:
    """Of a text of so many tokens beside another, with the largest caches that are tried."""
    return (ContextSettings(**{**REFERENCE, "type_k": "f32", "type_v": "f32"}, n_ctx=2 * tokens, n_seq_max=2),)


def pressure_contexts(lengths: Sequence[int], perturbed: Mapping[str, Any]) -> tuple[ContextSettings, ...]:
    """Of the longest document with a probe behind it, under both settings."""
    tokens = max(lengths, default=0) + _PROBE_TOKENS
    kinds: tuple[dict[str, Any], ...] = (REFERENCE, {**REFERENCE, **perturbed})
    return tuple(ContextSettings(**kind, n_ctx=tokens, n_seq_max=2, kv_unified=True) for kind in kinds)


def collected_bytes(spec: ModelSpec, tokens: int, *, scores: bool) -> int:
    """Memory for the logits and choices of so many tokens, and for the router's scores."""
    layers = spec.layers or 0
    kept = spec.experts * _KINDS_OF_SCORES if scores else spec.experts_used + spec.experts
    return 4 * tokens * ((spec.vocabulary or 0) + layers * kept * _COPIES)
