"""A worker process, seen from its caller: calls that may die in C without taking the caller along."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from dfqs.errors import RuntimeFailure, WorkerCrash, printable
from dfqs.runtime.channel import ChannelClosed, Receiver, Sender
from dfqs.runtime.waiting import POLICY_VARIABLE

STOP_GRACE_S = 5.0
"""How long a call may take to end after it was asked to stop, before its process is ended."""

_LOG_LINES = 400
_CRASH_LINES = 8
_LINE_CHARS = 300


class Worker:
    """One worker process, for use in a `with` block.

    Args:
        threads: CPU threads for contexts made in it; None means every CPU that this process may use.
        omp_wait_policy: `active`, `passive` or `default`; None lets the worker choose by how busy the machine is.
        env: further environment variables for it.
    """

    def __init__(
        self, threads: int | None = None, omp_wait_policy: str | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self._threads = threads
        self._env = dict(env or {})
        if omp_wait_policy is not None:
            self._env[POLICY_VARIABLE] = omp_wait_policy
        self._process: subprocess.Popen[bytes] | None = None
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._idle = threading.Event()

    def __enter__(self) -> Self:
        request_read, request_write = os.pipe()
        answer_read, answer_write = os.pipe()
        in_main_thread = threading.current_thread() is threading.main_thread()
        arguments = [request_read, answer_write, self._threads or 0, os.getpid(), int(in_main_thread)]
        command = [sys.executable, "-P", "-m", "dfqs.runtime.worker_process", *map(str, arguments)]
        try:
            self._process = subprocess.Popen(
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
        self._sender = Sender(request_write)
        self._answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._idle.set()
        self._listener = threading.Thread(target=self._listen, args=(Receiver(answer_read),), daemon=True)
        self._log_reader = threading.Thread(target=self._read_log, daemon=True)
        self._listener.start()
        self._log_reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def log_lines(self) -> tuple[str, ...]:
        """The last lines that native code wrote to stdout and stderr, safe to print."""
        return tuple(self._log)

    def call(
        self,
        target: str,
        *args: Any,
        on_event: Callable[[Any], None] | None = None,
        doing: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run `target` (`package.module:function`) in the worker as `function(context, *args, **kwargs)`.

        Arguments, events and result must pickle. Ctrl-C (KeyboardInterrupt), or an exception from `on_event`, asks
        the call to stop and waits for it: the worker stays usable. A call that does not stop in
        `STOP_GRACE_S` is ended with its process.

        Args:
            on_event: called here, in order, with what the function emits.
            doing: what is under way, for the message should the process die: "loading the model".

        Raises:
            DfqsError: what the function raised.
            WorkerCrash: the process died.
        """
        process = self._running()
        doing = doing or f"running {target.rpartition(':')[2]}"
        self._idle.clear()
        try:
            self._sender.send(("call", target, args, kwargs))
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
        except ChannelClosed:
            raise self._crash(process, doing) from None
        except BaseException:
            if not self._idle.is_set():
                self._stop_call()
            raise

    def close(self) -> None:
        """End the process; nothing of it is left. Safe to call twice."""
        process = self._process
        if process is None:
            return
        self._process = None
        with contextlib.suppress(OSError):
            self._sender.close()
        for ending in (None, signal.SIGTERM, signal.SIGKILL):
            if ending is not None:
                process.send_signal(ending)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
                break
        self._log_reader.join(1.0)
        self._listener.join(1.0)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeFailure("the worker is not running; use it inside its `with` block")
        return self._process

    def _stop_call(self) -> None:
        """Ask the call under way to end; kill the process if it does not, or if the user insists."""
        try:
            self._sender.send(("stop",))
            stopped = self._idle.wait(STOP_GRACE_S)
        except ChannelClosed:
            stopped = False
        except KeyboardInterrupt:
            stopped = False
        if not stopped:
            self.close()
            return
        while not self._answers.empty():
            self._answers.get()

    def _listen(self, receiver: Receiver) -> None:
        try:
            while True:
                message = receiver.receive()
                self._answers.put(message)
                if message[0] != "event":
                    self._idle.set()
        except Exception:
            self._answers.put(("died", None))
            self._idle.set()
        finally:
            receiver.close()

    def _read_log(self) -> None:
        process = self._running()
        assert process.stdout is not None
        with process.stdout as stream:
            for line in iter(lambda: stream.readline(1 << 16), b""):
                text = line.decode("utf-8", "replace").rstrip()
                if text:
                    self._log.append(printable(text, _LINE_CHARS))

    def _crash(self, process: subprocess.Popen[bytes], doing: str) -> WorkerCrash:
        self.close()
        code = process.returncode
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            how = f"llama.cpp died with {name} while {doing}"
            if -code == signal.SIGKILL:
                how += " (the kernel ends processes so when memory runs out)"
        else:
            how = f"the worker process ended with exit code {code} while {doing}"
        return WorkerCrash(how, self.log_lines[-_CRASH_LINES:])
