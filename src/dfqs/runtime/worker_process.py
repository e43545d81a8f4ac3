"""The worker's side: `python -m dfqs.runtime.worker_process`, started by `Worker` only.

The main thread runs calls; a second thread listens, so that a request to stop, or the caller's death, is seen while
the main thread is inside C.
"""

import ctypes
import importlib
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from typing import Any

from dfqs.errors import DfqsError, RuntimeFailure
from dfqs.runtime import library as native
from dfqs.runtime.channel import ChannelClosed, Receiver, Sender
from dfqs.runtime.stop import StopFlag, Stopped
from dfqs.runtime.waiting import LoadSample
from dfqs.runtime.worker_context import WorkerContext

_PR_SET_PDEATHSIG = 1


def main(request_descriptor: int, answer_descriptor: int, threads: int, parent: int, die_with_thread: bool) -> None:
    """Serve calls until the caller closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    if die_with_thread:
        # Only when the caller started us from its main thread: the kernel watches that thread, not the process.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    native.allow_loading()
    sender = Sender(answer_descriptor)
    context = WorkerContext(sender, threads or None, LoadSample())
    calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
    listener = threading.Thread(target=_listen, args=(Receiver(request_descriptor), calls, context.stop), daemon=True)
    listener.start()
    while True:
        _, target, args, kwargs = calls.get()
        answer = _run(context, target, args, kwargs)
        context.stop.clear()
        try:
            sender.send(answer)
        except ChannelClosed:
            os._exit(0)
        except Exception as error:
            sender.send(("raise", RuntimeFailure(f"{target} returned something that cannot be sent: {error}")))


def _listen(receiver: Receiver, calls: "queue.SimpleQueue[Any]", stop: StopFlag) -> None:
    while True:
        try:
            message = receiver.receive()
        except ChannelClosed:
            # The caller is gone or done with us, and the main thread may be deep inside C.
            os._exit(0)
        if message[0] == "call":
            calls.put(message)
        elif message[0] == "stop":
            stop.request()


def _run(context: WorkerContext, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any]:
    try:
        module, _, name = target.partition(":")
        function = getattr(importlib.import_module(module), name)
        return ("return", function(context, *args, **kwargs))
    except Stopped:
        return ("stopped", None)
    except DfqsError as error:
        return ("raise", error)
    except Exception as error:
        return ("raise", _portable(error))


def _portable(error: Exception) -> Exception:
    """`error` as something that survives the pipe, with the worker's traceback as a note."""
    trace = "".join(traceback.format_exception(error))
    try:
        error.add_note(f"in the worker:\n{trace}")
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:
        pass
    failure = RuntimeFailure(f"{type(error).__name__}: {error}")
    failure.add_note(f"in the worker:\n{trace}")
    return failure


def _exit_on_signal(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:6]]
    main(numbers[0], numbers[1], numbers[2], numbers[3], bool(numbers[4]))
