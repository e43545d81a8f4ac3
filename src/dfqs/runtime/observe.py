"""Looking at tensors while a graph is evaluated (`cb_eval`), without a way to break the evaluation.

llama.cpp calls back twice for a node: asking whether it is wanted, and with its data. Returning False the second time,
or raising, silently ends the graph (`llama_decode` still returns 0, with logits that nobody computed). So everything is
caught here, True is returned, and the exception is raised again after the decode. Who wants nothing of a graph but
what it has seen says so, and the rest is not computed.
"""

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import RuntimeFailure
from dfqs.runtime import abi

_NUMPY_TYPES: dict[int, type[np.generic]] = {
    0: np.float32,
    1: np.float16,
    24: np.int8,
    25: np.int16,
    26: np.int32,
    27: np.int64,
}


END_GRAPH = False
"""What `take` of an `EvalCallback` returns where nothing behind is wanted."""


class TensorView:
    """A tensor of the graph, valid only inside `take`. Calling it copies its data out."""

    __slots__ = ("_library", "_pointer", "_tensor")

    def __init__(self, library: Any, pointer: Any) -> None:
        self._library = library
        self._pointer = pointer
        self._tensor = pointer.contents

    @property
    def name(self) -> str:
        return bytes(self._tensor.name).decode("utf-8", "replace")

    @property
    def address(self) -> int:
        """Where ggml keeps it: within one evaluation, the same address is the same tensor."""
        return ctypes.addressof(self._tensor)

    @property
    def op(self) -> str:
        """ggml's name of the operation that made it: `MUL_MAT_ID`, `NONE` for a weight or an input."""
        return str(self._library.ggml_op_name(self._tensor.op).decode())

    @property
    def type(self) -> int:
        """ggml's number of the element type."""
        return int(self._tensor.type)

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements on each of the four axes, fastest first (`ne`)."""
        return tuple(self._tensor.ne)

    def source(self, index: int) -> "TensorView | None":
        """The operation's input `index` (0 to 9), for `MUL_MAT`: 0 is the weight, 1 the activations."""
        pointer = self._tensor.src[index]
        return TensorView(self._library, pointer) if pointer else None

    def __call__(self) -> NDArray[Any]:
        """Copy of the data, strides resolved. Axes slowest first, leading axes of length 1 dropped down to two.

        Raises:
            RuntimeFailure: a quantized type, which has no numpy form.
        """
        return read_tensor(self._library, self._pointer)

    def peek(self) -> NDArray[Any]:
        """The data as calling gives it, not copied where it lies in this process's memory. Not to be written to, and
        gone with the view.

        Raises:
            RuntimeFailure: a quantized type, which has no numpy form.
        """
        tensor = self._tensor
        if not tensor.data or not tensor.buffer or not self._library.ggml_backend_buffer_is_host(tensor.buffer):
            return self()
        span = self._library.ggml_nbytes(self._pointer)
        return _shaped(tensor, (ctypes.c_uint8 * span).from_address(tensor.data))


def read_tensor(library: Any, pointer: Any) -> NDArray[Any]:
    """Copy a tensor, contiguous or a strided view, from wherever it lies. See `TensorView.__call__`."""
    tensor = pointer.contents
    # A view ends at its last element, not after a whole last row: ggml_nbytes counts exactly that span.
    span = library.ggml_nbytes(pointer)
    data = np.empty(span, np.uint8)
    library.ggml_backend_tensor_get(pointer, data.ctypes.data, 0, span)
    return np.ascontiguousarray(_shaped(tensor, data.data))


def _shaped(tensor: Any, data: Any) -> NDArray[Any]:
    """A tensor's bytes as an array."""
    dtype = _NUMPY_TYPES.get(tensor.type)
    if dtype is None:
        raise RuntimeFailure(f"tensor {tensor.name!r} of ggml type {tensor.type} has no numpy form")
    shape, strides = list(tensor.ne)[::-1], list(tensor.nb)[::-1]
    while len(shape) > 2 and shape[0] == 1:
        shape, strides = shape[1:], strides[1:]
    return np.ndarray(shape, dtype, data, 0, strides)


