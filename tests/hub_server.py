"""A real HTTP server on this machine that speaks as much of the Hub's API as a pull needs, and misbehaves on demand.

Two listeners, as with the real Hub: one answers `api/models/...` and redirects `resolve` (X-Repo-Commit, X-Linked-Etag,
X-Linked-Size) to signed addresses on the other, the storage, which serves ranges with an ETag.
"""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qs, quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE_BYTES = 16384


@dataclass
class Request:
    """One request to the storage, as a trouble sees it."""

    name: str
    start: int
    end: int
    number: int
    """Counts requests for data over all files, from 0."""
    attempt: int
    """Counts requests with this very start, from 0."""


@dataclass
class Reply:
    """What the storage is about to send; a trouble changes it."""

    status: int
    body: bytes
    headers: dict[str, str]
    send_bytes: int | None = None
    """Close the connection after so many bytes of the body."""
    stall_after: int | None = None
    """Send nothing more after so many bytes, and keep the connection open."""
    trickle: bool = False
    """Send a byte at a time, some 40 a second: never a stall, and never done."""


Trouble = Callable[[Request, Reply], None]


@dataclass
class FakeHub:
    """The repository, its troubles, and a record of what was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    repo: str = "owner/model"
    commit: str = COMMIT
    token: str | None = None
    """Asked for, where set."""
    gated: bool = False
    git_files: frozenset[str] = frozenset()
    """Served by the Hub itself, as files outside large-file storage are."""
    trouble: Trouble | None = None
    api_troubles: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """(status, headers) to answer the next API requests with."""
    raw_answer: Callable[[str, BinaryIO], bool] | None = None
    """Given "api" or "storage" and the connection, answers in place of the server; True where it did."""
    listing_override: list[dict[str, Any]] | None = None
    promised: dict[str, str] = field(default_factory=dict)
    """SHA-256 that the Hub claims in place of the true one."""
    valid_uses: int | None = None
    """A signed address is good for so many requests."""
    bytes_per_s: float | None = None
    """Of one connection."""
    data_requests: list[Request] = field(default_factory=list)
    storage_tokens: list[str | None] = field(default_factory=list)
    resolved: Counter[str] = field(default_factory=Counter)
    sent_bytes: int = 0
    sending: int = 0
    _uses: Counter[str] = field(default_factory=Counter)
    _attempts: Counter[tuple[str, int]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _servers: list[ThreadingHTTPServer] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "FakeHub":
        for handler in (_HubHandler, _StorageHandler):
            server = _QuietServer(("127.0.0.1", 0), handler)
            server.daemon_threads = True
            cast(Any, server).hub = self
            threading.Thread(target=server.serve_forever, args=(0.002,), daemon=True).start()
            self._servers.append(server)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_address[1]}"

    @property
    def storage(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_address[1]}"

    def sha256(self, name: str) -> str:
        return self.promised.get(name) or hashlib.sha256(self.files[name]).hexdigest()

    def siblings(self) -> list[dict[str, Any]]:
        if self.listing_override is not None:
            return self.listing_override
        found = []
        for name, data in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
            if name not in self.git_files:
                entry["lfs"] = {"size": len(data), "sha256": self.sha256(name), "pointerSize": 134}
            found.append(entry)
        return found

    def reset_counts(self) -> None:
        with self._lock:
            self.sent_bytes = 0
            self.data_requests.clear()

    def note_request(self, name: str, start: int, end: int) -> Request:
        with self._lock:
            attempt = self._attempts[(name, start)]
            self._attempts[(name, start)] += 1
            request = Request(name, start, end, len(self.data_requests), attempt)
            self.data_requests.append(request)
            return request

    def note_sent(self, count: int) -> None:
        with self._lock:
            self.sent_bytes += count

    def note_sending(self, change: int) -> None:
        with self._lock:
            self.sending += change

    def settle(self) -> None:
        """Wait until nothing is being sent any more: a client that was killed has its answers still under way."""
        deadline = time.monotonic() + 10
        while self.sending and time.monotonic() < deadline:
            time.sleep(0.005)

    def use(self, signature: str) -> bool:
        """Whether the signed address is still good."""
        with self._lock:
            self._uses[signature] += 1
            return self.valid_uses is None or self._uses[signature] <= self.valid_uses


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A killed client resets its connections; that is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> FakeHub:
        return cast(FakeHub, cast(Any, self.server).hub)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answered_raw(self, server: str) -> bool:
        """Whether a test answered in bytes of its own making."""
        if self.hub.raw_answer is None:
            return False
        try:
            answered = self.hub.raw_answer(server, cast(BinaryIO, self.wfile))
        except (BrokenPipeError, ConnectionResetError):
            answered = True
        self.close_connection = self.close_connection or answered
        return answered

    def send_range(self, name: str, data: bytes, etag: str) -> None:
        """Data of a file, whole or a range of it, with whatever trouble is wanted."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(match[1]), min(int(match[2]) + 1, len(data))) if match else (0, len(data))
        if start >= len(data):
            self.answer(416)
            return
        headers = {"ETag": f'"{etag}"'}
        if match:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        reply = Reply(206 if match else 200, data[start:end], headers)
        request = self.hub.note_request(name, start, end)
        if self.hub.trouble is not None:
            self.hub.trouble(request, reply)
        self.send_response(reply.status)
        for key, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.hub.note_sending(1)
        try:
            self._send_body(reply)
        finally:
            self.hub.note_sending(-1)

    def _send_body(self, reply: Reply) -> None:
        limit = min(len(reply.body), *(n for n in (reply.send_bytes, reply.stall_after) if n is not None), 1 << 62)
        try:
            piece_bytes, pause_s = (1, 0.025) if reply.trickle else (PIECE_BYTES, 0)
            for offset in range(0, limit, piece_bytes):
                piece = reply.body[offset : min(offset + piece_bytes, limit)]
                # Counted first: whoever has received it all finds it counted.
                self.hub.note_sent(len(piece))
                self.wfile.write(piece)
                if pause_s and self.hub.closing.wait(pause_s):
                    return
                if self.hub.bytes_per_s is not None:
                    time.sleep(len(piece) / self.hub.bytes_per_s)
            if reply.stall_after is not None:
                self.wfile.flush()
                self.hub.closing.wait(20)
            if limit < len(reply.body):
                self.close_connection = True
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


