"""The command line as a real process: with signals, pipes and terminals."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

DEADLINE_S = 120.0


def let_signals_through() -> None:
    """Undo what this process was started with: a shell's background job and nohup have signals ignored, which children
    inherit, and a test that sends one to a child (or to itself) would wait for ever.

    A handler is not inherited: with one here, children begin with the default.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            # Still ignored here.
            signal.signal(number, lambda *_: None)


let_signals_through()
COMMAND = [sys.executable, "-m", "dfqs.cli.main"]


def run_dfqs(*arguments: str | Path, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run to the end."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


class RunningDfqs:
    """A process under way. `terminal` gives it one for all three streams; otherwise pipes."""

    def __init__(self, *arguments: str | Path, terminal: bool = False) -> None:
        command = [*COMMAND, *map(str, arguments)]
        self._seen = b""
        if terminal:
            self._reading, side = pty.openpty()
            self.process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, start_new_session=True)
            os.close(side)
        else:
            pipe: Sequence[int] = (subprocess.PIPE,) * 3
            self.process = subprocess.Popen(command, stdin=pipe[0], stdout=pipe[1], stderr=pipe[2])
            assert self.process.stdout is not None
            self._reading = self.process.stdout.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()

    def read_until(self, text: str, idle: Callable[[], None] = lambda: None) -> str:
        """What came on stdout (or the terminal) up to `text` and with it; `idle` is called in every silent second."""
        deadline = time.monotonic() + DEADLINE_S
        while text.encode() not in self._seen:
            assert time.monotonic() < deadline, f"never said {text!r}; it said {self._seen!r}"
            if not select.select([self._reading], [], [], 1.0)[0]:
                idle()
                continue
            try:
                piece = os.read(self._reading, 65536)
            except OSError:
                piece = b""
            assert piece, f"ended without {text!r}; it said {self._seen!r} {self.errors()!r}"
            self._seen += piece
        found, _, self._seen = self._seen.partition(text.encode())
        return (found + text.encode()).decode()

    def press_ctrl_c_until(self, text: str) -> str:
        """Ctrl-C as a person at a prompt uses it: pressed again when a second goes by without an answer.

        Once is not enough for a program to be told: CPython's readline shows the prompt first and then waits in
        `select`, and a signal that comes in between is only seen with the next key or signal.
        """
        self.interrupt()
        return self.read_until(text, idle=self.interrupt)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def write(self, text: str) -> None:
        """To its stdin (or type it on the terminal)."""
        descriptor = self._reading
        if self.process.stdin is not None:
            descriptor = self.process.stdin.fileno()
        os.write(descriptor, text.encode())

    def errors(self) -> str:
        """Its stderr, once it has ended."""
        return self.process.stderr.read().decode() if self.process.stderr is not None else ""

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)

    def worker_pids(self) -> list[int]:
        """Its worker processes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"worker_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: Sequence[int]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, f"still there: {pids}"
        time.sleep(0.02)
