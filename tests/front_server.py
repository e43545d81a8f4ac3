"""A front over a model's server that is none: it answers by path, and writes down what reached it."""

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from dfqs.serving.admission import Admission, make_admission
from dfqs.serving.api_key import make_key
from dfqs.serving.dispatch import Dispatch, DispatchLimits, Inspect
from dfqs.serving.engine_state import EngineState
from dfqs.serving.front import Front, FrontLimits

JSON_POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class FakeEngine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """`seen`: the requests as they came. `left`: set when a client of `/endless` was seen to leave."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Handler)
        self.seen: list[bytes] = []
        self.left = threading.Event()


class _Handler(socketserver.StreamRequestHandler):
    server: FakeEngine

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.rfile.readline()
            if not line:
                return
            head += line
        length = next((int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-len")), 0)
        body = self.rfile.read(length)
        self.server.seen.append(head + body)
        path = head.split(b" ")[1].decode()
        chunked = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        if path == "/stream":
            self.wfile.write(chunked)
            for number in range(3):
                self._chunk(b"data: %d\n\n" % number)
                time.sleep(0.3)
            self.wfile.write(b"0\r\n\r\n")
        elif path == "/endless":
            self.wfile.write(chunked)
            with contextlib.suppress(OSError):
                while True:
                    self._chunk(b"data: more\n\n")
                    time.sleep(0.02)
            self.server.left.set()
        elif path == "/broken":
            self.wfile.write(chunked)
            self._chunk(b"data: half")
        elif path == "/cut":
            self.wfile.write(chunked)
            self._chunk(b"data: whole\n\n")
        elif path == "/silent":
            self.rfile.read(1)
        elif path == "/rubbish":
            self.wfile.write(b"hello\r\n\r\n")
        else:
            cors = b"Access-Control-Allow-Origin: *\r\n"
            answer = b"%d bytes" % len(body)
            self.wfile.write(b"HTTP/1.1 200 OK\r\n" + cors + b"Content-Length: %d\r\n\r\n" % len(answer))
            if not head.startswith(b"HEAD"):
                self.wfile.write(answer)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


class Fronted:
    """A front, its address and what is behind it."""

    def __init__(self, engine: FakeEngine, front: Front) -> None:
        self.engine, self.front = engine, front
        self.port: int = front.listener.getsockname()[1]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def send(self, data: bytes) -> bytes:
        """Everything that comes back until the front ends the connection, or 20 s of silence."""
        with self.connect() as client:
            client.sendall(data)
            return read_all(client)

    def get(self, path: str = "/health", *headers: str) -> bytes:
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers, "", ""]
        return self.send("\r\n".join(lines).encode())


def read_all(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(65536):
            received += piece
    return received


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer.split(b" ")[1])


@contextlib.contextmanager
def fronted(
    directory: Path,
    limits: FrontLimits | None = None,
    admission: Admission | None = None,
    inspect: Inspect | None = None,
    key: str | None = None,
    dispatch_limits: DispatchLimits | None = None,
) -> Iterator[Fronted]:
    """A front on a free port of this machine."""
    path = directory / "engine.sock"
    engine = FakeEngine(path)
    threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    allowed = admission or make_admission(False, (), ())
    dispatch = Dispatch(EngineState(), inspect=inspect, limits=dispatch_limits or DispatchLimits())
    dispatch.engine.up(path)
    front = Front(listener, allowed, dispatch, make_key(key), limits or FrontLimits())
    front.start()
    try:
        yield Fronted(engine, front)
    finally:
        front.stop()
        engine.shutdown()
        engine.server_close()
        path.unlink()
