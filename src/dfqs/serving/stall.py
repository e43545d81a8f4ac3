"""Telling a model's server that hangs from one that computes for long.

Both are silent: llama-server answers between two batches, and a batch of a model larger than memory can take many
minutes. But who computes takes processor time, and who reads experts reads bytes. A process that does neither, and does
not answer either when it is asked something, is dead and does not know it: stopped by a signal, waiting for a lock that
nobody gives back, or for a disk that went away.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from dfqs.serving.engine_call import call_engine

LONGEST_BATCH_S = 3600.0
"""A loop without end takes processor time. A batch of 2,048 tokens that reads all experts of a 62 GB model four times
from a disk of 150 MB/s takes 28 minutes."""
LOOK_S = 1.0
_LEAST_CPU_S, _LEAST_CPU_SHARE = 0.05, 0.005
"""Answering a question or two, and waking up to see whether there is something to do, take less; a process of the
lowest priority beside two of the usual one takes more."""
_LEAST_READ_BYTES = 64 << 10
_ASK_AFTER_S = 300.0
"""Of a server that works: whether it still comes to the end of its batches."""
_PING = "/lora-adapters"
"""Small, and answered by the thread that computes (`/health` is answered by another)."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a process has done since it began."""

    cpu_s: float
    read_bytes: int
    """0 where the system does not tell."""


def read_work(pid: int) -> Work | None:
    """None: there is no such process any more, or none that may be looked at."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        read = 0
        with contextlib.suppress(AttributeError, psutil.AccessDenied):
            counters = process.io_counters()
            # `read_chars` (Linux) counts what does not come from a disk of this machine.
            read = int(counters.read_bytes) + int(getattr(counters, "read_chars", 0))
        return Work(times.user + times.system, read)
    except psutil.Error:
        return None


@dataclass(slots=True)
class StallClock:
    """Counts the time without a sign of work. Time in which nobody looked (a machine asleep, we ourselves stopped by
    Ctrl-Z) does not count.

    Args:
        limit_s: without any sign.
        batch_limit_s: without an answer, however much work is done.
    """

    limit_s: float
    batch_limit_s: float = LONGEST_BATCH_S
    quiet_s: float = 0.0
    unanswered_s: float = 0.0
    _base: Work | None = None

    def look(self, passed_s: float, work: Work | None, answered: bool) -> str | None:
        """Why the process hangs; None while it does not.

        Args:
            passed_s: since the last look.
            answered: whether it has answered since.
        """
        passed_s = min(passed_s, 2 * LOOK_S)
        self.quiet_s += passed_s
        self.unanswered_s = 0.0 if answered else self.unanswered_s + passed_s
        if answered or self._has_worked(work):
            self.quiet_s, self._base = 0.0, work
        if self.quiet_s > self.limit_s:
            return (
                f"it did nothing for {self.limit_s:,.0f} s: it took no processor time, read nothing and did not answer"
            )
        if self.unanswered_s > self.batch_limit_s:
            return f"it computed for {self.batch_limit_s:,.0f} s without coming to the end of a batch"
        return None

    def should_ask(self) -> bool:
        """An answer would be a sign, and there is no other. Seldom: questions stand in the server's log."""
        return self.quiet_s > self.limit_s / 2 or self.unanswered_s > min(_ASK_AFTER_S, self.batch_limit_s / 2)

    def _has_worked(self, work: Work | None) -> bool:
        if work is None or self._base is None:
            # A process that cannot be looked at is not accused.
            return True
        cpu_s, read = work.cpu_s - self._base.cpu_s, work.read_bytes - self._base.read_bytes
        return cpu_s >= _LEAST_CPU_S + _LEAST_CPU_SHARE * self.quiet_s or read >= _LEAST_READ_BYTES


@dataclass(slots=True)
class StallWatch:
    """Watches a process from a thread, for a `with` block.

    Args:
        clock: see there; a limit of 0 watches nothing.
        on_stall: called once, in the thread, with what is wrong.
        key: the server's own.
    """

    pid: int
    clock: StallClock
    on_stall: Callable[[str], object]
    key: str | None = None
    _engine: Path | None = None
    _answers: int = 0
    _asking: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.clock.limit_s > 0:
            self._thread = threading.Thread(target=self._run, name="stall watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def listening(self, engine: Path) -> None:
        """From now on it can be asked at this socket."""
        self._engine = engine

    def _run(self) -> None:
        heard, looked = 0, time.monotonic()
        while not self._stop.wait(LOOK_S):
            answered, heard = self._answers > heard, self._answers
            passed_s, looked = time.monotonic() - looked, time.monotonic()
            why = self.clock.look(passed_s, read_work(self.pid), answered)
            if why is not None:
                self.on_stall(why)
                return
            if self._engine is not None and not self._asking and self.clock.should_ask():
                self._asking = True
                # It may wait for an answer until the process is gone.
                threading.Thread(target=self._ask, args=(self._engine,), name="stall question", daemon=True).start()

    def _ask(self, engine: Path) -> None:
        answer = call_engine(engine, "GET", _PING, key=self.key, timeout_s=2 * self.clock.batch_limit_s)
        if answer is not None:
            self._answers += 1
        self._asking = False
