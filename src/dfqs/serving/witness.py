"""Stands between a tool and a model's server, passes everything on, and remembers what was asked and what was answered.

For proofs: what a tool prints is held against what the server gave it, whatever its exit code says. On this machine
only, for as long as a `with` block.
"""

import contextlib
import http.client
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from dfqs.storage.closing import Closing

_PIECE_BYTES = 4096
_LIMIT_BYTES = 32 << 20
_HOP_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding", "host", "content-length", "accept-encoding"})
"""Answers come as plain text, to be read here; a page's own files, which the server has packed alone, do not."""
_WAIT_S = 1800.0
_POLL_S = 0.05
_STOPS = [".", "!", "?", "\n\n"]


@dataclass(frozen=True, slots=True)
class Witnessed:
    """One request and its answer, as bytes of their bodies."""

    method: str
    path: str
    request: bytes
    status: int
    response: bytes

    def asks(self, text: str) -> bool:
        """Whether a text stands in the request, whichever way its JSON writes it."""
        with contextlib.suppress(ValueError, RecursionError):
            return text in json.dumps(json.loads(self.request), ensure_ascii=False)
        return False

    def answer(self) -> str | None:
        """The text of a chat completion, streamed or not; None: it was something else, or no text came."""
        with contextlib.suppress(ValueError, RecursionError, UnicodeDecodeError):
            text = self.response.decode("utf-8")
            if text.lstrip().startswith("{"):
                return _content(json.loads(text), "message")
            pieces = [_content(json.loads(data), "delta") for data in _events(text)]
            return "".join(piece for piece in pieces if piece) or None
        return None


class Witness(Closing):
    """For use in a `with` block: `url` leads to the server, and `seen` grows.

    Args:
        url: of the server, without /v1.
        most_tokens: answers are asked to end with their first sentence, or after so many tokens: a small model need not
            come to an end by itself, and some tools print nothing of an answer that was cut. None: as the tool asks.
    """

    def __init__(self, url: str, *, most_tokens: int | None = None) -> None:
        self.seen: list[Witnessed] = []
        parts = urlsplit(url)
        handler = _handler(parts.hostname or "", parts.port or 80, self.seen, most_tokens)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Its own address, without /v1."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(host: str, port: int, seen: list[Witnessed], most_tokens: int | None) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def pass_on(self) -> None:
            length = self.headers.get("Content-Length", "0")
            body = self.rfile.read(min(int(length), _LIMIT_BYTES)) if length.isdigit() else b""
            connection = http.client.HTTPConnection(host, port, timeout=_WAIT_S)
            try:
                dropped = _HOP_HEADERS - ({"accept-encoding"} if self.command == "GET" else set())
                headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
                connection.request(self.command, self.path, _shortened(body, most_tokens) or None, headers)
                answer = connection.getresponse()
                status, response = answer.status, self._relay(answer)
            except OSError:
                status, response = 502, b""
                with contextlib.suppress(OSError):
                    self.send_error(502)
            finally:
                connection.close()
            seen.append(Witnessed(self.command, self.path, body, status, response))

        def _relay(self, answer: http.client.HTTPResponse) -> bytes:
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP_HEADERS:
                    self.send_header(name, value)
            # Its end is the connection's.
            self.send_header("Connection", "close")
            self.end_headers()
            data = b""
            while len(data) < _LIMIT_BYTES and (piece := answer.read1(_PIECE_BYTES)):
                data += piece
                with contextlib.suppress(OSError):
                    self.wfile.write(piece)
                    self.wfile.flush()
            return data

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing to say."""

    # Names that http.server looks for.
    Handler.do_GET = Handler.do_POST = Handler.pass_on  # type: ignore[attr-defined]
    return Handler


def _shortened(body: bytes, most_tokens: int | None) -> bytes:
    """A request for a sentence of so many tokens at most; what is no request for tokens stays as it is."""
    if most_tokens is None:
        return body
    with contextlib.suppress(ValueError, RecursionError):
        request = json.loads(body)
        if isinstance(request, dict) and ("messages" in request or "prompt" in request):
            request.pop("max_completion_tokens", None)
            return json.dumps({**request, "max_tokens": most_tokens, "stop": _STOPS}).encode()
    return body


def _events(text: str) -> list[str]:
    lines = (line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:"))
    return [line for line in lines if line and line != "[DONE]"]


def _content(document: Any, key: str) -> str | None:
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    message = choices[0].get(key)
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else None