class GraphCallback(Protocol):
    """What a context calls while it evaluates a graph, and asks afterwards whether all went well."""

    def attach(self, library: Any) -> int | None:
        """Address to pass as `cb_eval`; valid while this object lives."""
        ...

    def called(self, pointer: Any, ask: bool, data: Any = None) -> bool:
        """The callback itself: whether a node is wanted or, with its data, whether to go on. Raises nothing."""
        ...

    def raise_pending(self) -> None:
        """Raise what went wrong since the last time."""
        ...


class CallbackChain:
    """Several callbacks on one graph, each as if it were alone; the first one sees a node's data first.

    A callback is also given the data of nodes that only others want.
    """

    def __init__(self, *callbacks: GraphCallback) -> None:
        self._callbacks = callbacks
        self._function = abi.EVAL_CALLBACK(self.called)

    def attach(self, library: Any) -> int | None:
        """Address to pass as `cb_eval`; valid while this object lives."""
        for callback in self._callbacks:
            callback.attach(library)
        return ctypes.cast(self._function, ctypes.c_void_p).value

    def called(self, pointer: Any, ask: bool, _data: Any = None) -> bool:
        """See `GraphCallback.called`."""
        if not ask:
            return all(callback.called(pointer, False) for callback in self._callbacks)
        # All are asked, whoever wants it: some learn from what they are asked.
        wanted = [callback.called(pointer, True) for callback in self._callbacks]
        return any(wanted)

    def raise_pending(self) -> None:
        """Raise the first callback's error; the others' are about the same graph, and forgotten."""
        errors: list[BaseException] = []
        for callback in self._callbacks:
            try:
                callback.raise_pending()
            except BaseException as error:
                errors.append(error)
        if errors:
            raise errors[0]


def chain(*callbacks: GraphCallback | None) -> GraphCallback | None:
    """One callback for all that there are; None where there are none."""
    found = [callback for callback in callbacks if callback is not None]
    return CallbackChain(*found) if len(found) > 1 else next(iter(found), None)


class EvalCallback:
    """Subscribes to tensors of the graph.

    Args:
        wants: `(tensor_name, op) -> bool`, asked once for each pair and remembered.
        take: `(tensor_name, op, tensor)`; `tensor()` copies the data, `tensor.source(i)` reaches the inputs. It returns
            `END_GRAPH` where nothing behind is wanted: what is left is not computed, and the logits are worth nothing.
            An exception raised here comes out of `Context.decode`; later tensors of that decode are skipped.
    """

    def __init__(self, wants: Callable[[str, str], bool], take: Callable[[str, str, TensorView], bool | None]) -> None:
        self._wants = wants
        self._take = take
        self._known: dict[tuple[bytes, int], tuple[bool, str, str]] = {}
        self._error: BaseException | None = None
        self._library: Any = None
        self._function = abi.EVAL_CALLBACK(self.called)

    def attach(self, library: Any) -> int | None:
        """Address to pass as `cb_eval`; valid while this object lives."""
        self._library = library
        return ctypes.cast(self._function, ctypes.c_void_p).value

    def forget(self) -> None:
        """Ask `wants` anew about every node."""
        self._known.clear()

    def raise_pending(self) -> None:
        """Raise what `wants` or `take` raised since the last time."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def called(self, pointer: Any, ask: bool, _data: Any = None) -> bool:
        """See `GraphCallback.called`."""
        try:
            tensor = pointer.contents
            key = (tensor.name, tensor.op)
            known = self._known.get(key)
            if known is None:
                name = key[0].decode("utf-8", "replace")
                op = str(self._library.ggml_op_name(key[1]).decode())
                known = self._known[key] = (bool(self._wants(name, op)), name, op)
            if ask:
                return known[0] and self._error is None
            if known[0] and self._error is None:
                return self._take(known[1], known[2], TensorView(self._library, pointer)) is not END_GRAPH
        except BaseException as error:
            self._error = self._error or error
        return True
