"""The model's own server behind the front, on a socket of this user alone: one request, and its answer relayed."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqs.runtime.http_head import (
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
_TAIL_BYTES = max(len(_LAST_CHUNK), len(_BETWEEN_EVENTS))
_CORS = "access-control-"
_OURS = ("host", "origin", "x-conversation-id")
"""Who asked from where was settled here; what the server knows of that would only make it decide a second time. With a
conversation's id it goes on to compute, and to keep what it computed, for a client that left."""
WRITE_STALL_S = 60.0
"""A client that takes nothing of its answer for so long is cut."""


@dataclass(frozen=True, slots=True)
class Relayed:
    """How an answer went."""

    whole: bool
    """The client got all of it, and the connection can take another request."""
    takes_an_event: bool = False
    """It is a stream of events that broke off between two of them, so one more can be sent."""


async def relay(
    socket_path: Path,
    head: RequestHead,
    body: bytes,
    client: asyncio.StreamWriter,
    extra: Sequence[tuple[str, str]],
    more: bytes = b"",
) -> Relayed:
    """Pass one request on, and its answer back as it comes; nothing is kept, so that a stream stays one.

    Args:
        extra: headers of ours for the answer.
        more: bytes of ours after an answer that is not refused and tells its length.

    Raises:
        HttpRefusal: there is no answer to pass on; nothing was written to the client yet.
        ConnectionError, TimeoutError: the client is gone, or takes nothing.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket_path), limit=HEAD_LIMIT_BYTES * 2)
    except OSError:
        raise HttpRefusal(502, "the model's server does not answer") from None
    try:
        writer.write(_request(head, body) + body)
        try:
            answer = parse_response_head(await reader.readuntil(b"\r\n\r\n"))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            raise HttpRefusal(502, "the model's server gave no answer") from None
        if answer.status != 200 or answer.body_bytes is None:
            more = b""
        client.write(_answer(answer, head, extra, len(more)))
        return await _relay_body(reader, answer, head, client, more)
    finally:
        # Closing is what tells the server that nobody waits for the answer any more.
        writer.transport.abort()


def _request(head: RequestHead, body: bytes) -> bytes:
    kept = [(k, v) for k, v in head.headers if k not in HOP_BY_HOP and k not in _OURS]
    length = [("content-length", str(len(body)))] if body or head.method == "POST" else []
    headers = [("host", "localhost"), *kept, *length, ("connection", "close")]
    return format_head(f"{head.method} {head.target} HTTP/1.1", headers)


def _answer(answer: ResponseHead, head: RequestHead, extra: Sequence[tuple[str, str]], more_bytes: int) -> bytes:
    kept = [(k, v) for k, v in answer.headers if k not in HOP_BY_HOP and not k.startswith(_CORS)]
    if answer.chunked:
        kept.append(("transfer-encoding", "chunked"))
    elif answer.body_bytes is not None and answer.status not in (204, 304):
        kept.append(("content-length", str(answer.body_bytes + more_bytes)))
    elif answer.status not in (204, 304) and head.method != "HEAD":
        kept.append(("connection", "close"))
    return format_head(f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Answer')}", [*kept, *extra])


async def _relay_body(
    reader: asyncio.StreamReader, answer: ResponseHead, head: RequestHead, client: asyncio.StreamWriter, more: bytes
) -> Relayed:
    if head.method == "HEAD" or answer.status in (204, 304):
        await _drain(client)
        return Relayed(True)
    # An answer of which nothing came can take an event, too.
    left, tail = answer.body_bytes, _BETWEEN_EVENTS
    while left is None or left > 0:
        piece = await reader.read(_PIECE if left is None else min(_PIECE, left))
        if not piece:
            break
        client.write(piece)
        await _drain(client)
        tail = (tail + piece)[-_TAIL_BYTES:]
        if left is not None:
            left -= len(piece)
    if left == 0 and more:
        client.write(more)
        await _drain(client)
    if not answer.chunked:
        return Relayed(left == 0)
    has_events = (answer.get("content-type") or "").startswith(_EVENTS)
    return Relayed(tail.endswith(_LAST_CHUNK), has_events and tail.endswith(_BETWEEN_EVENTS))


def format_event(message: str) -> bytes:
    """An error as one event of a stream, in a chunk of its own (HTML standard, "Server-sent events")."""
    document = {"error": {"code": 500, "message": message, "type": "server_error"}}
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
}
