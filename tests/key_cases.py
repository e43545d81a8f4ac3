"""Headers with one thing changed, before a hole in place of their data, and what the runtime says of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Concatenate, ParamSpec

from dfqs.errors import RuntimeFailure, WorkerCrash
from dfqs.gguf import KeyValue, RawKeyValue, ValueType, array, encode_header, parse_header
from dfqs.runtime import Worker
from dfqs.runtime.context import Context, Model
from dfqs.runtime.worker_context import WorkerContext
from runtime_functions import WORKER_ENV

CONTEXT_TOKENS = 64
Given = ParamSpec("Given")


def write_variant(base: Path, path: Path, changes: Sequence[KeyValue] = (), without: Sequence[str] = ()) -> Path:
    """`base`'s header with keys replaced, added or left out, before a hole of the right length."""
    header = parse_header(base)
    changed: dict[str, KeyValue | RawKeyValue] = {key.name: key for key in changes}
    keys: list[KeyValue | RawKeyValue] = []
    for entry in header.entries:
        if entry.name not in without:
            keys.append(changed.pop(entry.name) if entry.name in changed else header.raw_entry(entry))
    shapes = [(tensor.name, tensor.shape, tensor.type) for tensor in header.tensors]
    encoded = encode_header([*keys, *changed.values()], shapes, alignment=header.alignment)
    with path.open("wb") as file:
        file.write(encoded)
        file.truncate(len(encoded) + header.file_size - header.data_offset)
    return path


def as_type(name: str, type_: ValueType, value: object) -> KeyValue:
    """The key with (about) the value it had, as another type."""
    if type_ is ValueType.STRING:
        return KeyValue(name, type_, str(value))
    number = value if isinstance(value, int | float) else 1
    if type_ is ValueType.BOOL:
        return KeyValue(name, type_, bool(number))
    if type_ in (ValueType.FLOAT32, ValueType.FLOAT64):
        return KeyValue(name, type_, float(number))
    most = {ValueType.UINT8: 255, ValueType.INT8: 127, ValueType.UINT16: 65535, ValueType.INT16: 32767}
    return KeyValue(name, type_, min(int(number), most.get(type_, 2**31 - 1)))


def as_array(name: str, element_type: ValueType, value: object, count: int) -> KeyValue:
    return array(name, element_type, [as_type(name, element_type, value).value] * count)


class Runtime:
    """What llama.cpp makes of a header; a worker that died is replaced."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def loads(self, path: Path, *, context: bool = False) -> bool:
        """Whether it loads a model (and makes a context); not when it refuses it, or dies of it."""
        return self._does(load, path, context)

    def decodes(self, path: Path) -> bool:
        """Whether it computes a few tokens with a model."""
        return self._does(decode, path)

    def _does(
        self, job: Callable[Concatenate[WorkerContext, Given], None], *given: Given.args, **named: Given.kwargs
    ) -> bool:
        if self._worker is None:
            self._worker = Worker(env=WORKER_ENV, threads=1)
            self._worker.__enter__()
        try:
            self._worker.call(job, *given, **named)
        except RuntimeFailure:
            return False
        except WorkerCrash:
            self._worker = None
            return False
        return True

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()


def load(worker: WorkerContext, path: Path, context: bool) -> None:
    """In the worker: load without weights."""
    with Model(worker.library, path, load_mode="none", no_alloc=True) as model:
        if context:
            Context(model, CONTEXT_TOKENS, threads=1).close()


def decode(worker: WorkerContext, path: Path) -> None:
    """In the worker: load with weights, and decode."""
    with Model(worker.library, path) as model, Context(model, CONTEXT_TOKENS, threads=1) as context:
        context.decode(list(range(1, 9)))
