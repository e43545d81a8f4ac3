"""A worker process, seen from its caller: calls that may die in C without taking the caller along."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from dfqs.errors import RuntimeFailure, WorkerCrash, printable
from dfqs.runtime.channel import ChannelClosed, Receiver, Sender
from dfqs.runtime.omp_policy import check_wait_policy
from dfqs.runtime.postmortem import Witness

if TYPE_CHECKING:
    # Only its name is needed here; the module stands on the library's own.
    from dfqs.runtime.worker_context import WorkerContext

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

STOP_GRACE_S = 5.0
"""How long a call may take to end after it was asked to stop, before its process is ended."""
CLOSE_GRACE_S = 1.0
"""How long an idle process may take to end, before it is made to."""

_LOG_LINES = 400
_CRASH_LINES = 8
_LINE_CHARS = 300


class Worker:
    """One worker process, for use in a `with` block; one call at a time.

    Args:
        threads: CPU threads for contexts made in it; None means one a physical core.
        omp_wait_policy: one of `omp_policy.WAIT_POLICIES`; None lets the worker choose by how busy the machine is.
        env: further environment variables for it.
        ready_for: a module that it loads at once, while the caller is still getting ready.
    """

    def __init__(
        self,
        threads: int | None = None,
        omp_wait_policy: str | None = None,
        env: Mapping[str, str] | None = None,
        ready_for: str = "dfqs.runtime.context",
    ) -> None:
        self._threads = threads
        self._wait_policy = check_wait_policy(omp_wait_policy) if omp_wait_policy is not None else ""
        self._env = dict(env or {})
        self._ready_for = ready_for
        self._process: subprocess.Popen[bytes] | None = None
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._calls = 0
        self._witness = Witness()
        self._ended_because: str | None = None

    def __enter__(self) -> Self:
        request_read, request_write = os.pipe()
        answer_read, answer_write = os.pipe()
        in_main_thread = threading.current_thread() is threading.main_thread()
        numbers = (request_read, answer_write, os.getpid(), int(in_main_thread), self._threads or 0)
        # -P: the current directory may be anybody's, and must not provide our modules.
        command = [sys.executable, "-P", "-m", "dfqs.runtime.worker_process"]
        command += [*map(str, numbers), self._wait_policy, self._ready_for]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(request_read, answer_write),
                # GGML_NO_BACKTRACE: an assert would else start a debugger and bury its own message.
                env={**os.environ, "GGML_NO_BACKTRACE": "1", **self._env},
                # Ctrl-C in the terminal is the caller's to answer.
                start_new_session=True,
            )
        except OSError as error:
            os.close(request_write)
            os.close(answer_read)
            raise RuntimeFailure(f"the worker process could not be started: {error}") from error
        finally:
            os.close(request_read)
            os.close(answer_write)
        assert process.stdout is not None
        self._process = process
        self._sender = Sender(request_write)
        self._idle.set()
        self._listener = threading.Thread(target=self._listen, args=(Receiver(answer_read),), daemon=True)
        self._log_reader = threading.Thread(target=self._read_log, args=(process.stdout,), daemon=True)
        self._listener.start()
        self._log_reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def threads(self) -> int | None:
        """That contexts made in it take; None: one a physical core."""
        return self._threads

    @property
    def pid(self) -> int:
        return self._running().pid

    def watch(self, paths: Sequence[Path]) -> None:
        """Remember files that calls are going to map, for the message should the process die over them."""
        self._witness.watch(paths)

    @property
    def log_lines(self) -> tuple[str, ...]:
        """The last lines that native code wrote to stdout and stderr, safe to print. Whole after `close`."""
        return tuple(self._log)

    def call(
        self,
        job: Callable[Concatenate["WorkerContext", Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Run `job(context, *args, **kwargs)` in the worker: a function of a module, sent as its name.

        Arguments, events and result must pickle. Ctrl-C (KeyboardInterrupt), or an exception from who is told of
        events (`reporting`), asks the call to stop and waits for it; the worker stays usable. A call that does not
        stop in `STOP_GRACE_S` is ended with its process.

        Raises:
            DfqsError: what the function raised.
            WorkerCrash: the process died.
        """
        return self.reporting().call(job, *args, **kwargs)

    def reporting(
        self,
        on_event: Callable[[Any], None] | None = None,
        *,
        doing: str | None = None,
        before_stop: Callable[[], object] | None = None,
    ) -> "ReportingCalls":
        """The same worker, with somebody told of what its calls emit.

        Args:
            on_event: called here, in order, with what the function emits.
            doing: what is under way, for the message should the process die: "loading the model".
            before_stop: called on Ctrl-C before the call is asked to stop, which waits for it.
        """
        return ReportingCalls(self._call, on_event, doing, before_stop)

    def _call(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        on_event: Callable[[Any], None] | None,
        doing: str | None,
        before_stop: Callable[[], object] | None,
    ) -> Any:
        process = self._running()
        doing = doing or f"running {name.rpartition(':')[2]}"
        self._calls += 1
        self._idle.clear()
        sent = False
        try:
            self._sender.send(("call", self._calls, name, args, kwargs))
            sent = True
            return self._await_answer(process, doing, on_event)
        except ChannelClosed:
            raise self._crash(process, doing) from None
        except BaseException as error:
            try:
                if isinstance(error, KeyboardInterrupt) and before_stop is not None:
                    before_stop()
            finally:
                if not sent:
                    # Half a message may be in the pipe.
                    self.close()
                elif not self._idle.is_set():
                    self._stop_call()
            raise

    def close(self) -> None:
        """End the process; nothing of it is left. Safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            self._sender.close()
            _end(process)
        except BaseException:
            process.kill()
            raise
        self._log_reader.join(CLOSE_GRACE_S)
        self._listener.join(CLOSE_GRACE_S)

    def end(self, why: str) -> None:
        """Kill the process, from any thread; the call under way raises `WorkerCrash` with this reason."""
        process = self._process
        if process is not None:
            self._ended_because = why
            process.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeFailure("the worker is not running: it was not entered, was closed, or had to be ended")
        return self._process

    def _await_answer(
        self, process: subprocess.Popen[bytes], doing: str, on_event: Callable[[Any], None] | None
    ) -> Any:
        while True:
            kind, value = self._answers.get()
            if kind == "event":
                if on_event is not None:
                    on_event(value)
            elif kind == "return":
                return value
            elif kind == "raise":
                raise value
            elif kind == "stopped":
                raise KeyboardInterrupt
            else:
                raise self._crash(process, doing)

    def _stop_call(self) -> None:
        """Ask the call under way to end; end the process if it does not, or if the user insists."""
        try:
            self._sender.send(("stop", self._calls))
            stopped = self._idle.wait(STOP_GRACE_S)
        except (ChannelClosed, KeyboardInterrupt):
            stopped = False
        if not stopped:
            self.close()
        while not self._answers.empty():
            self._answers.get()

    def _listen(self, receiver: Receiver) -> None:
        """Thread: answers from the pipe into the queue, where a signal cannot tear a message apart."""
        try:
            while True:
                message = receiver.receive()
                self._answers.put(message)
                if message[0] != "event":
                    self._idle.set()
        except ChannelClosed:
            self._answers.put(("died", None))
        except Exception as error:
            self._answers.put(("raise", RuntimeFailure(f"the worker's answer cannot be read: {error}")))
        finally:
            self._idle.set()
            receiver.close()

    def _read_log(self, stream: IO[bytes]) -> None:
        """Thread: keeps the pipe empty, so that native code never waits for us."""
        with stream:
            for line in iter(lambda: stream.readline(1 << 16), b""):
                text = line.decode("utf-8", "replace").rstrip()
                if text:
                    self._log.append(printable(text, _LINE_CHARS))

    def _crash(self, process: subprocess.Popen[bytes], doing: str) -> WorkerCrash:
        self.close()
        code = process.returncode
        if self._ended_because is not None:
            how = f"llama.cpp was ended while {doing}: {self._ended_because}"
        elif code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            how = f"llama.cpp died with {name} while {doing}"
            if why := self._witness.explain(-code):
                how += f": {why}"
            elif -code == signal.SIGKILL:
                how += " (the kernel ends processes so when memory runs out)"
        else:
            how = f"the worker process ended with exit code {code} while {doing}"
        return WorkerCrash(how, self.log_lines[-_CRASH_LINES:])


@dataclass(frozen=True, slots=True)
class ReportingCalls:
    """Calls of a worker whose events somebody is told of; see `Worker.reporting`."""

    _call: Callable[..., Any]
    _on_event: Callable[[Any], None] | None
    _doing: str | None
    _before_stop: Callable[[], object] | None

    def call(
        self,
        job: Callable[Concatenate["WorkerContext", Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """See `Worker.call`."""
        result: Result = self._call(_name_of(job), args, kwargs, self._on_event, self._doing, self._before_stop)
        return result


def _name_of(job: Callable[..., Any]) -> str:
    """`package.module:function`, by which the worker finds it."""
    module, name = job.__module__, job.__qualname__
    if module == "__main__" or not name.isidentifier():
        raise TypeError(f"{module}.{name} is no function of a module that a worker can import")
    return f"{module}:{name}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process whose pipe was closed; push where it does not go by itself."""
    for push in (None, signal.SIGTERM, signal.SIGKILL):
        if push is not None:
            process.send_signal(push)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(CLOSE_GRACE_S)
            return
    process.wait()
