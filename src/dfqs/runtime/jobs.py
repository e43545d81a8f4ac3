"""What dfqs itself asks of a worker. Every function here runs in the worker process."""

import importlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dfqs.errors import RuntimeFailure
from dfqs.runtime.context import Context, Model
from dfqs.runtime.conversation import Conversation
from dfqs.runtime.library import PACKAGE, find_library, runtime_name
from dfqs.runtime.loading import LoadOrder, StreamFigures
from dfqs.runtime.memory import MemoryNeed
from dfqs.runtime.requests import Answer, ContextSettings, Prompt, Sampling, SessionInfo
from dfqs.runtime.server import EngineListening, ServerSettings, is_loopback
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


def open_conversation(worker: WorkerContext, path: Path, settings: ContextSettings, order: LoadOrder) -> SessionInfo:
    """Load a model and make a context for the calls of `answer` that follow. Emits `(done, total)` while loading."""
    started = time.perf_counter()
    loaded = order.load(worker.library, path, lambda done, total=None, note="": worker.emit((done, total)))
    model = loaded.model
    context = Context(model, threads=worker.threads, eval_callback=loaded.callback, **asdict(settings))
    worker.state["session"] = Conversation(model, context)
    worker.state["figures"] = loaded.figures
    return SessionInfo(
        runtime=runtime_name(),
        context_tokens=context.n_ctx,
        threads=context.threads,
        omp_wait_policy=worker.library.omp_wait_policy,
        chat_template=model.chat_template() is not None,
        load_s=time.perf_counter() - started,
        notices=tuple(context.notices),
    )


def answer(worker: WorkerContext, prompt: Prompt, sampling: Sampling) -> Answer:
    """Answer in the session opened before. Emits pieces of text."""
    session: Conversation = worker.state["session"]
    return session.answer(prompt, sampling, worker.emit)


def read_figures(worker: WorkerContext) -> StreamFigures | None:
    """What streaming did in the session opened before; None where the model is in memory."""
    figures = worker.state["figures"]
    return figures() if figures is not None else None


def run_server(worker: WorkerContext, settings: ServerSettings, engine: Path) -> None:
    """Serve on the socket `engine` until a stop is requested. Emits one `EngineListening` when requests are answered.

    Goes through the wheel's own Python module, so `worker.library` must not be loaded beside it: the module holds the
    interpreter's lock while it loads a model, and a log callback from another thread would wait for it forever.
    """
    find_library()
    policy = worker.settle_wait_policy()
    # Imported only now: the OpenMP library reads its environment when it is loaded.
    native = importlib.import_module(PACKAGE)
    parameters = native.CommonParams()
    parameters.model.path = str(settings.path)
    parameters.model_alias = {settings.alias}
    # Only the front gets to it: a socket in a directory of this user's, whatever page or user asks.
    parameters.hostnames, parameters.port = [str(engine)], 0
    parameters.n_ctx = settings.context_tokens * settings.parallel
    parameters.n_parallel = settings.parallel
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = worker.threads
    # What is asked for is taken or refused, not quietly made smaller; and memory stays what `plan` says.
    parameters.fit_params = False
    parameters.cache_ram_mib = 0
    # Which pages may ask is settled in the front.
    parameters.cors_origins = "localhost"
    parameters.endpoint_metrics = True
    # The slots show what others are asking.
    parameters.endpoint_slots = is_loopback(settings.host)
    if settings.api_key is not None:
        parameters.api_keys = [settings.api_key]
    try:
        server = native.Server(parameters)
    except RuntimeError as error:
        raise RuntimeFailure(f"llama-server could not start: {error}") from None
    worker.emit(EngineListening(policy, worker.threads))
    worker.stop.wait()
    del server
