"""Where a header is read from: a local file, bytes in memory, or (in `dfqs.pull`) a remote address."""

import os
from pathlib import Path
from typing import Protocol

from dfqs.errors import FormatError
from dfqs.storage.closing import Closing
from dfqs.storage.files import open_to_read, read_at, read_into


class ByteSource(Protocol):
    """Something with a size that bytes can be read from at any offset."""

    @property
    def name(self) -> str:
        """Path or address, for messages."""
        ...

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer only where the source ends."""
        ...


class BytesSource:
    """Bytes in memory.

    Args:
        size: of the file whose beginning they are; None: they are all of it.
    """

    def __init__(self, data: bytes, name: str = "<bytes>", size: int | None = None) -> None:
        self.name = name
        self.size = len(data) if size is None else size
        self._data = data

    def read_at(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


class FileSource(Closing):
    """A local regular file, open for reading. Closes with its `with` block.

    Raises:
        UsageError: there is no such file, it is a directory or a device, or it may not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.name = str(path)
        self._handle = open_to_read(self.path, "a .gguf file")
        self.size = os.fstat(self._handle).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        return read_at(self._handle, offset, length)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill the beginning of a buffer; the number of bytes, 0 only where the file ends."""
        return read_into(self._handle, buffer, offset)

    def read_exactly(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`.

        Raises:
            FormatError: the file ends before (it was cut short since its header was read).
        """
        data = self.read_at(offset, length)
        if len(data) != length:
            raise FormatError(f"ends {length - len(data):,} bytes too soon", path=self.path, offset=offset + len(data))
        return data

    def fill(self, buffer: memoryview, offset: int) -> None:
        """Fill all of a buffer.

        Raises:
            FormatError: as `read_exactly`.
        """
        filled = 0
        while filled < len(buffer):
            got = self.read_into(buffer[filled:], offset + filled)
            if got == 0:
                missing = len(buffer) - filled
                raise FormatError(f"ends {missing:,} bytes too soon", path=self.path, offset=offset + filled)
            filled += got

    def modified_ns(self) -> int:
        """When its bytes last changed, in nanoseconds, as its file system keeps the time."""
        return os.fstat(self._handle).st_mtime_ns

    def fileno(self) -> int:
        return self._handle

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
