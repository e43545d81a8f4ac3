"""A real HTTP server on this machine that speaks as much of the Hub's API as publishing needs: repositories,
`preupload`, large-file storage (whole or in parts), commits. It keeps what it is sent by its hash, and counts it.
"""

import base64
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

from hub_server import git_sha1

TOKEN = "hf_notarealtoken0123456789"


@dataclass
class UploadHub:
    """One user's Hub."""

    token: str | None = TOKEN
    lfs_from: int = 100_000
    """Files of so many bytes go to large-file storage, and every GGUF."""
    xet: bool = False
    """Speaks the protocol of content-addressed storage too, as far as an upload needs: blocks, and lists of them."""
    blocks: Counter[str] = field(default_factory=Counter)
    """Blocks by hash, and how often each was sent."""
    part_bytes: int | None = None
    """Of uploads in parts; None: each file in one."""
    gitignore: frozenset[str] = frozenset()
    refuse_card: str | None = None
    on_put: Callable[[str, int], None] = lambda oid, number: None
    """Told of each upload to the storage (hash, the how manieth of it), before it is read; may break it off."""
    fail: dict[str, int] = field(default_factory=dict)
    """What of the API answers with which status."""
    private: bool | None = None
    commits: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    lfs_oids: dict[str, str] = field(default_factory=dict)
    """Files in large-file storage, with their SHA-256."""
    stored: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    puts: Counter[str] = field(default_factory=Counter)
    storage_tokens: list[str | None] = field(default_factory=list)
    created: bool = False
    _server: ThreadingHTTPServer | None = None

    def __enter__(self) -> "UploadHub":
        self._server = _QuietServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        cast(Any, self._server).hub = self
        threading.Thread(target=self._server.serve_forever, args=(0.002,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def commit(self) -> str:
        return hashlib.sha1(b"%d" % len(self.commits)).hexdigest()


def is_model(name: str) -> bool:
    """What the Hub's `.gitattributes` of a new repository tells it to store apart."""
    return name.endswith(".gguf")


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A killed client resets its connections; that is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> UploadHub:
        return cast(UploadHub, cast(Any, self.server).hub)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def refused(self, what: str) -> bool:
        """Whether the caller may not, or this is to fail."""
        status = self.hub.fail.get(what)
        if status is None and self.hub.token is not None:
            status = None if self.headers.get("Authorization") == f"Bearer {self.hub.token}" else 401
        if status is not None:
            self.body()
            self.answer(status, {"error": f"no: {what}"}, {"X-Error-Message": f"no: {what}"})
        return status is not None

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.endswith("/xet-write-token/main") and self.hub.xet:
            self._grant()
        elif path.startswith("/v1/chunks/") or path.endswith("/xet-write-token/main"):
            self.answer(404)
        elif self.refused("info"):
            return
        elif path.startswith("/api/models/"):
            self._info(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            name = path.partition("/resolve/")[2].partition("/")[2]
            self.answer(200, self.hub.files[name]) if name in self.hub.files else self.answer(404)
        else:
            self.answer(404)

    def _grant(self) -> None:
        """A token for the storage, which is this server too."""
        token, expires = "xet-token", int(time.time()) + 3600
        told = {"accessToken": token, "exp": expires, "casUrl": self.hub.endpoint}
        headers = {"X-Xet-Cas-Url": self.hub.endpoint, "X-Xet-Access-Token": token}
        self.answer(200, told, {**headers, "X-Xet-Token-Expiration": str(expires)})

    def _store_block(self, path: str) -> None:
        """Blocks and lists of them; the second form of lists, grants and telemetry are left to be done without."""
        data = self._read_all()
        if path.startswith("/v1/xorbs/"):
            digest = path.rsplit("/", 1)[1]
            self.hub.blocks[digest] += 1
            self.hub.on_put(digest, len(self.hub.blocks))
            self.answer(200, {"was_inserted": True})
        else:
            self.answer(*(200, {"result": 1}) if path == "/v1/shards" and data else (404, None))

    def _info(self, repo: str) -> None:
        hub = self.hub
        if not hub.created:
            self.answer(404, {}, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return
        siblings = []
        for name, data in hub.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
            if name in hub.lfs_oids:
                lfs = {"size": len(data), "sha256": hub.lfs_oids[name], "pointerSize": 134}
                entry |= {"lfs": lfs, "blobId": "0" * 40}
            siblings.append(entry)
        self.answer(200, {"id": repo, "sha": hub.commit, "private": hub.private, "siblings": siblings})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith(("/v1/", "/v2/")):
            self._store_block(path)
        elif path.startswith("/complete/"):
            self._complete(path.removeprefix("/complete/"), json.loads(self.body()))
        elif path == "/verify":
            self.body()
            self.answer(200)
        elif path == "/api/validate-yaml":
            refusal = self.hub.refuse_card
            self.body()
            self.answer(400 if refusal else 200, {"errors": [{"message": refusal}] if refusal else [], "warnings": []})
        elif self.refused(path.rsplit("/", 2)[-2] if "/main" in path else path.rsplit("/", 1)[-1]):
            return
        elif path == "/api/repos/create":
            told = json.loads(self.body())
            self.hub.created, self.hub.private = True, told.get("private", told.get("visibility") == "private")
            self.answer(200, {"url": f"{self.hub.endpoint}/{told.get('organization', 'me')}/{told['name']}"})
        elif "/preupload/" in path:
            self._preupload(json.loads(self.body()))
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(self.body()))
        elif "/commit/" in path:
            self._commit([json.loads(line) for line in self.body().splitlines() if line])
        else:
            self.answer(404)

    def _preupload(self, told: dict[str, Any]) -> None:
        hub = self.hub
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= hub.lfs_from or is_model(file["path"]) else "regular",
                "shouldIgnore": file["path"] in hub.gitignore,
                "oid": git_sha1(hub.files[file["path"]]) if file["path"] in hub.files else None,
            }
            for file in told["files"]
        ]
        self.answer(200, {"files": files})

    def _batch(self, told: dict[str, Any]) -> None:
        hub, objects = self.hub, []
        for wanted in told["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in hub.stored:
                upload: dict[str, Any] = {"href": f"{hub.endpoint}/storage/{oid}?signature=secret"}
                if hub.part_bytes is not None:
                    count = -(-size // hub.part_bytes)
                    header = {str(n): f"{hub.endpoint}/storage/{oid}?part={n}" for n in range(1, count + 1)}
                    header["chunk_size"] = str(hub.part_bytes)
                    upload = {"href": f"{hub.endpoint}/complete/{oid}", "header": header}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{hub.endpoint}/verify"}}
            objects.append(entry)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def do_PUT(self) -> None:
        hub, parts = self.hub, urlsplit(self.path)
        oid = parts.path.removeprefix("/storage/")
        hub.storage_tokens.append(self.headers.get("Authorization"))
        hub.puts[oid] += 1
        hub.on_put(oid, hub.puts[oid])
        data = self._read_all()
        number = parse_qs(parts.query).get("part")
        if number:
            hub.parts.setdefault(oid, {})[int(number[0])] = data
        elif hashlib.sha256(data).hexdigest() != oid:
            self.answer(400, {"error": "another hash"})
            return
        else:
            hub.stored[oid] = data
        self.answer(200, {}, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

    def _read_all(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            length = int(self.headers.get("Content-Length", 0))
            data = self.rfile.read(length)
            if len(data) < length:
                raise ConnectionResetError
            return data
        found = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _complete(self, oid: str, told: dict[str, Any]) -> None:
        parts = self.hub.parts[oid]
        data = b"".join(parts[part["partNumber"]] for part in told["parts"])
        if hashlib.sha256(data).hexdigest() != oid:
            self.answer(400, {"error": "another hash"})
            return
        self.hub.stored[oid] = data
        self.answer(200)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        hub = self.hub
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
                hub.lfs_oids.pop(value["path"], None)
            elif line["key"] == "lfsFile":
                if value["oid"] not in hub.stored and not hub.xet:
                    self.answer(400, {"error": "no such object"})
                    return
                hub.files[value["path"]] = hub.stored.get(value["oid"], b"")
                hub.lfs_oids[value["path"]] = value["oid"]
        hub.commits.append({line["key"]: line["value"] for line in lines})
        url = f"{hub.endpoint}/me/model/commit/{hub.commit}"
        self.answer(200, {"success": True, "commitOid": hub.commit, "commitUrl": url, "hookOutput": ""})
