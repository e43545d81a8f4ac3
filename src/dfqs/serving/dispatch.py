"""What is done with a request that was let in: it waits for its turn, is looked at, and is answered here or by the
model's server, within the time that it has.
"""

import asyncio
import contextlib
import json
import math
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from dfqs.errors import DfqsError
from dfqs.serving.body_rules import BodyRules
from dfqs.serving.engine_state import EngineState
from dfqs.serving.http_head import HttpRefusal, RequestHead, format_head
from dfqs.serving.metrics import format_rows
from dfqs.serving.upstream import WRITE_STALL_S, Relay, Unreachable, fetch, format_event

Inspect = Callable[[RequestHead, Mapping[str, Any]], Awaitable[None]]
"""Looks at a request and at what its body says, before the model's server does; an `HttpRefusal` that it raises is the
answer."""
Headers = list[tuple[str, str]]


@dataclass(slots=True)
class Asked:
    """A request with its body, and where its answer goes."""

    head: RequestHead
    body: bytes
    writer: asyncio.StreamWriter
    cors: Headers
    """Headers of every answer to it."""
    relay: Relay | None = None
    """Where it was passed on."""


class OwnAnswers(Protocol):
    """Answers some requests in place of the model's server."""

    def wants(self, head: RequestHead, document: Mapping[str, Any]) -> bool:
        """Whether this is one of them."""
        ...

    async def answer(self, head: RequestHead, document: Mapping[str, Any]) -> bytes:
        """The JSON of the answer; an `HttpRefusal` that it raises is one too."""
        ...


_LOOK_S = 0.05
_FAILURE_LOOKS = 40
_METRICS = "/metrics"
_METRICS_LIMIT_BYTES = 1 << 20
_LARGE_BODY_BYTES = 256 << 10
_JSON, _TEXT = "application/json; charset=utf-8", "text/plain; version=0.0.4; charset=utf-8"
_FIRST_GUESS_S = 5.0
_LENGTHS = 128
_COUNTS = (
    re.compile(rb'"cache_n":(\d{1,9}),"prompt_n":(\d{1,9}),.{1,400}?"predicted_n":(\d{1,9})', re.DOTALL),
    re.compile(rb'"input_tokens":(\d{1,9}).{1,100}?"output_tokens":(\d{1,9})', re.DOTALL),
)
_LONGEST_RETRY_S, _LOADING_RETRY_S = 60, 5


@dataclass(frozen=True, slots=True)
class DispatchLimits:
    """What requests may take of the model's server."""

    slots: int = 1
    """Requests that it computes at once."""
    queue: int = 64
    """Requests that wait for their turn; one more is told to come later."""
    at_server: int = 32
    """Requests that it is given at once; more of them wait here, and take no thread there."""
    answer_s: float | None = None
    """From a request's arrival to its last byte; None: as long as it takes."""
    restart_wait_s: float = 30.0
    """How long a request waits for a server that is being started again."""


@dataclass(slots=True)
class Counts:
    """Since the start."""

    requests: int = 0
    answered: int = 0
    queue_full: int = 0
    timed_out: int = 0
    broken: int = 0
    """Failed with the model's server."""


