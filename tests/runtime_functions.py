"""Functions that the runtime's tests call inside a worker."""

import ctypes
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dfqs.errors import FormatError
from dfqs.runtime.context import Context, Model
from dfqs.runtime.stop import Stopped
from dfqs.runtime.worker_context import WorkerContext

WORKER_ENV = {"PYTHONPATH": str(Path(__file__).parent)}


def double(worker: WorkerContext, value: int, *, plus: int = 0) -> int:
    return 2 * value + plus


def count_threads(worker: WorkerContext) -> tuple[int, int]:
    """Of contexts, and of the library."""
    return worker.threads, worker.library.threads


def emit_each(worker: WorkerContext, items: list[Any]) -> str:
    for item in items:
        worker.emit(item)
    return "done"


def remember(worker: WorkerContext, value: int) -> list[int]:
    worker.state.setdefault("seen", []).append(value)
    seen: list[int] = worker.state["seen"]
    return seen


def read_environment(worker: WorkerContext, name: str) -> str | None:
    return os.environ.get(name)


def raise_format_error(worker: WorkerContext) -> None:
    raise FormatError("cut short", path="model.gguf", offset=12, name="blk.0.ffn_up_exps.weight")


def raise_value_error(worker: WorkerContext) -> None:
    raise ValueError("a bug in a job")


class UnpicklableError(Exception):
    def __init__(self, first: object, second: object) -> None:
        super().__init__("two arguments that pickle loses")


def raise_unpicklable(worker: WorkerContext) -> None:
    raise UnpicklableError(threading.Lock(), None)


def return_unpicklable(worker: WorkerContext) -> object:
    return threading.Lock()


def return_bytes(worker: WorkerContext, length: int) -> bytes:
    return bytes(length)


def fail_c_assert(worker: WorkerContext) -> None:
    """A real GGML_ASSERT, reached with a start that is not a whole number of blocks."""
    q8_0 = 8
    source = (ctypes.c_float * 64)()
    target = ctypes.create_string_buffer(1024)
    worker.library.ggml_quantize_chunk(q8_0, source, target, 1, 1, 32, None)


def load_library(worker: WorkerContext) -> str:
    return worker.library.omp_wait_policy


def scribble(worker: WorkerContext) -> str:
    """Write to stdout and stderr as native code does, and as Python does."""
    os.write(1, b"to stdout \x1b[31mred\x07\n")
    os.write(2, b"\xff\xfe to stderr\n")
    print("printed", flush=True)
    sys.stderr.write("complained\n")
    return "intact"


def scribble_and_die(worker: WorkerContext) -> None:
    os.write(2, b"last words \x1b]0;title\x07\n")
    os.abort()


def announce_and_sleep(worker: WorkerContext) -> None:
    """Deaf to a request to stop."""
    worker.emit(os.getpid())
    time.sleep(600)


def announce_and_wait(worker: WorkerContext) -> None:
    worker.emit(os.getpid())
    worker.stop.wait()
    raise Stopped


def announce_and_clean_up(worker: WorkerContext, path: Path) -> None:
    """Deaf to a request to stop, but with something to put away."""
    try:
        announce_and_sleep(worker)
    finally:
        path.write_text("cleaned up", encoding="utf-8")


def decode_forever(worker: WorkerContext, path: Path) -> None:
    with Model(worker.library, path) as model, Context(model, 512) as context:
        tokens = model.tokenize("word " * 200)
        while True:
            context.clear()
            context.decode(tokens)
            if "said" not in worker.state:
                worker.state["said"] = True
                worker.emit("decoding")
