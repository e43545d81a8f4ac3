"""Where bytes lie in a GGUF file.

Format: the GGUF specification, version 3. A file is a header (magic, version, counts, keys, tensor descriptions),
padding, and the data section. Tensor offsets count from the start of the data section and are contiguous: each tensor
begins where the one before it ends, rounded up to `general.alignment`. llama.cpp refuses a file with any other offsets.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dfqs.errors import FormatError
from dfqs.gguf.types import BLOCKS, GGMLType

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 63
"""llama.cpp keeps tensor names in 64 bytes, the last one NUL."""
MAX_63_BIT = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the header describes it."""

    name: str
    shape: tuple[int, ...]
    """GGUF order: fastest axis first. An expert tensor is (columns, rows, experts)."""
    type: GGMLType
    offset: int
    """Bytes from the start of the data section."""
    length: int
    """Bytes of payload, padding not counted."""

    @property
    def elements(self) -> int:
        """Number of values."""
        return checked_product(self.shape)


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """One tensor's place in one file."""

    name: str
    offset: int
    """Bytes from the start of the file."""
    length: int
    """Bytes of payload, padding not counted."""

    @property
    def end(self) -> int:
        return self.offset + self.length


def align_up(value: int, alignment: int) -> int:
    """`value` rounded up to a multiple of `alignment` (a power of two)."""
    return (value + alignment - 1) & -alignment


def checked_product(shape: Sequence[int]) -> int:
    """Number of elements of `shape`.

    Raises:
        FormatError: a dimension is not positive, or the product does not fit in 63 bits.
    """
    elements = 1
    for size in shape:
        if size <= 0:
            raise FormatError(f"dimension {size} of shape {list(shape)} is not positive")
        elements *= size
        if elements > MAX_63_BIT:
            raise FormatError(f"shape {list(shape)} has more than 2^63 elements")
    return elements


def tensor_length(type_: GGMLType, shape: Sequence[int]) -> int:
    """Bytes that a tensor of `shape` (GGUF order: fastest axis first) takes.

    Raises:
        FormatError: a dimension is not positive, the fastest axis is not a whole number of blocks, or the product does
            not fit in 63 bits.
    """
    elements = checked_product(shape)
    block = BLOCKS[type_]
    if shape[0] % block.elements:
        raise FormatError(f"row of {shape[0]} is not a multiple of {type_.name}'s block of {block.elements}")
    length = elements // block.elements * block.bytes
    if length > MAX_63_BIT:
        raise FormatError(f"shape {list(shape)} of {type_.name} takes more than 2^63 bytes")
    return length


def place_tensors(tensors: Iterable[tuple[str, tuple[int, ...], GGMLType]], alignment: int) -> Iterator[TensorInfo]:
    """Give each (name, shape, type), in order, its contiguous place in a data section.

    Raises:
        FormatError: a shape that its type cannot hold.
    """
    offset = 0
    # Thousands of tensors have a handful of shapes.
    lengths: dict[tuple[GGMLType, tuple[int, ...]], int] = {}
    for name, shape, type_ in tensors:
        try:
            length = lengths.get((type_, shape)) or tensor_length(type_, shape)
        except FormatError as error:
            raise FormatError(error.detail, name=name) from None
        lengths[type_, shape] = length
        yield TensorInfo(name, shape, type_, offset, length)
        offset = align_up(offset + length, alignment)


def data_section_length(tensors: Sequence[TensorInfo], alignment: int) -> int:
    """Bytes of a data section of contiguous `tensors`, the last one's padding included."""
    return align_up(tensors[-1].offset + tensors[-1].length, alignment) if tensors else 0


def squeeze_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """`shape` as ggml writes it: no trailing axes of size one, at least one axis."""
    last = max((axis for axis, size in enumerate(shape) if size != 1), default=0)
    return tuple(shape[: last + 1]) or (1,)
