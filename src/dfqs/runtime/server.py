"""llama-server, as the wheel carries it, in a worker process behind a front of ours: OpenAI-compatible endpoints and a
web page.

with Worker() as worker:
    serve(worker, ServerSettings(path, alias="my-model"), on_listening=print)   # until Ctrl-C
"""

import contextlib
import errno
import importlib
import ipaddress
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfqs.errors import NetworkError, RuntimeFailure, UsageError, printable
from dfqs.runtime import abi
from dfqs.runtime.admission import make_admission
from dfqs.runtime.front import Front
from dfqs.runtime.inspection import ChatInspection
from dfqs.runtime.library import PACKAGE, find_library
from dfqs.runtime.loading import InMemory
from dfqs.runtime.log_lines import server_errors
from dfqs.runtime.model import choice_of
from dfqs.runtime.page import own_pages
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.worker import Worker
from dfqs.runtime.worker_context import WorkerContext

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8080
_BACKLOG = 1024
_SOCKET_PATH_ROOM = 60
"""Of 108 bytes, what is left for the directory."""


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
    """The model's chat templates; see `dfqs.runtime.inspection.templates_of`."""
    allow_hosts: tuple[str, ...] = ()
    """Further names that clients may call the server by; see `dfqs.runtime.admission`."""
    allow_origins: tuple[str, ...] = ()
    speed: ContextSettings | None = None
    """What of a context is set for speed; None: llama-server's own. Its length is `context_tokens`."""
    order: InMemory = field(default_factory=InMemory)


@dataclass(frozen=True, slots=True)
class EngineListening:
    """llama-server is ready on its private socket."""

    omp_wait_policy: str
    threads: int


@dataclass(frozen=True, slots=True)
class Listening:
    """A server that is ready."""

    url: str
    """That this machine's programs can open."""
    other_urls: tuple[str, ...]
    """That other machines may, where it listens beyond this one."""
    omp_wait_policy: str
    threads: int
    chat_refusal: str | None
    """Why conversations are not answered, if they are not."""


def serve(worker: Worker, settings: ServerSettings, on_listening: Callable[[Listening], None]) -> None:
    """Load the model, serve it, and return when the server was asked to stop (KeyboardInterrupt goes on to the caller).

    Args:
        on_listening: called once, when requests are answered.

    Raises:
        NetworkError: the port is taken, or the host is not ours.
        TemplateExcess: the model's chat template takes more than a template needs.
        RuntimeFailure: llama.cpp refused the model or the settings.
        WorkerCrash: it died.
    """
    inspection = ChatInspection(settings.templates)
    admission = make_admission(not is_loopback(settings.host), settings.allow_hosts, settings.allow_origins)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(settings.host, settings.port))
        stack.callback(inspection.close)
        inspection.probe()
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dfqs-serve-", dir=_short_directory())))
        engine = directory / "engine.sock"
        front = Front(listener, engine, admission, inspection)
        stack.callback(front.stop)

        def begin(event: EngineListening) -> None:
            front.pages = own_pages(engine)
            front.start()
            url, others = _urls(settings.host, listener.getsockname()[1])
            on_listening(Listening(url, others, event.omp_wait_policy, event.threads, inspection.refusal))

        doing = f"serving {settings.path}"
        try:
            worker.reporting(begin, doing=doing).call(run_server, settings, engine)
        except RuntimeFailure as error:
            # Its log is whole only then.
            worker.close()
            reasons = server_errors(worker.log_lines)
            if not reasons:
                raise
            raise RuntimeFailure(f"llama-server could not start: {reasons[0]}") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Take an address, before a model is loaded for it; connections wait until somebody answers them.

    Raises:
        NetworkError: taken, not permitted, or not an address of this machine.
        UsageError: no such host or port.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, OverflowError, UnicodeError):
        raise UsageError(f"'{printable(host)}' port {port} is no address to listen on") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Binding alone succeeds beside a listener that set SO_REUSEADDR too.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise NetworkError(f"port {port} on {host} is taken; choose another with --port, or 0 for any") from None
        raise NetworkError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return listener


def check_address(host: str, port: int) -> None:
    """Find out whether an address can be had.

    Raises:
        As `listen`.
    """
    listen(host, port).close()


def _urls(host: str, port: int) -> tuple[str, tuple[str, ...]]:
    """An address that can be opened here, and those that can be opened from elsewhere: 0.0.0.0 is neither."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}", ()
    if not address.is_unspecified:
        return f"http://{_bracketed(host)}:{port}", ()
    here = "127.0.0.1" if address.version == 4 else "[::1]"
    others = {info[4][0] for info in _own_addresses() if isinstance(info[4][0], str)}
    others = {other for other in others if not is_loopback(other) and "%" not in other}
    return f"http://{here}:{port}", tuple(f"http://{_bracketed(other)}:{port}" for other in sorted(others))


def _own_addresses() -> list[Any]:
    name = socket.gethostname()
    found: list[Any] = []
    with contextlib.suppress(OSError, UnicodeError):
        found += socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    # Where the name leads nowhere: the address that a packet to another network would leave by. None is sent.
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        found.append((socket.AF_INET, socket.SOCK_DGRAM, 0, "", probe.getsockname()))
    return found


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _short_directory() -> str | None:
    """The directory for temporary files, unless its name leaves no room in the address of a socket."""
    return None if len(tempfile.gettempdir()) < _SOCKET_PATH_ROOM else "/tmp"


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
    _set_speed(native, parameters, settings)
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


def _set_speed(native: Any, parameters: Any, settings: ServerSettings) -> None:
    """What was tuned, in the words of the wheel's module."""
    parameters.load_mode = choice_of(settings.order.load_mode, abi.LOAD_MODES, "load mode")
    parameters.no_extra_bufts = not settings.order.repack
    speed = settings.speed
    if speed is None:
        return
    parameters.n_batch, parameters.n_ubatch = speed.n_batch, speed.n_ubatch
    if speed.threads_batch is not None:
        parameters.cpuparams_batch.n_threads = speed.threads_batch
    parameters.flash_attn_type = choice_of(speed.flash_attention, abi.FLASH_ATTENTION, "flash attention")
    parameters.cache_type_k = native.ggml_type(choice_of(speed.type_k, abi.CACHE_TYPES, "type of the K cache"))
    parameters.cache_type_v = native.ggml_type(choice_of(speed.type_v, abi.CACHE_TYPES, "type of the V cache"))
