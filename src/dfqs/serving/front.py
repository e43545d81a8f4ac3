"""The door of `dfqs serve`: everything that comes over the network comes through here.

The model's own server (llama-server) believes any `Host`, computes for any page, and gives each connection a thread
until it has said all it wants to. So it listens on a private socket, and this front stands on the public port: it
reads requests strictly, checks who asks, bounds bytes, time and connections, and passes on what is left. A front for
one model, or for several behind one name, is the same thing.
"""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from dfqs.serving.admission import Admission
from dfqs.serving.api_key import ApiKey
from dfqs.serving.dispatch import Asked, Dispatch
from dfqs.serving.http_head import HttpRefusal, RequestHead, format_head, parse_request_head
from dfqs.serving.incoming import Gone, Incoming
from dfqs.serving.page import Page
from dfqs.serving.upstream import WRITE_STALL_S

_DRAIN_LOOK_S = 0.05
_AT_ONCE = 64
"""Connections taken before those taken earlier are looked at: a flood must not use up the process's files."""


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """What clients may take."""

    connections: int = 400
    connections_per_client: int = 300
    """Beyond either, the connection that has been saying nothing whole for longest makes room."""
    head_s: float = 10.0
    """For a head, from its first byte, or from the connection."""
    idle_s: float = 60.0
    """Between two requests of a connection."""
    body_s: float = 30.0
    """For a body, beside one second for each 64 KiB of it."""
    body_bytes: int = 32 << 20
    bodies_bytes: int = 256 << 20
    """Of all connections, at once."""
    linger_s: float = 2.0
    """For the rest of a request that was refused, so that its sender reads why."""
    half_closed_s: float = 0.5
    stop_grace_s: float = 1.0


@dataclass(eq=False, slots=True)
class _Connection:
    client: str
    task: "asyncio.Task[None]"
    answering: bool = False
    held_bytes: int = 0


