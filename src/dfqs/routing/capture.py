"""Capturing a trace: prompts in, a trace file out, one batch in memory at a time."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dfqs.errors import RuntimeFailure
from dfqs.model.files import ModelFiles, open_model
from dfqs.progress import Progress, no_progress
from dfqs.routing.identity import ModelIdentity, as_words, read_identity
from dfqs.routing.prompts import Prompt
from dfqs.routing.tap import BatchToken, RouterTap, Routing, decode_batch, route_batch
from dfqs.routing.trace import RouteConditions, TraceChunk, TraceHeader
from dfqs.routing.tracefile import TraceWriter
from dfqs.runtime import Worker
from dfqs.runtime.choice import runtime_and_release
from dfqs.runtime.context import Context, Model
from dfqs.runtime.loading import InMemory, LoadedModel, LoadOrder, StreamFigures
from dfqs.runtime.worker_context import WorkerContext
from dfqs.storage.atomic import atomic_writer

REFERENCE: dict[str, Any] = {
    "n_batch": 512,
    "n_ubatch": 512,
    "flash_attention": "off",
    "type_k": "f16",
    "type_v": "f16",
    "swa_full": False,
}
"""Settings of a reference trace: those under which routing was seen not to depend on threads and chunking."""
MAX_CONTEXT_TOKENS = 4096
PROBE_TOKENS = 16
"""Whose logits are computed, so that a model that ends in no numbers is noticed."""


@dataclass(frozen=True, slots=True)
class CaptureSummary:
    """What was captured."""

    trace_sha256: str
    header: TraceHeader
    tokens: int
    prompts: int
    notices: tuple[str, ...]
    streaming: StreamFigures | None = None
    """None where all weights were in memory."""


def capture_trace(
    worker: Worker,
    model: Path | ModelFiles,
    prompts: Sequence[Prompt],
    out: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    scores: bool = False,
    context_tokens: int = MAX_CONTEXT_TOKENS,
    source: str | None = None,
    overwrite: bool = False,
    order: LoadOrder | None = None,
    progress: Progress = no_progress,
) -> CaptureSummary:
    """Run prompts through a model and write the routing of every token to `out`, whole or not at all.

    Args:
        settings: of `Context`; what is not given is as in `REFERENCE`.
        scores: store the router's scores as well (4 bytes for each expert, layer and token).
        context_tokens: longer prompts are cut into pieces of this length, each a prompt of its own.
        order: how the model's weights come into memory; see `dfqs.streaming.budget.choose_load`.
        progress: called with tokens.

    Raises:
        UsageError: the model is dense, or `out` exists.
        RuntimeFailure: llama.cpp failed, computes what is no numbers, or its graph shows no routing.
    """
    opened = open_model(model)
    identity, hash_layers = read_identity(opened)
    wanted = {**REFERENCE, **(settings or {})}
    loaded = order or InMemory()
    with atomic_writer(out, overwrite=overwrite) as file:
        writer: TraceWriter | None = None

        def on_event(event: dict[str, Any]) -> None:
            nonlocal writer
            if writer is not None:
                writer.write(event["chunk"])
                progress(writer.tokens, event["of"])
                return
            writer = TraceWriter(file, _make_header(identity, hash_layers, source, loaded, event))

        worker.call(open_model_once, str(opened.path), loaded)
        told = worker.reporting(on_event)
        summary = told.call(trace_prompts, str(opened.path), list(prompts), wanted, scores, context_tokens)
        if writer is None:
            raise RuntimeFailure("the prompts hold no tokens")
        digest = writer.finish()
    figures = worker.call(read_figures, str(opened.path))
    return CaptureSummary(digest, writer.header, writer.tokens, summary["prompts"], tuple(summary["notices"]), figures)


def _make_header(
    identity: ModelIdentity, hash_layers: Sequence[int], source: str | None, loaded: LoadOrder, event: dict[str, Any]
) -> TraceHeader:
    """Of what the worker said before the first token."""
    layers, used = tuple(event.pop("layers")), event.pop("experts_used")
    if used != identity.experts_used:
        raise RuntimeFailure(f"llama.cpp uses {used} experts, and the file says {identity.experts_used}")
    return TraceHeader(
        model=identity,
        layers=layers,
        hash_layers=tuple(layer for layer in hash_layers if layer in layers),
        scores=event.pop("scores"),
        source=None if source is None else as_words(source),
        conditions=RouteConditions(
            runtime=runtime_and_release(), processor=processor_name(), repack=loaded.repack, **event
        ),
    )


def trace_prompts(
    worker: WorkerContext,
    path: str,
    prompts: Sequence[Prompt],
    settings: dict[str, Any],
    scores: bool,
    context_tokens: int,
) -> dict[str, Any]:
    """In the worker: emits the header's facts, then `{"chunk": TraceChunk, "of": tokens in all}`."""
    model = load_model(worker, path)
    notices = []
    if context_tokens > model.trained_context_tokens:
        if context_tokens != MAX_CONTEXT_TOKENS:
            notices.append(
                f"a context of {context_tokens:,} tokens was asked for; it is {model.trained_context_tokens:,}, as "
                "many as this model was trained for"
            )
        context_tokens = model.trained_context_tokens
    whole = [prompt.tokenize(model) for prompt in prompts]
    pieces = [tokens[i : i + context_tokens] for tokens in whole for i in range(0, len(tokens), context_tokens)]
    if len(pieces) != len(prompts):
        notices.append(f"prompts longer than {context_tokens:,} tokens were cut: {len(prompts)} became {len(pieces)}")
    total = sum(len(piece) for piece in pieces)
    if not total:
        return {"prompts": 0, "notices": notices}
    tap = RouterTap(scores=scores)
    longest = max(len(piece) for piece in pieces)
    header: Routing | None = None
    with Context(model, longest, **settings, eval_callback=tap.callback) as context:
        _look_at_model(context, pieces[0][:PROBE_TOKENS], tap)
        for number, piece in enumerate(pieces):
            context.clear()
            for start in range(0, len(piece), context.n_batch):
                batch = [
                    BatchToken(token, start + index)
                    for index, token in enumerate(piece[start : start + context.n_batch])
                ]
                # Every token wants its logits, or the last layer would not route it; they are not computed.
                routing = route_batch(context, batch, tap)
                if header is None:
                    header = routing
                    worker.emit(_facts(context, routing, settings))
                if routing.layers != header.layers:
                    raise RuntimeFailure("the layers that route changed from one batch to the next")
                worker.emit({"chunk": _chunk(number, start, batch, routing), "of": total})
        notices += context.notices
    return {"prompts": len(pieces), "notices": notices}


