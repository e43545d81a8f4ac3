"""llama.cpp's own conversion loops, called through ctypes. Only in a worker process.

Every row is quantized for itself, so how rows are grouped into calls, and which thread makes a call, cannot change a
byte. ctypes releases the interpreter lock during a call: Python threads are enough to use all cores.
Source: `ggml/include/ggml.h` (`ggml_type_traits`, `ggml_quantize_chunk`, `ggml_validate_row_data`).
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import RuntimeFailure
from dfqs.gguf.layout import tensor_length
from dfqs.gguf.types import BLOCKS, GGMLType
from dfqs.quantize.q8_0 import quantize_q8_0

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class _TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits`."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    ]


_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class Kernels:
    """Rows to float32, float32 to rows of any type.

    Args:
        library: the loaded native library (`ctx.library` in a worker).

    Raises:
        RuntimeFailure: the library's blocks are not those of `BLOCKS`.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._to_float: dict[GGMLType, Callable[..., None]] = {}
        library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
        library.ggml_get_type_traits.argtypes = [ctypes.c_int32]
        library.ggml_validate_row_data.restype = ctypes.c_bool
        library.ggml_validate_row_data.argtypes = [ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t]
        self._quantize_chunk: Any = library.ggml_quantize_chunk
        for type_, block in BLOCKS.items():
            traits = library.ggml_get_type_traits(type_).contents
            if (traits.blck_size, traits.type_size) != block:
                raise RuntimeFailure(f"{type_.name} is {traits.blck_size} elements in {traits.type_size} bytes there")
            if traits.to_float:
                self._to_float[type_] = _TO_FLOAT(traits.to_float)
        for type_, name in _VECTORIZED.items():
            if (address := _address(library, name)) is not None:
                self._to_float[type_] = _TO_FLOAT(address)

    def prepare(self, type_: GGMLType) -> None:
        """Build the lookup tables of a type (seconds for IQ1 and IQ2). Once, before threads use it."""
        self._library.ggml_quantize_init(type_)

    def to_float(
        self, type_: GGMLType, data: bytes | memoryview, elements: int, into: Float32 | None = None
    ) -> Float32:
        """Values of `data`, whole blocks of `type_`.

        Args:
            into: room for them, where there is some to use again.

        Raises:
            RuntimeFailure: the library cannot decode that type, or `data` is too short.
        """
        if len(data) != tensor_length(type_, (elements,)) or (into is not None and into.size != elements):
            raise RuntimeFailure(f"{len(data):,} bytes are not {elements:,} elements of {type_.name}")
        if type_ is GGMLType.F32:
            return np.frombuffer(data, np.float32)
        if type_ not in self._to_float:
            raise RuntimeFailure(f"llama.cpp cannot turn {type_.name} into floats")
        source = np.frombuffer(data, np.uint8)
        values = np.empty(elements, np.float32) if into is None else into
        self._to_float[type_](source.ctypes.data, values.ctypes.data, elements)
        return values

    def quantize(self, type_: GGMLType, rows: Float32, importance: Float32 | None, out: Bytes) -> None:
        """Quantize `rows` ([rows, columns], contiguous) into `out`.

        Args:
            importance: one weight a column, or None where the type needs none.

        Raises:
            RuntimeFailure: shapes that do not fit (in C they would be an overrun).
        """
        count, columns = rows.shape
        fits = out.size == tensor_length(type_, (columns, count)) and out.flags.c_contiguous
        if not fits or not rows.flags.c_contiguous or rows.dtype != np.float32:
            raise RuntimeFailure(f"{count} rows of {columns} do not fit {out.size:,} bytes of {type_.name}")
        if importance is not None and (importance.shape != (columns,) or importance.dtype != np.float32):
            raise RuntimeFailure(f"importance has shape {importance.shape}, rows have {columns} columns")
        if type_ is GGMLType.Q8_0 and quantize_q8_0(rows.reshape(-1), out):
            return
        weights = None if importance is None else np.ascontiguousarray(importance)
        self._quantize_chunk(
            type_,
            rows.ctypes.data_as(_FLOAT_POINTER),
            out.ctypes.data,
            0,
            count,
            columns,
            None if weights is None else weights.ctypes.data_as(_FLOAT_POINTER),
        )

    def is_valid(self, type_: GGMLType, data: bytes | memoryview | Bytes) -> bool:
        """Whether every scale in `data` is a number. Of plain floats their bits say so; of quantized types it is
        llama.cpp's own check of a tensor, which takes five times as long for floats."""
        if type_ in _INFINITE:
            # Bits of positive numbers rise with the number, to infinity and beyond it NaN; negative ones likewise.
            unsigned, infinite, sign = _INFINITE[type_]
            bits = np.frombuffer(data, unsigned)
            signed = bits.view(np.dtype(f"i{bits.itemsize}"))
            return not bits.size or bool(signed.max() < infinite and bits.max() < sign + infinite)
        view = np.frombuffer(data, np.uint8)
        return bool(self._library.ggml_validate_row_data(type_, view.ctypes.data, view.size))


def _address(library: ctypes.CDLL, name: str) -> int | None:
    """Where a function is; None in a library without it."""
    function = getattr(library, name, None)
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value


_VECTORIZED = {GGMLType.F16: "ggml_cpu_fp16_to_fp32", GGMLType.BF16: "ggml_cpu_bf16_to_fp32"}
"""What decodes plain floats with the processor's own instructions, in a tenth of the time of `to_float`; every F16 and
BF16 is a float32, so that the values are the same."""
_INFINITE = {
    GGMLType.F32: (np.uint32, 0x7F800000, 0x80000000),
    GGMLType.F16: (np.uint16, 0x7C00, 0x8000),
    GGMLType.BF16: (np.uint16, 0x7F80, 0x8000),
}
"""Types whose scales are the values themselves: infinity and the sign among their bits."""

_FLOAT_POINTER = ctypes.POINTER(ctypes.c_float)
