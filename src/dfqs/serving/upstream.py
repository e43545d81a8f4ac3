"""The model's own server behind the front, on a socket of this user alone: one request, and its answer relayed."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqs.serving.http_head import (
    HEAD_LIMIT_BYTES,
    HOP_BY_HOP,
    HttpRefusal,
    RequestHead,
    ResponseHead,
    format_head,
    parse_response_head,
)

_PIECE = 64 << 10
_LAST_CHUNK = b"0\r\n\r\n"
_EVENTS = "text/event-stream"
_BETWEEN_EVENTS = b"\n\n\r\n"
"""An event ends, and its chunk."""
_TAIL_BYTES = 4 << 10
"""Of an answer, kept for how it ended and for the counts that llama-server puts there."""
_CORS = "access-control-"
_OURS = ("host", "origin", "x-conversation-id")
"""Who asked from where was settled here; what the server knows of that would only make it decide a second time. With a
conversation's id it goes on to compute, and to keep what it computed, for a client that left."""
WRITE_STALL_S = 60.0
"""A client that takes nothing of its answer for so long is cut."""


class Unreachable(HttpRefusal):
    """Nobody answers on the socket: nothing was asked, so it can be asked again."""

    def __init__(self) -> None:
        super().__init__(502, "the model's server does not answer")


@dataclass(slots=True)
class Relay:
    """One request passed on, and its answer back as it comes; nothing is kept, so that a stream stays one.

    Args:
        extra: headers of ours for the answer.
    """

    socket_path: Path
    head: RequestHead
    body: bytes
    client: asyncio.StreamWriter
    extra: Sequence[tuple[str, str]]
    status: int | None = None
    """Of the answer, once its head was passed on."""
    takes_an_event: bool = False
    """It is a stream of events that stands between two of them, so one more can be sent."""
    ending: bytes = b""
    """Its last bytes, as they came."""

    async def run(self) -> bool:
        """Returns whether the client got all of it, so that the connection can take another request.

        Raises:
            Unreachable: see there.
            HttpRefusal: there is no answer to pass on; nothing was written to the client yet.
            ConnectionError, TimeoutError: the client is gone, or takes nothing.
        """
        async with _connected(self.socket_path) as (reader, writer):
            writer.write(_request(self.head, self.body) + self.body)
            try:
                answer = parse_response_head(await reader.readuntil(b"\r\n\r\n"))
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
                raise HttpRefusal(502, "the model's server gave no answer") from None
            self.client.write(_answer(answer, self.head, self.extra))
            self.status = answer.status
            return await self._pass_body(reader, answer)

    async def _pass_body(self, reader: asyncio.StreamReader, answer: ResponseHead) -> bool:
        if self.head.method == "HEAD" or answer.status in (204, 304):
            await _drain(self.client)
            return True
        has_events = answer.chunked and (answer.get("content-type") or "").startswith(_EVENTS)
        # An answer of which nothing came can take an event, too.
        self.takes_an_event = has_events
        left, tail = answer.body_bytes, b""
        while left is None or left > 0:
            try:
                piece = await reader.read(_PIECE if left is None else min(_PIECE, left))
            except OSError:
                # It died with what we had said unread.
                piece = b""
            if not piece:
                break
            tail = (tail + piece)[-_TAIL_BYTES:]
            self.takes_an_event = has_events and tail.endswith(_BETWEEN_EVENTS)
            self.client.write(piece)
            await _drain(self.client)
            if left is not None:
                left -= len(piece)
        self.ending = tail
        return tail.endswith(_LAST_CHUNK) if answer.chunked else left == 0


def _request(head: RequestHead, body: bytes) -> bytes:
    kept = [(k, v) for k, v in head.headers if k not in HOP_BY_HOP and k not in _OURS]
    length = [("content-length", str(len(body)))] if body or head.method == "POST" else []
    headers = [("host", "localhost"), *kept, *length, ("connection", "close")]
    return format_head(f"{head.method} {head.target} HTTP/1.1", headers)


def _answer(answer: ResponseHead, head: RequestHead, extra: Sequence[tuple[str, str]]) -> bytes:
    kept = [(k, v) for k, v in answer.headers if k not in HOP_BY_HOP and not k.startswith(_CORS)]
    if answer.chunked:
        kept.append(("transfer-encoding", "chunked"))
    elif answer.body_bytes is not None and answer.status not in (204, 304):
        kept.append(("content-length", str(answer.body_bytes)))
    elif answer.status not in (204, 304) and head.method != "HEAD":
        kept.append(("connection", "close"))
    return format_head(f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Answer')}", [*kept, *extra])


async def fetch(socket_path: Path, head: RequestHead, limit_bytes: int) -> bytes | None:
    """The body of a short answer of status 200; None where there is none.

    Raises:
        Unreachable: see there.
    """
    async with _connected(socket_path) as (reader, writer):
        try:
            writer.write(_request(head, b""))
            answer = parse_response_head(await reader.readuntil(b"\r\n\r\n"))
            if answer.status != 200 or answer.body_bytes is None or answer.body_bytes > limit_bytes:
                return None
            return await reader.readexactly(answer.body_bytes)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, HttpRefusal):
            return None


@contextlib.asynccontextmanager
async def _connected(socket_path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Raises Unreachable, see there. Closing is what tells the server that nobody waits for its answer any more."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket_path), limit=HEAD_LIMIT_BYTES * 2)
    except OSError:
        raise Unreachable from None
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def format_event(message: str, status: int = 500) -> bytes:
    """An error as one event of a stream, in a chunk of its own (HTML standard, "Server-sent events")."""
    document = {"error": {"code": status, "message": message, "type": "server_error"}}
    event = f"data: {json.dumps(document)}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(event), event)


async def _drain(client: asyncio.StreamWriter) -> None:
    async with asyncio.timeout(WRITE_STALL_S):
        await client.drain()


_REASONS = {
    200: "OK",
    204: "No Content",
    304: "Not Modified",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