class _HubHandler(_Handler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.hub
        path = unquote(urlsplit(self.path).path)
        if self.answered_raw("api"):
            return
        if hub.api_troubles:
            status, headers = hub.api_troubles.pop(0)
            self.answer(status, b"{}", headers)
        elif path.startswith(f"/api/models/{hub.repo}"):
            self._model_info(path)
        elif match := re.fullmatch(rf"/{re.escape(hub.repo)}/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2])
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def _model_info(self, path: str) -> None:
        hub = self.hub
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        revision = path.partition("/revision/")[2] or "main"
        if revision not in ("main", hub.commit):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        info = {"id": hub.repo, "modelId": hub.repo, "sha": hub.commit, "siblings": hub.siblings()}
        body = json.dumps({**info, "tags": [], "downloads": 0, "likes": 0, "private": False, "gated": False}).encode()
        self.answer(200, body, {"Content-Type": "application/json"})

    def _resolve(self, revision: str, name: str) -> None:
        hub = self.hub
        if hub.gated:
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            return
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.answer(401, b"{}", {"X-Error-Code": "GatedRepo"})
            return
        if name not in hub.files or revision not in ("main", hub.commit):
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        data = hub.files[name]
        if name in hub.git_files:
            if self.command == "HEAD":
                self.send_response(200)
                self.send_header("X-Repo-Commit", hub.commit)
                self.send_header("ETag", f'"{git_sha1(data)}"')
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
            else:
                self.send_range(name, data, git_sha1(data))
            return
        hub.resolved[name] += 1
        headers = {
            "Location": f"{hub.storage}/blob/{quote(name)}?signature={hub.resolved[name]}-{quote(name)}",
            "X-Repo-Commit": hub.commit,
            "X-Linked-Etag": f'"{hub.sha256(name)}"',
            "X-Linked-Size": str(len(data)),
        }
        self.answer(302, b"", headers)


class _StorageHandler(_Handler):
    def do_GET(self) -> None:
        hub = self.hub
        if self.answered_raw("storage"):
            return
        parts = urlsplit(self.path)
        name = unquote(parts.path).removeprefix("/blob/")
        hub.storage_tokens.append(self.headers.get("Authorization"))
        if not hub.use(parse_qs(parts.query)["signature"][0]):
            self.answer(403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
            return
        self.send_range(name, hub.files[name], hashlib.sha256(hub.files[name]).hexdigest())