def _look_at_model(context: Context, tokens: Sequence[int], tap: RouterTap) -> None:
    """Compute a few tokens to the logits: whether those are numbers at all, and which router node is a graph's last.

    Raises:
        RuntimeFailure: they are none.
    """
    batch = [BatchToken(token, place) for place, token in enumerate(tokens)]
    decode_batch(context, batch, tap)
    tap.take_batch(batch)
    tap.end_graphs()


def open_model_once(worker: WorkerContext, path: str, order: LoadOrder) -> None:
    """In the worker: load the model at `path` for the calls that follow, unless an earlier call did."""
    key = f"routing model {path}"
    if key not in worker.state:
        worker.state[key] = order.load(worker.library, Path(path), no_progress)


def load_model(worker: WorkerContext, path: str) -> Model:
    """The model at `path`, kept between calls of one worker; as `open_model_once` was told, or whole."""
    open_model_once(worker, path, InMemory())
    loaded: LoadedModel = worker.state[f"routing model {path}"]
    return loaded.model


def read_figures(worker: WorkerContext, path: str) -> StreamFigures | None:
    """In the worker: what streaming did for the model at `path`; None where all weights are in memory."""
    loaded: LoadedModel = worker.state[f"routing model {path}"]
    return loaded.read_figures()


def processor_name() -> str | None:
    """What this machine calls its CPU."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), None)
    except OSError:
        return platform.processor() or None


def _facts(context: Context, routing: Routing, settings: Mapping[str, Any]) -> dict[str, Any]:
    scores: tuple[str, ...] = ()
    if routing.probabilities is not None:
        scores = ("probabilities",) if routing.selection is None else ("probabilities", "selection")
    return {
        "layers": routing.layers,
        "experts_used": routing.ids.shape[-1],
        "scores": scores,
        "threads": context.threads,
        # As asked for: a short context makes them smaller, which changes no result.
        "batch_tokens": settings["n_batch"],
        "ubatch_tokens": settings["n_ubatch"],
        "flash_attention": settings["flash_attention"],
        "type_k": settings["type_k"],
        "type_v": settings["type_v"],
        "swa_full": settings["swa_full"],
        "context_tokens": context.n_ctx,
    }


def _chunk(number: int, start: int, batch: Sequence[BatchToken], routing: Routing) -> TraceChunk:
    tokens = np.array([entry.token for entry in batch], np.int32)
    return TraceChunk(number, start, tokens, routing.ids, routing.probabilities, routing.selection)