@dataclass(slots=True)
class Dispatch:
    """Lives in the event loop of a front.

    Args:
        inspect: see `Inspect`.
        own: what is answered without the model's server, after inspection.
    """

    engine: EngineState
    rules: BodyRules = field(default_factory=BodyRules)
    inspect: Inspect | None = None
    own: OwnAnswers | None = None
    limits: DispatchLimits = DispatchLimits()
    slots_shown: bool = True
    """Whether clients may look at what others ask."""
    more_metrics: bytes = b""
    counts: Counts = field(default_factory=Counts)
    lengths: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_LENGTHS))
    """Tokens of prompts and answers, the latest last."""
    under_way: int = 0
    """Requests that compute, or wait for it."""
    _answer_s: float = _FIRST_GUESS_S
    _turns: Any = None
    _parsing: Any = None

    def begin(self) -> None:
        """In the loop."""
        self._turns, self._parsing = asyncio.Semaphore(self.limits.at_server), asyncio.Lock()

    async def answer(self, asked: Asked) -> bool:
        """Answer one request; returns whether the connection can go on.

        Raises:
            HttpRefusal: nothing was written yet.
            ConnectionError, TimeoutError: the client is gone, or takes nothing.
        """
        self._check_path(asked.head)
        if not asked.body:
            # /health answers however much is computed.
            if asked.head.path == _METRICS and asked.head.method == "GET":
                return await _write_whole(await self._metrics(asked.head), _TEXT, asked)
            return await self._relay(asked)
        with self._turn():
            try:
                async with asyncio.timeout(self.limits.answer_s) as clock, self._turns:
                    return await self._compute(asked)
            except TimeoutError:
                if not clock.expired():
                    raise
                self.counts.timed_out += 1
                return self._cut(asked)

    def _check_path(self, head: RequestHead) -> None:
        path = unquote(head.path)
        if path.startswith("/slots/"):
            # Prompts are written to this machine's disk, and read from there, by the server's own word alone.
            raise HttpRefusal(403, "slots are kept and restored by the server itself")
        if path == "/slots" and not self.slots_shown:
            raise HttpRefusal(
                501, "slots show what others ask; this server, which others can reach, does not show them"
            )

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        waiting = self.under_way - self.limits.slots
        if waiting >= self.limits.queue:
            self.counts.queue_full += 1
            seconds = math.ceil(self._answer_s * (waiting + 1) / self.limits.slots)
            raise HttpRefusal(
                503, f"{waiting:,} requests are waiting already; try again later", min(seconds, _LONGEST_RETRY_S)
            )
        self.counts.requests += 1
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def _compute(self, asked: Asked) -> bool:
        head, document = asked.head, await self._read_document(asked)
        if document is None:
            return await self._relay(asked)
        if self.inspect is not None:
            try:
                await self.inspect(head, document)
            except DfqsError as error:
                raise HttpRefusal(400, error.sentence) from None
        if self.own is not None and self.own.wants(head, document):
            return await _write_whole(await self.own.answer(head, document), _JSON, asked)
        # Written anew, so that what was looked at is what is read there: a name given twice means one thing.
        asked.body = json.dumps(document).encode()
        return await self._relay(asked)

    async def _read_document(self, asked: Asked) -> dict[str, Any] | None:
        if asked.head.method != "POST":
            raise HttpRefusal(400, f"{asked.head.method} takes no body")
        if len(asked.body) < _LARGE_BODY_BYTES:
            return self.rules.read(asked.head, asked.body)
        # Away from the clients that others are, and one at a time: parsed it takes many times its length.
        async with self._parsing:
            return await asyncio.to_thread(self.rules.read, asked.head, asked.body)

    async def _relay(self, asked: Asked) -> bool:
        started = time.monotonic()
        while True:
            path, epoch = await self._find_engine(started if asked.body else None)
            asked.relay = relay = Relay(path, asked.head, asked.body, asked.writer, asked.cors)
            try:
                whole = await relay.run()
                break
            except Unreachable:
                # Nothing was asked yet, so whoever takes its place can be.
                if await self._learn_failure(epoch) is None:
                    raise
            except HttpRefusal:
                self.counts.broken += 1
                if (failure := await self._learn_failure(epoch)) is not None:
                    raise HttpRefusal(500, failure) from None
                raise
        if asked.body and whole and relay.status == 200:
            self.engine.answered += 1
            self.counts.answered += 1
            if (lengths := read_lengths(relay.ending)) is not None:
                self.lengths.append(lengths)
            self._answer_s += (time.monotonic() - started - self._answer_s) / 8
        if not whole:
            self.counts.broken += 1
            failure = await self._learn_failure(epoch)
            if relay.takes_an_event and failure is not None:
                # Without a last chunk: the answer is not whole, and does not look so.
                asked.writer.write(format_event(failure))
                await asked.writer.drain()
        return whole

    async def _find_engine(self, since: float | None) -> tuple[Path, int]:
        """The socket of the model's server, waited for a while where it is being started again.

        Args:
            since: when the waiting began; None: it is not waited for.
        """
        while True:
            state = self.engine
            if state.final is not None:
                raise HttpRefusal(500, state.final)
            if state.path is not None:
                return state.path, state.epoch
            if since is None or time.monotonic() - since > self.limits.restart_wait_s:
                raise HttpRefusal(503, "the model is being loaded again", _LOADING_RETRY_S)
            await asyncio.sleep(_LOOK_S)

    async def _learn_failure(self, epoch: int) -> str | None:
        """Why a server of the model is gone; who looks for that may take a moment longer than its clients."""
        for _ in range(_FAILURE_LOOKS):
            if epoch in self.engine.failures:
                break
            await asyncio.sleep(_LOOK_S)
        return self.engine.failures.get(epoch)

    def _cut(self, asked: Asked) -> bool:
        """End an answer that took too long; what it says of that is said in the form of what was said before."""
        why = f"the answer took longer than {self.limits.answer_s:g} s, which is all that this server gives one"
        if asked.relay is None or asked.relay.status is None:
            raise HttpRefusal(504, why)
        if asked.relay.takes_an_event:
            asked.writer.write(format_event(why, 504))
        return False

    async def _metrics(self, head: RequestHead) -> bytes:
        """Our figures, and those of the model's server where it tells them."""
        theirs = None
        if self.engine.path is not None:
            with contextlib.suppress(Unreachable):
                theirs = await fetch(self.engine.path, head, _METRICS_LIMIT_BYTES)
        limits, counts = self.limits, self.counts
        rows = (
            (
                "up",
                "gauge",
                "Whether the model's server is there; 0: it is being started again.",
                int(theirs is not None),
            ),
            ("restarts_total", "counter", "Times that it was started again.", self.engine.restarts),
            ("slots", "gauge", "Requests computed at once, at most.", limits.slots),
            ("slots_busy", "gauge", "Requests computed now.", min(self.under_way, limits.slots)),
            ("queue_limit", "gauge", "Requests that may wait.", limits.queue),
            ("queue_length", "gauge", "Requests that wait now.", max(self.under_way - limits.slots, 0)),
            ("requests_total", "counter", "Requests that were let in to be computed.", counts.requests),
            ("answered_total", "counter", "Of them, answered whole by the model's server.", counts.answered),
            ("broken_total", "counter", "Of them, failed with the model's server, or cut by its end.", counts.broken),
            ("timed_out_total", "counter", "Of them, cut because they took too long.", counts.timed_out),
            ("queue_full_total", "counter", "Requests told to come later.", counts.queue_full),
        )
        return (theirs or b"") + format_rows("dfqs_serve", rows) + self.more_metrics


def read_lengths(ending: bytes) -> tuple[int, int] | None:
    """Tokens of a prompt and of its answer, as the end of the answer tells them; None where it does not.

    In a text of the model's a quotation mark has a backslash before it, so these can only be names of llama-server's.
    """
    for pattern in _COUNTS:
        if (found := pattern.findall(ending)) and (answer := found[-1]):
            *prompt, written = map(int, answer)
            return sum(prompt), written
    return None


async def _write_whole(body: bytes, content_type: str, asked: Asked) -> bool:
    headers = [("content-type", content_type), ("content-length", str(len(body)))]
    asked.writer.write(format_head("HTTP/1.1 200 OK", [*headers, *asked.cors]) + body)
    async with asyncio.timeout(WRITE_STALL_S):
        await asked.writer.drain()
    return True
