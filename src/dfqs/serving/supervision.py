"""A model's server that died is started again, while the front keeps the public socket.

A worker process takes the model's server along when it dies, and nothing else: who waits for an answer is told, who
asks afterwards waits until there is another one. One that hangs is ended, and has died then. A server that dies
whenever it is started is not started for ever.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dfqs.errors import DfqsError, RuntimeFailure, WorkerCrash
from dfqs.runtime.log_lines import server_errors
from dfqs.runtime.worker import Worker
from dfqs.serving.engine import EngineFailed, EngineListening, ServerSettings, run_server
from dfqs.serving.engine_state import EngineState
from dfqs.serving.stall import StallClock, StallWatch
from dfqs.storage.identity import FileStamp

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Before a restart: doubled for each in a row."""
SETTLED_S = 600.0
"""A server that was there for so long did not die of being started, though nobody asked it anything."""


@dataclass(frozen=True, slots=True)
class Restarting:
    """A server died and is started again."""

    why: str
    attempt: int
    """In a row, without an answer in between; the first is 1."""
    wait_s: float


@dataclass(slots=True)
class Supervision:
    """Runs a model's server, and another after each that died.

    Args:
        make_worker: a worker that was not entered yet.
        files: of the model; a restart must not serve another under its name.
        directory: for sockets; each server has one of its own, as a dead one leaves its behind.
        state: kept up to date.
        prepare: called with the socket of a server that came up, before anybody else asks it something.
        on_event: told of everything that servers emit; the first thing that it hears of one is its `EngineListening`.
        before_stop: called on Ctrl-C while a server answers, before that is stopped.
    """

    make_worker: Callable[[], Worker]
    settings: ServerSettings
    files: tuple[Path, ...]
    directory: Path
    state: EngineState
    prepare: Callable[[Path], object]
    on_event: Callable[[Any], None]
    on_restart: Callable[[Restarting], None]
    before_stop: Callable[[], object]
    _row: int = 0
    """Restarts in a row."""
    _stamps: dict[Path, FileStamp] = field(default_factory=dict)

    def run(self) -> None:
        """Until Ctrl-C (which goes on to the caller).

        Raises:
            RuntimeFailure: llama.cpp refused the model or the settings, or what is served failed for good.
            WorkerCrash: it died before it answered, or too often in a row.
        """
        self._stamps = {path: FileStamp.of(path.stat()) for path in self.files}
        while True:
            epoch, started = self.state.epoch, time.monotonic()
            try:
                self._run_one()
                return
            except (WorkerCrash, RuntimeFailure) as error:
                came_up = self.state.epoch > epoch
                if self.state.epoch == 0 or (came_up and isinstance(error, RuntimeFailure)):
                    # What never worked will not; what fails with a word of its own (a disk, a file) has given up.
                    self.state.end(error.sentence)
                    raise
                settled = self.state.answered > 0 or time.monotonic() - started > SETTLED_S
                self._wait(error, came_up and settled)

    def _wait(self, error: DfqsError, settled: bool) -> None:
        """
        Raises:
            WorkerCrash, RuntimeFailure: there is no use in another.
        """
        if self.state.path is not None:
            self.state.down(error.sentence)
        self._row = 1 if settled else self._row + 1
        changed = any(_is_another(path, stamp) for path, stamp in self._stamps.items())
        if changed or self._row > self.settings.limits.restarts:
            again = f" {self._row - 1} times in a row without an answer in between" if self._row > 1 else ""
            self.state.end(error.sentence)
            if again and isinstance(error, WorkerCrash):
                raise WorkerCrash(f"{error.sentence}; it was started again{again}", error.log_lines)
            raise error
        wait_s = min(FIRST_WAIT_S * 2 ** (self._row - 1), LONGEST_WAIT_S)
        self.on_restart(Restarting(error.sentence, self._row, wait_s))
        time.sleep(wait_s)
        self.state.restarts += 1

    def _run_one(self) -> None:
        path, begun = self.directory / f"engine-{self.state.restarts}.sock", False

        def hear(event: Any) -> None:
            nonlocal begun
            if isinstance(event, EngineListening):
                begun = True
                watch.listening(path)
                self.prepare(path)
                self.state.up(path)
            elif isinstance(event, EngineFailed):
                self.state.end(event.sentence)
            self.on_event(event)

        def before_stop() -> None:
            if self.state.path is not None:
                self.before_stop()

        clock = StallClock(self.settings.limits.stall_s)
        with self.make_worker() as worker, StallWatch(worker.pid, clock, worker.end, self.settings.api_key) as watch:
            calls = worker.reporting(hear, doing=f"serving {self.settings.path}", before_stop=before_stop)
            try:
                calls.call(run_server, self.settings, path)
            except RuntimeFailure as error:
                # Its log is whole only then; requests under way end with it.
                worker.close()
                reasons = [] if begun else server_errors(worker.log_lines)
                if not reasons:
                    raise
                raise RuntimeFailure(f"llama-server could not start: {reasons[0]}") from error


def _is_another(path: Path, before: FileStamp) -> bool:
    """Whether other bytes stand there now. A link made to a file changes its stamp and none of its bytes."""
    try:
        now = FileStamp.of(path.stat())
    except OSError:
        return True
    return replace(now, changed_ns=0) != replace(before, changed_ns=0)
