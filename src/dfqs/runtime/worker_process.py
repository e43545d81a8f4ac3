"""The worker's side: `python -m dfqs.runtime.worker_process`, started by `Worker` only.

The main thread runs calls; a second thread listens, so that a request to stop, or the caller's death, is seen while
the main thread is inside C.
"""

import importlib
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from typing import Any, NoReturn

from dfqs.errors import DfqsError, RuntimeFailure
from dfqs.runtime import library as native
from dfqs.runtime.channel import ChannelClosed, Receiver, Sender
from dfqs.runtime.omp_policy import LoadSample
from dfqs.runtime.stop import Stopped
from dfqs.runtime.worker_context import WorkerContext
from dfqs.storage.libc import die_with_starting_thread


class Service:
    """Runs the caller's calls one after another."""

    def __init__(self, receiver: Receiver, sender: Sender, context: WorkerContext) -> None:
        self._receiver = receiver
        self._sender = sender
        self._context = context
        self._calls: queue.SimpleQueue[tuple[int, str, tuple[Any, ...], dict[str, Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._current = 0

    def listen(self) -> NoReturn:
        """Take messages until the caller is gone."""
        while True:
            try:
                kind, number, *rest = self._receiver.receive()
            except ChannelClosed:
                # The caller is dead or done with us, and the main thread may be deep inside C.
                os._exit(0)
            if kind == "call":
                self._calls.put((number, *rest))
                continue
            with self._lock:
                # A stop may arrive when its call has just ended; it must not hit the next one.
                if number == self._current:
                    self._context.stop.request()

    def serve(self) -> NoReturn:
        """Run calls until the listener ends the process."""
        while True:
            number, name, args, kwargs = self._calls.get()
            self._set_current(number)
            answer = self._run(name, args, kwargs)
            self._set_current(0)
            self._send(name, answer)

    def _set_current(self, number: int) -> None:
        with self._lock:
            self._current = number
            self._context.stop.clear()

    def _run(self, job: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any]:
        try:
            module, _, name = job.partition(":")
            function = getattr(importlib.import_module(module), name)
            return ("return", function(self._context, *args, **kwargs))
        except Stopped:
            return ("stopped", None)
        except DfqsError as error:
            return ("raise", error)
        except Exception as error:
            return ("raise", _portable(error))

    def _send(self, name: str, answer: tuple[str, Any]) -> None:
        try:
            self._sender.send(answer)
        except ChannelClosed:
            os._exit(0)
        except Exception as error:
            self._sender.send(("raise", RuntimeFailure(f"{name} returned what cannot be sent: {error}")))


def main(
    request_descriptor: int,
    answer_descriptor: int,
    parent: int,
    die_with_thread: bool,
    threads: int,
    wait_policy: str,
    ready_for: str,
) -> NoReturn:
    """Serve calls until the caller closes the pipe or dies.

    Args:
        ready_for: a module that calls are going to need.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    if die_with_thread:
        # Only when the caller started us from its main thread: the kernel watches that thread, not the process.
        die_with_starting_thread()
    if os.getppid() != parent:
        os._exit(0)
    native.allow_loading()
    sender = Sender(answer_descriptor)
    context = WorkerContext(sender, threads or None, wait_policy or None, LoadSample())
    service = Service(Receiver(request_descriptor), sender, context)
    # While the caller is still getting ready; and before anybody listens, since taking a call's arguments apart imports
    # too, and two threads in packages that import each other find halves of them.
    importlib.import_module(ready_for)
    threading.Thread(target=service.listen, daemon=True).start()
    service.serve()


def _portable(error: Exception) -> Exception:
    """`error` as something that survives the pipe, with the worker's traceback as a note."""
    note = "in the worker:\n" + "".join(traceback.format_exception(error))
    failure = RuntimeFailure(f"{type(error).__name__}: {error}")
    failure.add_note(note)
    try:
        error.add_note(note)
        survives = type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return failure
    return error if survives else failure


def _exit_on_signal(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    *numbers, policy, module = sys.argv[1:]
    requests, answers, caller, by_main_thread, cpus = map(int, numbers)
    main(requests, answers, caller, bool(by_main_thread), cpus, policy, module)
