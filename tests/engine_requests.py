"""llama-server in a worker, asked over its own socket: no front, no command."""

import contextlib
import http.client
import json
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dfqs.runtime import Worker
from dfqs.runtime.loading import InMemory, StreamFigures
from dfqs.serving.engine import EngineListening, ServerSettings, run_server
from runtime_functions import WORKER_ENV


class _Done(Exception):
    """Stops a server that runs until it is stopped."""


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def post(engine: Path, path: str, body: Any) -> tuple[int, Any]:
    """Status and document."""
    connection = _SocketConnection(engine)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def ask_engine(
    settings: ServerSettings, ask: Callable[[Path], Any], tokens: int = 0
) -> tuple[Any, StreamFigures | None]:
    """What `ask(socket)` gives of a server with these settings, and what streaming did meanwhile.

    Args:
        tokens: that it is known to compute at least.
    """
    answers: list[Any] = []
    figures: list[StreamFigures] = []

    def hear(event: Any) -> None:
        if isinstance(event, EngineListening):
            answers.append(ask(engine))
            if isinstance(settings.order, InMemory):
                raise _Done
        elif isinstance(event, StreamFigures):
            figures.append(event)
            if (event.tokens or 0) >= tokens:
                raise _Done

    with tempfile.TemporaryDirectory() as directory, Worker(1, "passive", WORKER_ENV) as worker:
        engine = Path(directory) / "engine.sock"
        with contextlib.suppress(_Done):
            worker.reporting(hear, doing="serving").call(run_server, settings, engine)
    return answers[0], figures[-1] if figures else None


def complete(prompts: Sequence[Sequence[int]], tokens: int) -> Callable[[Path], Any]:
    """Ask for greedy answers to prompts that are computed together, in the same batches each time."""
    body = {
        "prompt": [list(prompt) for prompt in prompts],
        "n_predict": tokens,
        "temperature": 0,
        "n_probs": 4,
        "cache_prompt": False,
        "return_tokens": True,
        "ignore_eos": True,
    }

    def ask(engine: Path) -> Any:
        status, answers = post(engine, "/completion", body)
        assert status == 200, answers
        answers = answers if isinstance(answers, list) else [answers]
        return [
            (answer["tokens"], answer["completion_probabilities"])
            for answer in sorted(answers, key=lambda answer: int(answer["index"]))
        ]

    return ask