@dataclass(slots=True)
class Front:
    """Serves a listening socket from a thread of its own.

    Args:
        listener: bound and listening.
        dispatch: what is done with requests that were let in.
    """

    listener: socket.socket
    admission: Admission
    dispatch: Dispatch
    key: ApiKey | None = None
    limits: FrontLimits = FrontLimits()
    pages: Mapping[tuple[str, str], Page] = field(default_factory=dict)
    """Method and path -> what is answered there without the model's server."""
    _connections: list[_Connection] = field(default_factory=list)
    _held_bytes: int = 0
    _draining: bool = False
    _loop: Any = None
    _stop: Any = None
    _server: Any = None
    _thread: Any = None

    def start(self) -> None:
        """Begin to answer."""
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="front", daemon=True)
        self._thread.start()
        started.result()

    def drain(self, seconds: float) -> int:
        """Take no more requests, and give those under way so long to be answered.

        Returns:
            How many are still under way.
        """
        if self._thread is None:
            return 0
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._begin_draining)
        ends = time.monotonic() + seconds
        while (left := self.answering) and time.monotonic() < ends:
            time.sleep(_DRAIN_LOOK_S)
        return left

    @property
    def answering(self) -> int:
        """Requests under way."""
        return sum(connection.answering for connection in list(self._connections))

    def _begin_draining(self) -> None:
        self._draining = True
        self._server.close()
        for connection in self._connections:
            if not connection.answering:
                connection.task.cancel()

    def stop(self) -> None:
        """Take no more, give answers under way a moment, and end. Safe to call twice, or before `start`."""
        if self._thread is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None
        self.listener.close()

    def _run(self, started: "Future[None]") -> None:
        asyncio.run(self._serve(started))

    async def _serve(self, started: "Future[None]") -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.dispatch.begin()
        self._server = await asyncio.start_server(self._accept, sock=self.listener, limit=64 << 10, backlog=_AT_ONCE)
        started.set_result(None)
        await self._stop.wait()
        self._server.close()
        for connection in list(self._connections):
            if not connection.answering:
                connection.task.cancel()
        tasks = [connection.task for connection in self._connections]
        if tasks:
            _, slow = await asyncio.wait(tasks, timeout=self.limits.stop_grace_s)
            for task in slow:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        client = str(peer[0]) if isinstance(peer, tuple) else ""
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(client, task)
        try:
            self._make_room(client)
            self._connections.append(connection)
            incoming = Incoming(reader, lambda count: self._hold(connection, count))
            await self._converse(connection, incoming, writer)
        except HttpRefusal as error:
            _refuse(writer, error, [])
        except (Gone, OSError, asyncio.CancelledError):
            pass
        finally:
            if connection in self._connections:
                self._connections.remove(connection)
            self._held_bytes -= connection.held_bytes
            with contextlib.suppress(OSError, asyncio.CancelledError):
                writer.close()
                async with asyncio.timeout(1):
                    await writer.wait_closed()
            writer.transport.abort()

    def _make_room(self, client: str) -> None:
        limits = self.limits
        own = [other for other in self._connections if other.client == client]
        full = own if len(own) >= limits.connections_per_client else self._connections
        if len(own) < limits.connections_per_client and len(self._connections) < limits.connections:
            return
        # The list is in order of coming; one that waits for its answer keeps its place.
        oldest = next((other for other in full if not other.answering), None)
        if oldest is None:
            raise HttpRefusal(503, "too many requests are under way; try again later")
        self._connections.remove(oldest)
        oldest.task.cancel()

    async def _converse(self, connection: _Connection, incoming: Incoming, writer: asyncio.StreamWriter) -> None:
        wait_s, more = self.limits.head_s, True
        while more and not self._draining and not self._stop.is_set():
            connection.answering = False
            if not incoming.waiting_bytes:
                async with asyncio.timeout(wait_s):
                    await incoming.wait_for_more()
            cors: list[tuple[str, str]] = []
            try:
                head = await self._read_head(incoming)
                self.admission.check(head)
                cors = _cors(head)
                if self.key is not None:
                    self.key.check(head)
                more = await self._answer(connection, head, incoming, writer, cors) and not head.asks_to_close
            except HttpRefusal as error:
                # What follows a request that was not taken may be the rest of it.
                _refuse(writer, error, cors)
                async with asyncio.timeout(self.limits.head_s):
                    await writer.drain()
                writer.write_eof()
                await incoming.discard(self.limits.linger_s)
                return
            finally:
                self._hold(connection, incoming.waiting_bytes - connection.held_bytes)
            wait_s = self.limits.idle_s

    async def _read_head(self, incoming: Incoming) -> RequestHead:
        try:
            async with asyncio.timeout(self.limits.head_s):
                return parse_request_head(await incoming.read_head())
        except TimeoutError:
            raise HttpRefusal(408, f"the head took longer than {self.limits.head_s:g} s") from None

    async def _answer(
        self,
        connection: _Connection,
        head: RequestHead,
        incoming: Incoming,
        writer: asyncio.StreamWriter,
        cors: list[tuple[str, str]],
    ) -> bool:
        """Returns whether the connection can go on."""
        if head.method == "OPTIONS":
            writer.write(_preflight(cors))
            return head.body_bytes == 0
        body = await self._read_body(head, incoming, writer)
        page = self.pages.get(("GET" if head.method == "HEAD" else head.method, head.path))
        if page is not None:
            headers, content = page.answer(head.get("accept-encoding") or "")
            writer.write(format_head("HTTP/1.1 200 OK", [*headers, *cors]))
            writer.write(content if head.method != "HEAD" else b"")
            async with asyncio.timeout(WRITE_STALL_S):
                await writer.drain()
            return True
        connection.answering = True
        # The client is watched while it waits, so that nothing is computed for one that left.
        work = asyncio.ensure_future(self.dispatch.answer(Asked(head, body, writer, cors)))
        watching = asyncio.ensure_future(incoming.watch())
        try:
            await asyncio.wait((work, watching), return_when=asyncio.FIRST_COMPLETED)
            # Some say that they have no more to say, and still listen.
            await asyncio.wait((work,), timeout=self.limits.half_closed_s)
            if not work.done():
                raise Gone
            return work.result()
        finally:
            for task in (work, watching):
                task.cancel()
            await asyncio.gather(work, watching, return_exceptions=True)

    def _hold(self, connection: _Connection, count: int) -> None:
        """Count bytes of requests in memory (fewer, where `count` is negative)."""
        if count > 0 and self._held_bytes + count > self.limits.bodies_bytes:
            raise HttpRefusal(503, "too many large requests are under way; try again later")
        connection.held_bytes += count
        self._held_bytes += count

    async def _read_body(self, head: RequestHead, incoming: Incoming, writer: asyncio.StreamWriter) -> bytes:
        if head.body_bytes == 0:
            return b""
        expected = head.get("expect")
        if expected is not None:
            if expected.lower() != "100-continue":
                raise HttpRefusal(417, "an expectation other than 100-continue is not understood")
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        seconds = self.limits.body_s + (head.body_bytes or self.limits.body_bytes) / (64 << 10)
        try:
            async with asyncio.timeout(seconds):
                return await incoming.read_body(head, self.limits.body_bytes)
        except TimeoutError:
            raise HttpRefusal(408, f"the body took longer than {seconds:.0f} s") from None


def _cors(head: RequestHead) -> list[tuple[str, str]]:
    """For a page that was let in: that it may read the answer."""
    origin = head.get("origin")
    return [] if origin is None else [("access-control-allow-origin", origin), ("vary", "origin")]


def _preflight(cors: list[tuple[str, str]]) -> bytes:
    allowed = [
        ("access-control-allow-methods", "GET, HEAD, POST, DELETE"),
        ("access-control-allow-headers", "authorization, content-type, x-api-key, x-requested-with"),
        ("access-control-max-age", "600"),
    ]
    return format_head("HTTP/1.1 204 No Content", [*cors, *allowed])


def _refuse(writer: asyncio.StreamWriter, error: HttpRefusal, cors: list[tuple[str, str]]) -> None:
    kind = "authentication_error" if error.status == 401 else "invalid_request_error"
    kind = kind if error.status < 500 else "server_error"
    document = {"error": {"code": error.status, "message": error.message, "type": kind}}
    body = json.dumps(document).encode()
    headers = [("content-type", "application/json; charset=utf-8"), ("content-length", str(len(body)))]
    if error.retry_after_s is not None:
        headers.append(("retry-after", str(error.retry_after_s)))
    if error.status == 401:
        headers.append(("www-authenticate", "Bearer"))
    with contextlib.suppress(ConnectionError):
        writer.write(format_head(f"HTTP/1.1 {error.status} Refused", [*headers, ("connection", "close"), *cors]) + body)
