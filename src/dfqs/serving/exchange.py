"""One HTTP request under one wall clock and one byte count, whatever the server does with either.

A timeout counts the silence between two pieces, and so never ends for a server that sends a byte a second, in its
headers or in interim answers. Here the socket itself is metered: everything that comes out of it counts, and every wait
is what is left of the whole. Answers are asked for uncompressed and a compressed one is refused, so that the bytes
counted are the bytes held.
"""

import ipaddress
import re
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ssl import SSLContext
from urllib.parse import quote, unquote, urlsplit

import httpcore

from dfqs.errors import EndpointError, EndpointFault, UsageError, printable

CONNECT_TIMEOUT_S = 10.0
_PORTS = {"http": 80, "https": 443}
_NETLOC = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(:\d+)?")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, checked so that nothing later can stumble over it."""

    scheme: str
    host: str
    """As it is connected to: a name in ASCII, or an IP address without brackets."""
    port: int
    shown: str
    """For messages and reports: without name, password, trailing slash and `/v1`."""
    path: str
    """In front of every request's own path; empty or `/...`."""
    credentials: str | None = field(repr=False)
    """The value of a `Basic` authorization."""

    @property
    def is_local(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def host_header(self) -> str:
        host = f"[{self.host.partition('%')[0]}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_address(url: str) -> Address:
    """
    Raises:
        UsageError: not an http(s) address that can be connected to.
    """
    refusal = UsageError(f"'{printable(url)}' is no address; write it like http://127.0.0.1:8080")
    if not url.isprintable() or any(c.isspace() for c in url):
        # urlsplit leaves tabs and line breaks out in silence.
        raise refusal
    try:
        parts = urlsplit(url)
        host, port = _host(parts.hostname or ""), parts.port
        if "\\" in url or not _NETLOC.fullmatch(parts.netloc.rpartition("@")[2]):
            raise refusal
        if parts.scheme not in _PORTS or not host or port == 0 or parts.query or parts.fragment:
            raise refusal
        path = quote(parts.path, safe="/%:@!$&'()*+,;=~").rstrip("/").removesuffix("/v1")
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
        credentials = b64encode(user.encode()).decode() if user else None
    except ValueError:
        # Of urlsplit (brackets, NFKC), of the port, of a name that cannot be in the domain name system.
        raise refusal from None
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"
    return Address(parts.scheme, host, port or _PORTS[parts.scheme], shown, path, credentials)


def _host(name: str) -> str:
    """
    Raises:
        ValueError: neither an IP address nor a name that can be looked up.
    """
    if ":" in name:
        return str(ipaddress.IPv6Address(unquote(name)))
    ascii_name = name.encode("idna").decode("ascii")
    if len(ascii_name) > 253 or not _HOST.fullmatch(ascii_name):
        raise ValueError("not a host name")
    return ascii_name


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one request may take altogether."""

    wall_s: float
    """From the first connection to the last byte."""
    silence_s: float
    """Longest wait for the next byte."""
    received_bytes: int
    """Everything that comes from the socket: headers, interim answers, framing and body."""


@dataclass(slots=True)
class Response:
    """A status, and the body in pieces as they come."""

    status: int
    pieces: Iterator[bytes]
    retry_after_s: float | None

    def read(self, limit_bytes: int) -> bytes:
        """The body, or its first `limit_bytes` and a bit."""
        data = bytearray()
        for piece in self.pieces:
            data += piece
            if len(data) > limit_bytes:
                break
        return bytes(data)


class Exchange:
    """Makes requests to one server."""

    def __init__(self, address: Address, headers: dict[str, str]) -> None:
        self._address = address
        # A proxy from the environment has no business between us and this machine.
        self._proxy = None if address.is_local else _proxy(address)
        self._tls: SSLContext | None = httpcore.default_ssl_context() if address.scheme == "https" else None
        self._headers = {
            "Host": address.host_header,
            "User-Agent": "dfqs",
            "Accept-Encoding": "identity",
            "Connection": "close",
            **({"Authorization": f"Basic {address.credentials}"} if address.credentials else {}),
            **headers,
        }

    @contextmanager
    def request(self, method: str, path: str, body: bytes | None, bounds: Bounds) -> Iterator[Response]:
        """Send a request; the response is read inside the block.

        Raises:
            EndpointError: no answer, or one beyond the bounds.
        """
        meter = _Meter(bounds, self._address.shown)
        url = httpcore.URL(
            scheme=self._address.scheme,
            host=self._address.host,
            port=self._address.port,
            target=self._address.path + path,
        )
        headers = dict(self._headers)
        if body is not None:
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        pool = httpcore.ConnectionPool(
            ssl_context=self._tls,
            proxy=self._proxy,
            max_connections=1,
            max_keepalive_connections=0,
            network_backend=_MeteredBackend(meter),
        )
        try:
            with pool, pool.stream(method, url, headers=list(headers.items()), content=body) as response:
                found = {name.lower(): value.decode("latin-1").strip() for name, value in response.headers}
                encoding = found.get(b"content-encoding", "identity").lower()
                if encoding not in ("", "identity"):
                    raise meter.failure(
                        EndpointFault.UNUSABLE, f"it answers compressed ({printable(encoding)}), unasked"
                    )
                yield Response(response.status, iter(response.iter_stream()), _retry_after(found))
        except (httpcore.ConnectError, httpcore.ConnectTimeout):
            raise meter.failure(EndpointFault.UNREACHABLE) from None
        except httpcore.TimeoutException:
            meter.wait_s()
            raise meter.failure(EndpointFault.SILENT) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
            detail = printable(str(error) or type(error).__name__, 200)
            raise meter.failure(EndpointFault.BROKEN, detail) from None


class _Meter:
    """What one exchange has taken."""

    def __init__(self, bounds: Bounds, shown: str) -> None:
        self._bounds = bounds
        self._shown = shown
        self._ends = time.monotonic() + bounds.wall_s
        self._left = bounds.received_bytes

    def wait_s(self) -> float:
        """How long the next piece may be waited for."""
        remaining = self._ends - time.monotonic()
        if remaining <= 0:
            raise self.failure(EndpointFault.TOO_SLOW)
        return min(remaining, self._bounds.silence_s)

    def count(self, received: int) -> None:
        self._left -= received
        if self._left < 0:
            raise self.failure(EndpointFault.TOO_LARGE)

    def failure(self, fault: EndpointFault, detail: str = "") -> EndpointError:
        said = {
            EndpointFault.UNREACHABLE: f"nothing answers at {self._shown}; is the server running?",
            EndpointFault.SILENT: f"{self._shown} fell silent in the middle of a request",
            EndpointFault.TOO_SLOW: f"{self._shown} did not end its answer within {self._bounds.wall_s:,.0f} s",
            EndpointFault.TOO_LARGE: f"{self._shown} does not answer like an OpenAI-compatible server: "
            f"an answer without end (more than {self._bounds.received_bytes:,} bytes)",
            EndpointFault.BROKEN: f"{self._shown} broke off: {detail}",
            EndpointFault.UNUSABLE: f"{self._shown} does not answer like an OpenAI-compatible server: {detail}",
        }
        return EndpointError(said[fault], fault)


class _MeteredStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, meter: _Meter) -> None:
        self._stream = stream
        self._meter = meter

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, self._meter.wait_s())
        self._meter.count(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # In pieces: a wait is for each of them.
        for start in range(0, len(buffer), 1 << 16):
            self._stream.write(buffer[start : start + (1 << 16)], self._meter.wait_s())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        wait_s = min(self._meter.wait_s(), CONNECT_TIMEOUT_S)
        return _MeteredStream(self._stream.start_tls(ssl_context, server_hostname, wait_s), self._meter)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


class _MeteredBackend(httpcore.NetworkBackend):
    def __init__(self, meter: _Meter) -> None:
        self._meter = meter
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        wait_s = min(self._meter.wait_s(), CONNECT_TIMEOUT_S)
        return _MeteredStream(self._backend.connect_tcp(host, port, wait_s, local_address, socket_options), self._meter)


def _retry_after(headers: dict[bytes, str]) -> float | None:
    """Seconds, where the server gives a number."""
    value = headers.get(b"retry-after", "")
    return float(value) if re.fullmatch(r"\d{1,6}", value) else None


def _proxy(address: Address) -> httpcore.Proxy | None:
    """That of the environment (`https_proxy`, `all_proxy`, `no_proxy`).

    Raises:
        UsageError: it is no address.
    """
    proxies = urllib.request.getproxies_environment()
    url = proxies.get(address.scheme) or proxies.get("all")
    if not url or urllib.request.proxy_bypass(f"{address.host}:{address.port}"):
        return None
    found = parse_address(url if "://" in url else f"http://{url}")
    where = httpcore.URL(scheme=found.scheme, host=found.host, port=found.port, target="/")
    headers = [("Proxy-Authorization", f"Basic {found.credentials}")] if found.credentials else []
    return httpcore.Proxy(where, headers=headers)
