"""Heads of HTTP/1.1 messages, read strictly: what two programs could read in two ways is refused.

Source: RFC 9112. A request that one side takes for one and the other for two ("smuggling") needs a head with two
lengths, a line that ends in a bare LF, a folded header or a space before a colon; none of these comes from an honest
client of today.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

HEAD_LIMIT_BYTES = 32 << 10
HEADER_LIMIT = 100
TARGET_LIMIT_BYTES = 8 << 10

METHODS = ("GET", "HEAD", "POST", "OPTIONS", "DELETE")
_CONNECTION_HEADERS = "connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer upgrade"
HOP_BY_HOP = frozenset((*_CONNECTION_HEADERS.split(), "transfer-encoding", "expect", "content-length"))
"""Headers for one connection only, and the body's length, which whoever sends a body says himself."""

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(rb"/[\x21-\x7e]*")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?")
_SINGLE = ("host", "origin", "content-length", "content-type", "transfer-encoding", "expect", "authorization")


class HttpRefusal(Exception):
    """A message that is not taken on.

    Args:
        status: of the answer.
        message: one sentence for whoever asked.
        retry_after_s: when it may be asked again.
    """

    def __init__(self, status: int, message: str, retry_after_s: int | None = None) -> None:
        self.status, self.message, self.retry_after_s = status, message, retry_after_s
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Head:
    """The headers of a message: names in lower case, in their order."""

    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def asks_to_close(self) -> bool:
        values = ",".join(value for key, value in self.headers if key == "connection")
        return "close" in (token.strip().lower() for token in values.split(","))


@dataclass(frozen=True, slots=True)
class RequestHead(Head):
    """The head of a request whose body has one length."""

    method: str
    target: str
    body_bytes: int | None
    """None: it comes in chunks."""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True, slots=True)
class ResponseHead(Head):
    """The head of an answer."""

    status: int
    body_bytes: int | None
    """None: in chunks, or as long as the connection lasts."""
    chunked: bool


def parse_request_head(data: bytes) -> RequestHead:
    """A request's head, from its first byte to the empty line that ends it.

    Raises:
        HttpRefusal: it is no head of HTTP/1.1, or can be read in two ways.
    """
    first, headers = _split(data)
    parts = first.split(b" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]):
        raise HttpRefusal(400, "the request line is not 'METHOD /path HTTP/1.1'")
    method, target, version = parts
    if version != b"HTTP/1.1":
        raise HttpRefusal(505, "this server speaks HTTP/1.1")
    if method.decode() not in METHODS:
        raise HttpRefusal(405, f"the method is none of {', '.join(METHODS)}")
    if len(target) > TARGET_LIMIT_BYTES:
        raise HttpRefusal(414, f"the address is longer than {TARGET_LIMIT_BYTES:,} bytes")
    if not _TARGET.fullmatch(target):
        raise HttpRefusal(400, "the address is not a path that begins with /")
    path = unquote(target.partition(b"?")[0].decode(), "latin-1")
    if ".." in path.replace("\\", "/").split("/") or any(character < " " for character in path):
        raise HttpRefusal(400, "the address leads out of where it begins, or has a control character in it")
    counts = {name: sum(key == name for key, _ in headers) for name in _SINGLE}
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise HttpRefusal(400, f"the header {repeated[0]} is given twice")
    if not counts["host"]:
        raise HttpRefusal(400, "the header host is missing")
    length: int | None = _length(headers)
    if counts["transfer-encoding"]:
        if counts["content-length"]:
            raise HttpRefusal(400, "content-length and transfer-encoding are both given")
        if dict(headers)["transfer-encoding"].lower() != "chunked":
            raise HttpRefusal(501, "a transfer-encoding other than chunked is not understood")
        length = None
    return RequestHead(tuple(headers), method.decode(), target.decode(), length)


def parse_response_head(data: bytes) -> ResponseHead:
    """An answer's head.

    Raises:
        HttpRefusal: it is none (status 502).
    """
    try:
        first, headers = _split(data)
        match = _STATUS_LINE.fullmatch(first)
        if match is None:
            raise HttpRefusal(502, "no status line")
        chunked = dict(headers).get("transfer-encoding", "").lower() == "chunked"
        has_length = any(key == "content-length" for key, _ in headers)
        length = _length(headers) if has_length and not chunked else None
    except HttpRefusal as error:
        raise HttpRefusal(502, f"the model's server gave no proper answer: {error.message}") from None
    return ResponseHead(tuple(headers), int(match[1]), length, chunked)


def format_head(first_line: str, headers: Sequence[tuple[str, str]]) -> bytes:
    """A head as bytes, with its empty line."""
    lines = [first_line, *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _split(data: bytes) -> tuple[bytes, list[tuple[str, str]]]:
    text = data.removesuffix(b"\r\n\r\n")
    first, *lines = text.split(b"\r\n")
    if b"\n" in first or b"\r" in first or b"\0" in first:
        raise HttpRefusal(400, "the first line has a bare line end, or a zero byte, in it")
    if len(lines) > HEADER_LIMIT:
        raise HttpRefusal(431, f"more than {HEADER_LIMIT} headers")
    headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            # A folded line begins with a space, which is no name either.
            raise HttpRefusal(400, "a header line is not 'name: value'")
        value = value.strip(b" \t")
        if not _VALUE.fullmatch(value):
            raise HttpRefusal(400, f"the header {name.decode().lower()} has a control character in it")
        headers.append((name.decode().lower(), value.decode("latin-1")))
    return first, headers


def _length(headers: Sequence[tuple[str, str]]) -> int:
    value = dict(headers).get("content-length", "0")
    if not value.isascii() or not value.isdigit() or len(value) > 18:
        raise HttpRefusal(400, "content-length is no number")
    return int(value)
