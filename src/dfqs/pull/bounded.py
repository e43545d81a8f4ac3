"""An end to every exchange with a server: so many seconds, so many bytes, whatever comes.

Time limits of HTTP clients hold from one byte to the next; a server that sends a byte now and then, or one interim
answer after the other, is never late by them. Here the clock runs from the first byte to the last, and the count is of
what comes over the wire, before anything is made of it. Both belong to the calling thread: `with exchange(...)` bounds
what it reads in the block, on whatever connection.
"""

import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import httpcore
import httpx

from dfqs.errors import NetworkError
from dfqs.units import format_bytes

_own = threading.local()

GATHERED_BYTES = 256 << 10
"""What is handed on at once of a body: each piece costs the same, however short, and TLS gives 16 KiB at a time."""
_GATHERING_S = 0.1
"""A slow body is handed on as it comes."""


class SlowAnswer(NetworkError):
    """Bytes came, but not all of them in the time there was."""


class LongAnswer(NetworkError):
    """More bytes came than an answer of this kind can have."""


class _Exchange:
    def __init__(self, seconds: float, limit_bytes: int, expected_bytes: int) -> None:
        self.seconds = seconds
        self.limit_bytes = limit_bytes
        self.expected_bytes = expected_bytes
        self.ends_at = time.monotonic() + seconds
        self.received = 0

    def time_left(self, wanted_s: float | None) -> float:
        """Seconds to wait at most.

        Raises:
            SlowAnswer: none are left.
        """
        left = self.ends_at - time.monotonic()
        if left <= 0:
            raise self.late()
        return left if wanted_s is None else min(wanted_s, left)

    def late(self) -> SlowAnswer:
        return SlowAnswer(f"the answer was not there after {self.seconds:g} s, though bytes of it came")

    def count(self, received: int) -> None:
        self.received += received
        if self.received > self.limit_bytes:
            raise LongAnswer(f"the answer is longer than the {format_bytes(self.limit_bytes)} that it can have")


@contextmanager
def exchange(seconds: float, limit_bytes: int, expected_bytes: int = 0) -> Iterator[None]:
    """Bound what this thread does with a client of `bounded_client` in the block.

    Args:
        expected_bytes: are on their way for certain, so that one read may wait for more than one packet of them.

    Raises:
        SlowAnswer, LongAnswer: from the block.
    """
    before = getattr(_own, "exchange", None)
    _own.exchange = _Exchange(seconds, limit_bytes, expected_bytes)
    try:
        yield
    finally:
        _own.exchange = before


def bounded_client(**options: Any) -> httpx.Client:
    """An HTTP client whose connections keep to the bounds of `exchange`; proxies of the environment are used."""
    client = httpx.Client(verify=_tls_context(), **options)
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):
            # httpcore takes a network backend as an argument; httpx has no way to hand one on.
            transport._pool._network_backend = _Backend(transport._pool._network_backend)
    return client


@cache
def _tls_context() -> ssl.SSLContext:
    """One for all clients: reading the certificates of all authorities takes 60 ms, and a pull has several clients."""
    return httpx.create_ssl_context()


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.connect_tcp(host, port, _bounded(timeout), local_address, socket_options))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        bounds: _Exchange | None = getattr(_own, "exchange", None)
        if bounds is None:
            return self._inner.read(max_bytes, timeout)
        wanted = min(bounds.expected_bytes, GATHERED_BYTES)
        parts = [self._read(bounds, max(max_bytes, wanted), timeout)]
        got, until = len(parts[0]), time.monotonic() + _GATHERING_S
        while got < wanted and parts[-1] and time.monotonic() < until:
            try:
                parts.append(self._read(bounds, wanted - got, timeout))
            except (httpcore.ReadTimeout, httpcore.ReadError, SlowAnswer):
                # What came before counts; whatever is wrong shows again at the next read.
                break
            got += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, bounds: _Exchange, max_bytes: int, timeout: float | None) -> bytes:
        try:
            data = self._inner.read(max_bytes, bounds.time_left(timeout))
        except httpcore.ReadTimeout:
            # A server that sent nothing at all may be asked again; one that dawdles is called that.
            if bounds.received and time.monotonic() >= bounds.ends_at:
                raise bounds.late() from None
            raise
        bounds.count(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _bounded(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _bounded(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _bounded(timeout: float | None) -> float | None:
    bounds: _Exchange | None = getattr(_own, "exchange", None)
    return timeout if bounds is None else bounds.time_left(timeout)
