"""llama-server as the wheel carries it, in a worker process on a socket of this user alone. The front is its client."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfqs.errors import RuntimeFailure
from dfqs.runtime import abi
from dfqs.runtime.choice import PACKAGE, find_wheel
from dfqs.runtime.given_template import GivenTemplate
from dfqs.runtime.library import bind_library
from dfqs.runtime.loading import InMemory, LoadOrder, ServerCompanion
from dfqs.runtime.model import choice_of
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.worker_context import WorkerContext
from dfqs.serving.addresses import DEFAULT_HOST, DEFAULT_PORT
from dfqs.serving.server_watch import lock_left_while_waiting, watch_graphs

DETERMINISTIC_SEED = 0
_LOOK_S = 0.25
"""How old figures may be, and how long an error waits to be told."""


@dataclass(frozen=True, slots=True)
class ServeLimits:
    """What requests may take, and the server's own patience."""

    queue: int = 64
    """Requests that wait for their turn, beside the `parallel` that are computed."""
    max_tokens: int | None = None
    """Of an answer; None: as many as the context holds."""
    body_bytes: int | None = None
    """Of one request; None: 32 MiB, or less where memory is planned."""
    answer_s: float | None = None
    """For a request, from its arrival to its last byte; None: as long as it takes."""
    stop_s: float = 10.0
    """For answers under way when the server is asked to stop."""
    restarts: int = 5
    """Times in a row that a server which died is started again without an answer in between."""
    stall_s: float = 120.0
    """Without any sign of work, after which a server is ended as one that hangs; 0: never."""


@dataclass(frozen=True, slots=True)
class PromptCache:
    """Where computed prompts outlive the server; see `dfqs.serving.prompt_keeper`."""

    directory: Path
    limit_bytes: int
    owner: str
    """Hash of all that decides what bytes a prompt becomes."""
    rolls_back: bool
    """Whether the model's caches can forget an end."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a model is served."""

    path: Path
    alias: str
    """The model's name in the API."""
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    """0: any free port."""
    context_tokens: int = 8192
    """For each request; memory is taken for `parallel` of them."""
    parallel: int = 1
    api_key: str | None = None
    templates: tuple[str, ...] = ()
    """The model's chat templates; see `dfqs.serving.inspection.templates_of`."""
    given_template: GivenTemplate | None = None
    """In place of those."""
    allow_hosts: tuple[str, ...] = ()
    """Further names that clients may call the server by; see `dfqs.serving.admission`."""
    allow_origins: tuple[str, ...] = ()
    speed: ContextSettings | None = None
    """What of a context is set for speed; None: llama-server's own. Its length is `context_tokens`."""
    order: LoadOrder = field(default_factory=InMemory)
    deterministic: bool = False
    """Compute every request by itself and from its beginning (with `parallel` 1), so that it is answered alike whatever
    others ask at the same time or asked before."""
    likelihood_bytes: int = 0
    """What a second copy of the model takes, with its context: the likelihoods of prompts are computed in one, loaded
    when they are first asked for, if so much is free then."""
    limits: ServeLimits = ServeLimits()
    prompts: PromptCache | None = None
    bounded: bool = False
    """Take no memory that was not planned: for states of earlier prompts, or for requests of many megabytes."""


@dataclass(frozen=True, slots=True)
class EngineListening:
    """llama-server is ready on its private socket."""

    omp_wait_policy: str
    threads: int


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """Nothing more will be answered."""

    sentence: str


def run_server(worker: WorkerContext, settings: ServerSettings, engine: Path) -> None:
    """Serve on the socket `engine` until a stop is requested. Emits one `EngineListening` when requests are answered;
    where experts stream, `StreamFigures` as they change, and `EngineFailed` before it raises what ended it.

    Goes through the wheel's own Python module, so `worker.library` must not be loaded beside it: the module holds the
    interpreter's lock while it loads a model, and a log callback from another thread would wait for it forever.
    """
    find_wheel()
    policy = worker.settle_wait_policy()
    # Imported only now: the OpenMP library reads its environment when it is loaded.
    native = importlib.import_module(PACKAGE)
    parameters = make_parameters(native, worker, settings, engine)
    companion = None
    if not isinstance(settings.order, InMemory):
        library = bind_library(_module_path())
        companion = settings.order.accompany(library, lambda *_: worker.stop.raise_if_requested())
    if companion is None:
        server = _start(native, parameters)
        worker.emit(EngineListening(policy, worker.threads))
        worker.stop.wait()
        del server
        return
    with _never_freed():
        with lock_left_while_waiting(_module_path()), companion.loading():
            watch_graphs(parameters, companion.callback)
            worker.state["server"] = _start(native, parameters)
        worker.state["companion"] = companion
        worker.emit(EngineListening(policy, worker.threads))
        _accompany(worker, companion)


