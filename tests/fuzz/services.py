"""Targets that are more than a reader: a merge that goes on, a server's answers, a stranger's template."""

import atexit
import contextlib
import hashlib
import json
import random
import shutil
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dfqs.errors import DfqsError
from dfqs.inplace import abort_merge, merge_inplace, plan_inplace, resume_merge
from dfqs.inplace.journal import journal_path, unfinished_beside
from dfqs.runtime.rendering import Renderer, RenderLimits
from dfqs.serving.client import Client
from dfqs.shards import plan_merge
from dfqs.storage.disk import Disk, LocalDisk
from fuzz.mutate import RAW, STRINGS, mutate_bytes, mutate_lines
from inplace_cases import make_shards


class _Killed(BaseException):
    """The power went."""


class _DyingDisk(LocalDisk):
    """Fails when the merge is under way: its journal stands for one that a kill left."""

    def unlink(self, path: Path) -> None:
        raise _Killed


def _payload(line: bytes) -> bytes:
    return line[line.index(b"{") :]


def merge_journal(scratch: Path) -> bytes:
    """The JSON of a journal of a merge that was cut off before its first shard went."""
    make_shards(scratch / "shards")
    folder = scratch / "begun"
    shutil.rmtree(folder, ignore_errors=True)
    shards = make_shards(folder)
    with contextlib.suppress(_Killed, DfqsError):
        disk: Disk = _DyingDisk()
        merge_inplace(plan_inplace(plan_merge(shards[0]), folder / "m.gguf", "consume"), disk=disk)
    data = journal_path(folder / "m.gguf").read_bytes().rstrip(b"\0")
    return b"\n".join(_payload(line) for line in data.split(b"\n") if line) + b"\n"


def seal_merge_line(text: bytes) -> bytes:
    """The checksum against torn writes made anew; that it is a stranger's is vouched for when it is read."""
    rest = b"0" * 32 + b" " + text
    return hashlib.sha256(rest).hexdigest()[:16].encode() + b" " + rest


def mutate_merge_journal(rng: random.Random, data: bytes) -> bytes:
    return mutate_lines(rng, data, seal_merge_line)


def read_merge_journal(data: bytes, scratch: Path) -> None:
    """Resumed and aborted, first as a stranger's and then vouched for, with the shards and a half-made file."""
    pristine = scratch.parent / "shards"
    folder, out = scratch / "merge", scratch / "merge" / "m.gguf"
    failures: list[DfqsError] = []
    for resume in (True, False):
        for trusted in (False, True):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(pristine, folder)
            shards = sorted(folder.glob("*.gguf"))
            (folder / "thesis.docx").write_bytes(b"not a shard")
            out.with_name("m.gguf.merging").write_bytes(bytes(4096))
            journal_path(out).write_bytes(data)
            try:
                unfinished_beside(shards[0])
                if resume:
                    resume_merge(shards[0], out, "consume", trust_journal=trusted, trust_shards=trusted)
                else:
                    abort_merge(shards[0], out, trust_journal=trusted)
            except DfqsError as error:
                failures.append(error)
            assert (folder / "thesis.docx").read_bytes() == b"not a shard", "a journal changed another file"
            assert trusted or all(shard.exists() for shard in shards), "a stranger's journal deleted a shard"
    _require_plain(failures)


def _require_plain(failures: Iterable[DfqsError]) -> None:
    for error in failures:
        assert str(error).replace("\n", "").isprintable(), repr(str(error))


