"""A GGUF file open for reading: its header, and the bytes of any tensor."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import FormatError
from dfqs.gguf.layout import TensorInfo
from dfqs.gguf.quants import PLAIN_DTYPES, Float32, dequantize
from dfqs.gguf.reader import Header, read_header
from dfqs.gguf.source import FileSource
from dfqs.storage.closing import Closing

PIECE_BYTES = 4 << 20


class GGUFFile(Closing):
    """An open file whose header has been checked.

    Raises:
        FormatError: the header lies, or the file is truncated.
        UsageError: the file is missing or unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.source = FileSource(path)
        try:
            self.header: Header = read_header(self.source)
        except BaseException:
            self.source.close()
            raise

    def read_tensor(self, name: str) -> bytes:
        """The tensor's bytes, whole."""
        span = self.header.span(self.header.tensor(name))
        return self.source.read_exactly(span.offset, span.length)

    def iter_tensor(self, tensor: TensorInfo, piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
        """The tensor's bytes in pieces, for tensors that do not fit in memory."""
        span = self.header.span(tensor)
        for offset in range(span.offset, span.end, piece_bytes):
            yield self.source.read_exactly(offset, min(piece_bytes, span.end - offset))

    def array(self, name: str) -> NDArray[Any]:
        """A tensor of a plain type (F32, F16, I32, ...) as numpy has it: reversed shape, own dtype.

        Raises:
            FormatError: its type is not plain; `dequantized` may know it.
        """
        tensor = self.header.tensor(name)
        if tensor.type not in PLAIN_DTYPES:
            raise FormatError(f"{tensor.type.name} is not a plain type", path=self.source.path, name=name)
        return np.frombuffer(self.read_tensor(name), PLAIN_DTYPES[tensor.type]).reshape(tensor.shape[::-1])

    def dequantized(self, name: str) -> Float32:
        """A tensor's values as float32, reversed shape."""
        tensor = self.header.tensor(name)
        return dequantize(tensor.type, self.read_tensor(name), tensor.shape)

    def close(self) -> None:
        self.source.close()
