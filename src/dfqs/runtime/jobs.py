"""What dfqs itself asks of a worker. Every function here runs in the worker process."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dfqs.runtime.generation import TextSession
from dfqs.runtime.memory import MemoryNeed
from dfqs.runtime.requests import Answer, ContextSettings, Prompt, Sampling, SessionInfo
from dfqs.runtime.session import Context, Model
from dfqs.runtime.worker_context import WorkerContext


def measure_stub(
    worker: WorkerContext, path: Path, context_tokens: Sequence[int], settings: dict[str, Any]
) -> tuple[MemoryNeed, ...]:
    """Bytes that contexts of these lengths would take; `settings` are those of `Context`."""
    needs = []
    with Model(worker.library, path, load_mode="none", no_alloc=True) as model:
        for tokens in context_tokens:
            with Context(model, tokens, **settings) as session:
                sizes = [(buffer.kind, buffer.bytes) for buffer in session.buffers]
                compute = sum(size for kind, size in sizes if kind == "compute")
                output = sum(size for kind, size in sizes if kind == "output")
                needs.append(
                    MemoryNeed(
                        context_tokens=session.n_ctx,
                        weights_bytes=model.size_bytes,
                        kv_bytes=sum(size for _, size in sizes) - compute - output,
                        compute_bytes=compute,
                        output_bytes=output,
                        notices=tuple(session.notices),
                    )
                )
    return tuple(needs)


def open_session(worker: WorkerContext, path: Path, settings: ContextSettings) -> SessionInfo:
    """Load a model and make a context for the calls of `answer` that follow. Emits `(done, total)` while loading."""
    started = time.perf_counter()
    model = Model(worker.library, path, progress=lambda done, total=None, note="": worker.emit((done, total)))
    context = Context(model, threads=worker.threads, **asdict(settings))
    worker.state["session"] = TextSession(model, context)
    return SessionInfo(
        context_tokens=context.n_ctx,
        threads=context.threads,
        omp_wait_policy=worker.library.omp_wait_policy,
        chat_template=model.chat_template() is not None,
        load_s=time.perf_counter() - started,
        notices=tuple(context.notices),
    )


def answer(worker: WorkerContext, prompt: Prompt, sampling: Sampling) -> Answer:
    """Answer in the session opened before. Emits pieces of text."""
    session: TextSession = worker.state["session"]
    return session.answer(prompt, sampling, worker.emit)