class _Answers(ThreadingHTTPServer):
    daemon_threads = True
    body = b""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up on such answers."""


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer()

    def _answer(self) -> None:
        # The document is the whole answer, its status line and headers included.
        assert isinstance(self.server, _Answers)
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(self.server.body)


_server: list[_Answers] = []


def _serving() -> _Answers:
    if not _server:
        _server.append(_Answers(("127.0.0.1", 0), _Handler))
        threading.Thread(target=_server[0].serve_forever, args=(0.05,), daemon=True).start()
    return _server[0]


_EVENTS = (
    {"choices": [{"delta": {"content": "Hel"}, "finish_reason": None, "index": 0}]},
    {"choices": [{"delta": {"content": "lo"}, "logprobs": {"content": [{"token": "lo", "logprob": -0.5}]}}]},
    {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}},
)


def sse(_: Path) -> bytes:
    """The events of a streamed answer, one a line."""
    return b"".join(json.dumps(event).encode() + b"\n" for event in _EVENTS)


def mutate_answer(rng: random.Random, data: bytes) -> bytes:
    """An HTTP answer around mutated events: streamed, or as one document; its head mutated now and then."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    if rng.random() < 0.25:
        status = rng.choice((b"200 OK", b"500 \x1b[31m", b"404 no", b"99999 x", b"204 No Content", b"301 x"))
        kind = rng.choice((b"application/json", b"text/html; charset=idna", b"text/plain; charset=utf-7", b"\xff"))
        extra = rng.choice(
            (
                b"",
                b"Content-Length: 1e9\r\n",
                b"Content-Encoding: gzip\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Location: file:///etc/passwd\r\n",
                b"Retry-After: 1e999\r\n",
            )
        )
        head = b"HTTP/1.1 " + status + b"\r\nContent-Type: " + kind + b"\r\n" + extra + b"\r\n"
    body = mutate_lines(rng, data, lambda text: b"data: " + text + b"\n")
    if rng.random() < 0.3:
        body = rng.choice(RAW).encode("utf-8", "surrogatepass") if rng.random() < 0.3 else body[6:]
    return mutate_bytes(rng, head + body) if rng.random() < 0.1 else head + body


def read_answer(data: bytes, _: Path) -> None:
    """Asked every way that a client asks."""
    server = _serving()
    server.body = data
    failures: list[DfqsError] = []
    with Client(f"http://127.0.0.1:{server.server_address[1]}", timeout_s=2) as client:
        for ask in (
            client.check_health,
            client.models,
            lambda: client.tokenize("x"),
            lambda: client.chat([{"role": "user", "content": "x"}], max_tokens=4, on_text=lambda text: None),
            lambda: client.chat([{"role": "user", "content": "x"}], max_tokens=4),
        ):
            try:
                ask()
            except DfqsError as error:
                failures.append(error)
    _require_plain(failures)


_PIECES = (
    "{{ x }}",
    "{% for a in range(99999) %}",
    "{% endfor %}",
    "{{ 'x' * 200000000 }}",
    "{{ messages[0] }}",
    "{% set x = x ~ x %}",
    "{{ ''.__class__ }}",
    "{% if",
    "%}",
    "{{ raise_exception('\x1b[31m') }}",
    "{% macro m() %}",
    "{{ m() }}",
    "{% endmacro %}",
    "{{ messages | tojson }}",
    "{{ cycler }}",
    "{# ",
    "{{ namespace(a=1).a }}",
    "{% generation %}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ '%s' % messages }}",
    "{{ strftime_now('%Y') }}",
)


def template(_: Path) -> bytes:
    return (
        b"{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        b"{% if add_generation_prompt %}<|a|>{% endif %}"
    )


def mutate_template(rng: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    for _ in range(rng.choice((1, 2, 3))):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice((*_PIECES, *STRINGS)) + text[at + rng.choice((0, 0, 3)) :]
    return text[:20_000].encode("utf-8", "replace")


_renderer: list[Renderer] = []


def render_template(data: bytes, _: Path) -> None:
    """Rendered in the process that templates are rendered in, with limits that a test can wait for."""
    if not _renderer:
        _renderer.append(Renderer(RenderLimits(cpu_s=1)))
        atexit.register(_renderer[0].close)
    text = data.decode("utf-8", "replace")
    rendered = _renderer[0].render(text, [{"role": "user", "content": "Hello"}])
    assert len(rendered) <= _renderer[0].limits.text_characters
