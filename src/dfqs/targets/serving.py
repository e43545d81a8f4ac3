"""`dfqs serve` in a process of its own, for as long as a client uses it."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqs.errors import RuntimeFailure, UsageError
from dfqs.targets.contract import Command, Endpoint

_ENDS_S = 30.0


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers."""

    endpoint: Endpoint
    process: subprocess.Popen[bytes]

    def wait(self) -> int:
        """Until it ends, which it does by itself only where something went wrong; its exit code."""
        return self.process.wait()


@contextlib.contextmanager
def served(
    model: Path,
    *,
    port: int,
    context_tokens: int | None,
    api_key: str | None,
    chat_template: Path | None = None,
) -> Iterator[Served]:
    """A server for a model, loaded and answering inside the block; it ends with it.

    Args:
        port: 0 takes any that is free.
        context_tokens: None: as `dfqs serve` chooses.
        chat_template: a file with one, in place of the model's own.

    Raises:
        RuntimeFailure: it did not come up; it has said why on stderr.
    """
    words = [sys.executable, "-m", "dfqs", "serve", str(model), "--port", str(port), "--json"]
    if context_tokens is not None:
        words += ["--ctx", str(context_tokens)]
    if chat_template is not None:
        words += ["--chat-template", str(chat_template)]
    environment = dict(os.environ)
    if api_key is not None:
        # Not among the words, which every user of the machine can read.
        environment["DFQS_API_KEY"] = api_key
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment)
    try:
        ready = _read_ready(process)
        yield Served(Endpoint(ready["api"], ready["model"], ready["context_tokens"], api_key), process)
    finally:
        process.terminate()
        try:
            process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def run_in_terminal(command: Command) -> int:
    """Give a program this terminal until it ends; its exit code.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return subprocess.run(command.words, env={**os.environ, **command.environment}, check=False).returncode
    except FileNotFoundError:
        raise UsageError(f"{command.words[0]} is not installed, or not on the search path") from None


def _read_ready(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The one document that a server prints when it answers."""
    assert process.stdout is not None
    text = b""
    for line in process.stdout:
        text += line
        if line.rstrip() == b"}":
            with contextlib.suppress(ValueError):
                found = json.loads(text)
                if isinstance(found, dict):
                    return found
    raise RuntimeFailure(f"dfqs serve ended with exit code {process.wait()} before it answered")