def make_parameters(native: Any, worker: WorkerContext, settings: ServerSettings, engine: Path) -> Any:
    """The settings in the words of the wheel's module."""
    parameters = native.CommonParams()
    parameters.model.path = str(settings.path)
    parameters.model_alias = {settings.alias}
    if settings.given_template is not None:
        parameters.chat_template = settings.given_template.text
    # Only the front gets to it: a socket in a directory of this user's, whatever page or user asks.
    parameters.hostnames, parameters.port = [str(engine)], 0
    parameters.n_ctx = settings.context_tokens * settings.parallel
    parameters.n_parallel = settings.parallel
    if settings.limits.max_tokens is not None:
        # For requests that name no number; those that name a larger one do not get here.
        parameters.n_predict = settings.limits.max_tokens
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = worker.threads
    _set_speed(native, parameters, settings)
    # What is asked for is taken or refused, not quietly made smaller; and memory stays what `plan` says.
    parameters.fit_params = False
    parameters.cache_ram_mib = 0
    if settings.deterministic:
        # Beside others, or behind a beginning that is there already, tokens are computed in other batches, and other
        # batches round in other places.
        parameters.cache_prompt = False
        # For requests that bring none; the door leaves none through that asks for a random one.
        parameters.sampling.seed = DETERMINISTIC_SEED
    if settings.bounded:
        parameters.n_ctx_checkpoints = 0
    if not isinstance(settings.order, InMemory):
        # A warm-up uses all experts.
        parameters.warmup, parameters.n_gpu_layers = False, 0
    # Which pages may ask is settled in the front.
    parameters.cors_origins = "localhost"
    parameters.endpoint_metrics = True
    parameters.endpoint_slots = True
    if settings.prompts is not None:
        parameters.slot_save_path = f"{settings.prompts.directory}/"
    if settings.api_key is not None:
        parameters.api_keys = [settings.api_key]
    return parameters


def _start(native: Any, parameters: Any) -> Any:
    try:
        return native.Server(parameters)
    except RuntimeError as error:
        raise RuntimeFailure(f"llama-server could not start: {error}") from None


def _accompany(worker: WorkerContext, companion: ServerCompanion) -> None:
    """Tell how streaming goes until a stop is requested, or it fails."""
    told = None
    while not worker.stop.wait(_LOOK_S):
        try:
            companion.raise_pending()
        except Exception as error:
            worker.emit(EngineFailed(str(error)))
            raise
        figures = companion.figures()
        if figures != told:
            worker.emit(figures)
            told = figures


@contextlib.contextmanager
def _never_freed() -> Iterator[None]:
    """Around a server whose graphs call Python: freeing it would wait, with Python's lock, for a thread that may be
    waiting for the lock. It ends with its process.
    """
    try:
        yield
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 1)


def _module_path() -> Path:
    """The shared object that the wheel's Python module is."""
    return Path(str(sys.modules[f"{PACKAGE}.{PACKAGE}"].__file__)).resolve()


def _set_speed(native: Any, parameters: Any, settings: ServerSettings) -> None:
    """What was tuned, in the words of the wheel's module."""
    parameters.load_mode = choice_of(settings.order.load_mode, abi.LOAD_MODES, "load mode")
    parameters.no_extra_bufts = not settings.order.repack
    speed = settings.speed
    if speed is not None:
        parameters.n_ubatch = min(speed.n_ubatch, speed.n_batch)
    # The pieces that llama.cpp cuts a batch into anyway. Only between two batches the server tells how far a prompt is
    # read, goes on with other answers, and notices that a client left.
    parameters.n_batch = parameters.n_ubatch
    if speed is None:
        return
    if speed.threads_batch is not None:
        parameters.cpuparams_batch.n_threads = speed.threads_batch
    parameters.flash_attn_type = choice_of(speed.flash_attention, abi.FLASH_ATTENTION, "flash attention")
    parameters.cache_type_k = native.ggml_type(choice_of(speed.type_k, abi.CACHE_TYPES, "type of the K cache"))
    parameters.cache_type_v = native.ggml_type(choice_of(speed.type_v, abi.CACHE_TYPES, "type of the V cache"))
