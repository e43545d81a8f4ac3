"""Asking the model's server something ourselves, over its private socket, without an event loop."""

import contextlib
import http.client
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqs.errors import FormatError
from dfqs.storage.documents import parse_json


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """What came back."""

    status: int
    body: bytes
    compressed: bool

    def document(self) -> Any:
        """Its JSON; None where it is none."""
        try:
            return parse_json(self.body)
        except FormatError:
            return None


def call_engine(
    engine: Path,
    method: str,
    target: str,
    document: Any = None,
    *,
    key: str | None = None,
    timeout_s: float,
    limit_bytes: int = 8 << 20,
    accept: str = "identity",
) -> EngineAnswer | None:
    """Ask the server behind a socket; None where it gave no answer, or a longer one.

    Args:
        key: the server's own.
        timeout_s: for each step.
    """
    connection = _UnixConnection(engine, timeout_s)
    headers = {"Accept-Encoding": accept, "Connection": "close"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    body = None
    if document is not None:
        headers["Content-Type"], body = "application/json", json.dumps(document)
    with contextlib.closing(connection):
        try:
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            data = answer.read(limit_bytes + 1)
        except (OSError, http.client.HTTPException):
            return None
        if len(data) > limit_bytes:
            return None
        return EngineAnswer(answer.status, data, answer.getheader("Content-Encoding") == "gzip")
