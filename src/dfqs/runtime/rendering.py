"""Chat templates under limits: rendered in a small process of their own, which a template can exhaust and nothing else.

A template is a program from outside, and a loop in it, or a string doubled thirty times, has no end. Whoever renders
one (a session, an evaluation, a calibration, the server before it starts and before each request) does it here.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dfqs.errors import RuntimeFailure, printable
from dfqs.runtime.messages import MODELS_OWN, Conversation, TemplateDropsMessage, TemplateFailure

_PIECE = 1 << 16
_ESCAPED_BYTES = 12
"""Of one character in JSON, at most."""
_POLL_S = 0.1
_END_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What one rendering may take. Honest templates take milliseconds, and some times the conversation's size."""

    cpu_s: int = 5
    wall_s: float = 60.0
    """Beyond CPU time for a machine that is busy with other things."""
    memory_bytes: int = 256 << 20
    """Address space of the process; Python and Jinja take a tenth of it."""
    text_characters: int = 8 << 20
    """Of the conversation and of the text made of it: more than any context holds."""


LIMITS = RenderLimits()


class TemplateExcess(RuntimeFailure):
    """A rendering took more than it may."""


class Renderer:
    """One rendering process, started when first asked for and again after one that had to be ended.

    Safe to use from several threads; they wait for each other.
    """

    def __init__(self, limits: RenderLimits = LIMITS) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(
        self,
        template: str,
        messages: Conversation,
        variables: Mapping[str, Any] | None = None,
        *,
        check: bool = True,
        whose: str = MODELS_OWN,
        check_stop: Callable[[], object] = lambda: None,
    ) -> str:
        """Text of a conversation; see `dfqs.runtime.template.render_conversation`.

        Args:
            variables: what else the template knows, as JSON can say it.
            check: refuse where the text of a message is not in the rendered one.
            whose: which template it is, for messages.
            check_stop: called ten times a second; what it raises ends the rendering.

        Raises:
            TemplateExcess: the template takes more than the limits allow.
            TemplateDropsMessage: what the user or the system said is not in the text.
            RuntimeFailure: the template is broken, or refuses these messages.
        """
        asked = {"template": template, "messages": list(messages), "variables": dict(variables or {}), "check": check}
        request = json.dumps(asked).encode() + b"\n"
        if len(request) > _ESCAPED_BYTES * self.limits.text_characters:
            raise RuntimeFailure(
                f"the conversation has {len(request):,} bytes, more than a chat template is given to render"
            )
        with self._lock:
            try:
                answer = self._ask(request, check_stop, whose)
            except BaseException:
                self._end()
                raise
            if "excess" in answer:
                self._end()
        if "text" in answer:
            return str(answer["text"])
        if answer.get("excess") == "text":
            raise _exceeded(f"more than {self.limits.text_characters:,} characters of text", whose)
        if answer.get("excess") == "depth":
            raise _exceeded("more than Python's stack holds", whose)
        if "excess" in answer:
            raise _exceeded(f"more than {self.limits.memory_bytes >> 20} MiB of memory", whose)
        if "drops" in answer:
            role, way_out = map(str, answer["drops"])
            raise TemplateDropsMessage(role, way_out, whose)
        if "does" in answer:
            raise TemplateFailure(str(answer["does"]), whose)
        raise RuntimeFailure(str(answer["failure"]))

    def close(self) -> None:
        """End the process. Safe to call twice."""
        with self._lock:
            self._end()

    def _ask(self, request: bytes, check_stop: Callable[[], object], whose: str) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + self.limits.wall_s
        writing, reading = process.stdin.fileno(), process.stdout.fileno()
        rest, answer = memoryview(request), bytearray()
        while not answer.endswith(b"\n"):
            check_stop()
            if time.monotonic() > deadline:
                raise _exceeded(f"more than {self.limits.wall_s:g} s", whose)
            readable, writable, _ = select.select([reading], [writing] if rest else [], [], _POLL_S)
            if writable:
                try:
                    rest = rest[os.write(writing, rest[:_PIECE]) :]
                except BrokenPipeError:
                    raise self._died(process, whose) from None
            if readable:
                piece = os.read(reading, _PIECE)
                if not piece:
                    raise self._died(process, whose)
                answer += piece
                if len(answer) > _ESCAPED_BYTES * (self.limits.text_characters + 1024):
                    raise _exceeded(f"more than {self.limits.text_characters:,} characters of text", whose)
        document = json.loads(answer)
        if not isinstance(document, dict):
            raise RuntimeFailure("the process that renders chat templates gave no answer")
        return document

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            limits = self.limits
            numbers = (limits.memory_bytes, limits.cpu_s, limits.text_characters)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "dfqs.runtime.template_process", *map(str, numbers)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Ctrl-C in the terminal is the caller's to answer.
                start_new_session=True,
            )
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
        return self._process

    def _died(self, process: subprocess.Popen[bytes], whose: str) -> TemplateExcess:
        """Of time, or of something that Python does not survive (a nesting too deep for the C stack, say)."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_GRACE_S)
        if process.returncode is not None and -process.returncode in _TIME_SIGNALS:
            return _exceeded(f"more than {self.limits.cpu_s} s of CPU time", whose)
        return _exceeded(f"more than its process could give (code {process.returncode})", whose)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        process.wait()


_TIME_SIGNALS = tuple(signal.Signals[name] for name in ("SIGXCPU", "SIGKILL") if name in signal.Signals.__members__)
"""SIGXCPU, and SIGKILL where the hard limit is reached; Windows, where nothing is rendered, has neither."""

shared = Renderer()
"""The rendering process of this process."""


def _exceeded(what: str, whose: str) -> TemplateExcess:
    return TemplateExcess(f"{whose} takes {printable(what)}; no honest one does. --raw does without it")
