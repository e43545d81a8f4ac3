"""A Hub on this machine that costs next to nothing: files go from the page cache into the socket (`sendfile`).

Run: python hub.py FOLDER, which prints its address and serves FOLDER as the repository `owner/model` until it is ended.
It speaks what `hf download` and `dfqs pull` ask: api/models, HEAD and GET of resolve, ranges.
"""

import hashlib
import json
import os
import re
import socket
import sys
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@cache
def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def log_message(self, *_: object) -> None:
        return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/owner/model/tree/"):
            self._answer(
                [
                    {"type": "file", "path": p.name, "oid": "0" * 40, "size": size, "lfs": {"oid": hash_, **lfs}}
                    for p, size, hash_, lfs in self._files()
                ]
            )
        elif path.startswith("/api/models/owner/model"):
            siblings = [
                {"rfilename": p.name, "size": size, "blobId": "0" * 40, "lfs": {"sha256": hash_, **lfs}}
                for p, size, hash_, lfs in self._files()
            ]
            info = {"id": "owner/model", "modelId": "owner/model", "sha": COMMIT, "siblings": siblings, "tags": []}
            self._answer({**info, "downloads": 0, "likes": 0, "private": False, "gated": False})
        elif match := re.fullmatch(r"/owner/model/resolve/[^/]+/([^/]+)", path):
            self._send(self.folder / match[1])
        else:
            self.send_error(404)

    def _files(self) -> list[tuple[Path, int, str, dict[str, int]]]:
        paths = sorted(self.folder.iterdir())
        return [(p, p.stat().st_size, sha256(p), {"size": p.stat().st_size, "pointerSize": 134}) for p in paths]

    def _answer(self, found: object) -> None:
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, path: Path) -> None:
        size = path.stat().st_size
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(match[1]), int(match[2]) + 1 if match[2] else size) if match else (0, size)
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{sha256(path)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Etag", f'"{sha256(path)}"')
        self.send_header("X-Linked-Size", str(size))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.flush()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with path.open("rb") as file:
            while start < end:
                try:
                    start += os.sendfile(self.connection.fileno(), file.fileno(), start, end - start)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                    return


def main() -> None:
    Handler.folder = Path(sys.argv[1])
    for path in Handler.folder.iterdir():
        sha256(path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
