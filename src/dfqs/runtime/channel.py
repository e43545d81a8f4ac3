"""Messages between a worker and its caller: length-prefixed pickles over a pipe.

Pickle is for our own two processes on a private pipe; nothing that comes from outside is ever unpickled.
"""

import os
import pickle
import struct
import threading
from typing import Any

_LENGTH = struct.Struct("<Q")
_PIECE = 1 << 20


class ChannelClosed(Exception):
    """The other side is gone."""


class Sender:
    """Writing end. One message is written whole, whichever thread it comes from."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        """
        Raises:
            ChannelClosed: nobody reads any more.
        """
        payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        frame = memoryview(_LENGTH.pack(len(payload)) + payload)
        with self._lock:
            try:
                while frame:
                    frame = frame[os.write(self._descriptor, frame) :]
            except OSError as error:
                raise ChannelClosed from error

    def close(self) -> None:
        os.close(self._descriptor)


class Receiver:
    """Reading end, for one thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def receive(self) -> Any:
        """
        Raises:
            ChannelClosed: the other side is gone, or died in the middle of a message.
        """
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return pickle.loads(self._read(length))

    def _read(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            try:
                piece = os.read(self._descriptor, min(length - len(data), _PIECE))
            except OSError as error:
                raise ChannelClosed from error
            if not piece:
                raise ChannelClosed
            data += piece
        return bytes(data)

    def close(self) -> None:
        os.close(self._descriptor)
