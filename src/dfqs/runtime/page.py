"""The web page of llama-server, with one default changed: it offers the model no tools unless a user switches them on.

The page attaches functions of the browser (the time, say) to every request, and a small model then answers with a call
in raw JSON. The page keeps its settings in the browser and takes no default for this one from the server, so the
default is written where the page looks for it, before it looks, and only where the user has not chosen.
"""

import gzip
import json
import socket
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 10.0
_LIMIT_BYTES = 8 << 20
_SETTING, _CATEGORIES = "LlamaUi.disabledToolCategories", ["browser"]
_HEAD = b"<head>"
_JSON = "application/json; charset=utf-8"
_NO_TOOLS = b'{"error": "this server runs no tools"}'


@dataclass(frozen=True, slots=True)
class Page:
    """Something that the front answers by itself."""

    content_type: str
    body: bytes

    def answer(self, accepted_encodings: str) -> tuple[list[tuple[str, str]], bytes]:
        """Headers and body for a client that takes these encodings (its `Accept-Encoding`)."""
        headers = [("content-type", self.content_type), ("cache-control", "no-cache"), ("vary", "accept-encoding")]
        if "gzip" not in accepted_encodings.lower():
            return [*headers, ("content-length", str(len(self.body)))], self.body
        packed = gzip.compress(self.body, mtime=0)
        return [*headers, ("content-encoding", "gzip"), ("content-length", str(len(packed)))], packed


def own_pages(engine: Path) -> dict[tuple[str, str], Page]:
    """Method and path -> what the front answers there in place of the model's server behind the socket `engine`."""
    # No tools run on this machine. The server calls asking for them forbidden, and the page logs an error each time.
    pages = {("GET", "/tools"): Page(_JSON, b"[]"), ("POST", "/tools"): Page(_JSON, _NO_TOOLS)}
    html = _fetch_page(engine)
    if html is not None:
        pages["GET", "/"] = pages["GET", "/index.html"] = Page("text/html; charset=utf-8", with_tools_off(html))
    return pages


def with_tools_off(html: bytes) -> bytes:
    """The page with the default; as it is, if it is another page than the one that was known."""
    key, value = json.dumps(_SETTING), json.dumps(json.dumps(_CATEGORIES))
    script = f"<script>try{{localStorage.getItem({key})??localStorage.setItem({key},{value})}}catch{{}}</script>"
    return html.replace(_HEAD, _HEAD + script.encode(), 1)


def _fetch_page(engine: Path) -> bytes | None:
    """None where there is none; the server then says so itself."""
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
    received = b""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(str(engine))
            connection.sendall(request)
            while len(received) < _LIMIT_BYTES and (piece := connection.recv(1 << 16)):
                received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            return None
        return gzip.decompress(body) if b"content-encoding: gzip" in head.lower() else body
    except (OSError, EOFError):
        return None
