"""llama-server, as the wheel carries it, in a worker process: OpenAI-compatible endpoints and a web page.

with Worker() as worker:
    serve(worker, ServerSettings(path, alias="my-model"), on_listening=print)   # until Ctrl-C
"""

import errno
import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import NetworkError, RuntimeFailure, UsageError
from dfqs.runtime.worker import Worker

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8080
_ERROR_LINE = re.compile(r"[\d.]+ E (?P<text>.+)")
_BIND_FAILURE = "couldn't bind"


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


@dataclass(frozen=True, slots=True)
class Listening:
    """A server that is ready."""

    url: str
    omp_wait_policy: str
    threads: int


def serve(worker: Worker, settings: ServerSettings, on_listening: Callable[[Listening], None]) -> None:
    """Load the model, serve it, and return when the server was asked to stop (KeyboardInterrupt goes on to the caller).

    Args:
        on_listening: called once, when requests are answered.

    Raises:
        NetworkError: the port is taken, or the host is not ours.
        RuntimeFailure: llama.cpp refused the model or the settings.
        WorkerCrash: it died.
    """
    check_address(settings.host, settings.port)
    try:
        worker.call("dfqs.runtime.jobs:run_server", settings, on_event=on_listening, doing=f"serving {settings.path}")
    except RuntimeFailure as error:
        # Its log is whole only then.
        worker.close()
        reasons = [match["text"] for line in worker.log_lines if (match := _ERROR_LINE.match(line))]
        if not reasons:
            raise
        if any(_BIND_FAILURE in reason for reason in reasons):
            raise NetworkError(f"cannot listen on {settings.host} port {settings.port}: {reasons[0]}") from error
        raise RuntimeFailure(f"llama-server could not start: {reasons[0]}") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(host: str, port: int) -> None:
    """Find out before a model is loaded whether its address can be had.

    Raises:
        NetworkError: taken, not permitted, or not an address of this machine.
        UsageError: no such host or port.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, OverflowError, UnicodeError):
        raise UsageError(f"'{host}' port {port} is no address to listen on") from None
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            # Binding alone succeeds beside a listener that set SO_REUSEADDR too.
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise NetworkError(
                    f"port {port} on {host} is taken; choose another with --port, or 0 for any"
                ) from None
            raise NetworkError(f"cannot listen on {host} port {port}: {error.strerror}") from None
