"""Plain and simply quantized tensor types to numpy and back.

Only what the demonstration model needs (its source is Q4_1 and Q8_0); the low-bit types are the native library's work.
Source of the block layouts: llama.cpp, `ggml/src/ggml-common.h` and the reference loops in `ggml-quants.c`.
"""

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import FormatError
from dfqs.gguf.layout import tensor_length
from dfqs.gguf.types import BLOCKS, GGMLType

Float32 = NDArray[np.float32]

PLAIN_DTYPES: dict[GGMLType, np.dtype[np.generic]] = {
    GGMLType.F32: np.dtype("<f4"),
    GGMLType.F16: np.dtype("<f2"),
    GGMLType.F64: np.dtype("<f8"),
    GGMLType.I8: np.dtype("i1"),
    GGMLType.I16: np.dtype("<i2"),
    GGMLType.I32: np.dtype("<i4"),
    GGMLType.I64: np.dtype("<i8"),
}
"""Types that numpy knows as they are."""
DECODABLE = frozenset(
    {GGMLType.F32, GGMLType.F16, GGMLType.F64, GGMLType.BF16, GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q8_0}
)
"""Types that `dequantize` knows."""


def dequantize(type_: GGMLType, data: bytes | memoryview, shape: tuple[int, ...]) -> Float32:
    """Values of a tensor.

    Args:
        shape: GGUF order (fastest axis first).

    Returns:
        An array of the reversed shape.

    Raises:
        FormatError: `data` is not as long as the shape needs, or the type is none of F32, F16, F64, BF16, Q4_0,
            Q4_1, Q8_0.
    """
    if len(data) != tensor_length(type_, shape):
        raise FormatError(
            f"{len(data):,} bytes, shape {list(shape)} of {type_.name} needs {tensor_length(type_, shape):,}"
        )
    if type_ not in DECODABLE:
        raise FormatError(f"{type_.name} cannot be decoded without the native library")
    out_shape = shape[::-1]
    if type_ in (GGMLType.F32, GGMLType.F16, GGMLType.F64):
        return np.frombuffer(data, PLAIN_DTYPES[type_]).astype(np.float32).reshape(out_shape)
    if type_ is GGMLType.BF16:
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(out_shape)
    blocks = np.frombuffer(data, np.uint8).reshape(-1, BLOCKS[type_].bytes)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    # A scale that is infinite times 0 is no number, as in C; that is the file's, and no warning of ours.
    with np.errstate(invalid="ignore"):
        if type_ is GGMLType.Q8_0:
            values = scale * blocks[:, 2:].view(np.int8)
        elif type_ is GGMLType.Q4_0:
            values = scale * (_nibbles(blocks[:, 2:]).astype(np.int8) - np.int8(8))
        else:
            minimum = blocks[:, 2:4].copy().view("<f2").astype(np.float32)
            values = scale * _nibbles(blocks[:, 4:]) + minimum
    return values.astype(np.float32, copy=False).reshape(out_shape)


def quantize(values: Float32, type_: GGMLType) -> bytes:
    """Bytes of a tensor of `values` (numpy order) as F32, F16, BF16 or Q8_0.

    Raises:
        FormatError: another type, or rows that are not whole blocks.
    """
    values = np.ascontiguousarray(values, np.float32)
    tensor_length(type_, values.shape[::-1] or (1,))
    if type_ is GGMLType.F32:
        return values.tobytes()
    if type_ is GGMLType.F16:
        return values.astype("<f2").tobytes()
    if type_ is GGMLType.BF16:
        return _round_to_bf16(values).tobytes()
    if type_ is GGMLType.Q8_0:
        return _quantize_q8_0(values).tobytes()
    raise FormatError(f"{type_.name} cannot be encoded without the native library")


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Low halves first, then high halves: 16 bytes to 32 values."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=1)


def _round_to_bf16(values: Float32) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # A NaN stays a (quiet) NaN; rounding could carry its mantissa away.
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, (bits >> 16) | 64, rounded).astype(np.uint16)


def _quantize_q8_0(values: Float32) -> NDArray[np.uint8]:
    rows = values.reshape(-1, 32)
    scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    scaled = rows * inverse
    # Half away from zero, as C's roundf does; numpy's own rounding is half to even.
    rounded = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))
    out = np.empty((len(rows), 34), np.uint8)
    out[:, :2] = scale.astype("<f2").view(np.uint8)
    out[:, 2:] = rounded.astype(np.int8).view(np.uint8)
    return out
