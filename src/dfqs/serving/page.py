"""The web page of llama-server, with one default changed: it offers the model no tools unless a user switches them on.

The page attaches functions of the browser (the time, say) to every request, and a small model then answers with a call
in raw JSON. The page keeps its settings in the browser and takes no default for this one from the server, so the
default is written where the page looks for it, before it looks, and only where the user has not chosen.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

from dfqs.serving.engine_call import call_engine

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
    answer = call_engine(engine, "GET", "/", timeout_s=_TIMEOUT_S, limit_bytes=_LIMIT_BYTES, accept="gzip")
    if answer is None or answer.status != 200:
        return None
    try:
        return gzip.decompress(answer.body) if answer.compressed else answer.body
    except (OSError, EOFError):
        return None
