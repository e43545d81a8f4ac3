"""Stopping native work that is under way, from another thread, without killing the process.

llama.cpp asks an abort callback before every graph node, some hundred times a token, from its own threads. A Python
callback there would have to wait for the interpreter's lock, so the callback is a C function that already does the
right thing: `strlen` of a one-byte buffer returns 0 (go on) while the buffer is empty and 1 (stop) once a byte is
written into it.
"""

import ctypes
import threading


class Stopped(KeyboardInterrupt):
    """The caller asked the worker to stop what it was doing."""


class StopFlag:
    """A request to stop, readable by C and Python at no cost."""

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(2)
        self._strlen = ctypes.CDLL(None).strlen
        self._event = threading.Event()

    def request(self) -> None:
        self._buffer[0] = b"\x01"
        self._event.set()

    def clear(self) -> None:
        self._buffer[0] = b"\x00"
        self._event.clear()

    def wait(self, seconds: float | None = None) -> bool:
        """Sleep until a stop is requested, or for so long; returns whether it was."""
        return self._event.wait(seconds)

    @property
    def requested(self) -> bool:
        return self._buffer[0] != b"\x00"

    def raise_if_requested(self) -> None:
        """
        Raises:
            Stopped: a stop was requested.
        """
        if self.requested:
            raise Stopped

    @property
    def callback(self) -> int | None:
        """Address of the C function to pass as `abort_callback`."""
        return ctypes.cast(self._strlen, ctypes.c_void_p).value

    @property
    def callback_data(self) -> int:
        """Address to pass as `abort_callback_data`; valid while this object lives."""
        return ctypes.addressof(self._buffer)
