"""What a client sends, read with bounds of bytes and of time."""

import asyncio
import contextlib
import re
from collections.abc import Callable

from dfqs.serving.http_head import HEAD_LIMIT_BYTES, HttpRefusal, RequestHead

_PIECE = 64 << 10
_CHUNK_LINE = re.compile(rb"[0-9A-Fa-f]{1,8}")
_LINE_LIMIT_BYTES = 64


class Gone(Exception):
    """The client is gone, or has nothing more to say."""


class Incoming:
    """The reading side of one connection, with what came and was not asked for yet.

    Args:
        account: told of the bytes that came; what it raises comes out of the read.
    """

    def __init__(self, reader: asyncio.StreamReader, account: Callable[[int], None] = lambda _count: None) -> None:
        self._reader = reader
        self._account = account
        self._buffer = bytearray()
        self.ended = False

    @property
    def waiting_bytes(self) -> int:
        """Received and not asked for."""
        return len(self._buffer)

    async def wait_for_more(self) -> None:
        """
        Raises:
            Gone: nothing more will come.
        """
        piece = b"" if self.ended else await self._reader.read(_PIECE)
        if not piece:
            self.ended = True
            raise Gone
        self._account(len(piece))
        self._buffer += piece

    async def watch(self) -> None:
        """Until the client is gone. What it sends ahead is kept; a second request waits for the answer to the first.

        Returns:
            When it is gone.
        """
        try:
            while self.waiting_bytes < HEAD_LIMIT_BYTES:
                await self.wait_for_more()
            # Enough was sent ahead; whether it leaves is not seen any more, and its answer goes on.
            await asyncio.Event().wait()
        except (Gone, ConnectionError):
            return

    async def discard(self, seconds: float) -> None:
        """Take what still comes and forget it: a connection closed on unread bytes takes our last words with it."""
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(seconds):
                while await self._reader.read(_PIECE):
                    pass

    async def read_head(self) -> bytes:
        """A head with its empty line.

        Raises:
            Gone: before a head was whole.
            HttpRefusal: too long.
        """
        searched = 0
        while (end := self._buffer.find(b"\r\n\r\n", max(0, searched - 3))) < 0:
            if b"\n\n" in self._buffer or b"\n\r\n" in self._buffer.replace(b"\r\n", b"\r"):
                raise HttpRefusal(400, "a line of the head ends in a bare line feed")
            searched = len(self._buffer)
            if searched > HEAD_LIMIT_BYTES:
                raise HttpRefusal(431, f"the head is longer than {HEAD_LIMIT_BYTES:,} bytes")
            await self.wait_for_more()
        if end > HEAD_LIMIT_BYTES:
            raise HttpRefusal(431, f"the head is longer than {HEAD_LIMIT_BYTES:,} bytes")
        return self._take(end + 4)

    async def read_body(self, head: RequestHead, limit_bytes: int) -> bytes:
        """The body, out of its chunks where it comes in some.

        Raises:
            Gone: before it was whole.
            HttpRefusal: larger than `limit_bytes`, or chunks that are none.
        """
        if head.body_bytes is not None:
            if head.body_bytes > limit_bytes:
                raise _too_large(limit_bytes)
            return await self._read_exactly(head.body_bytes)
        body = bytearray()
        while True:
            line = await self._read_line()
            if not _CHUNK_LINE.fullmatch(line):
                raise HttpRefusal(400, "a chunk of the body has no length")
            size = int(line, 16)
            if len(body) + size > limit_bytes:
                raise _too_large(limit_bytes)
            body += await self._read_exactly(size)
            if await self._read_exactly(2) != b"\r\n":
                raise HttpRefusal(400, "a chunk of the body is longer than it says, or headers follow the last one")
            if size == 0:
                return bytes(body)

    async def _read_line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > _LINE_LIMIT_BYTES:
                raise HttpRefusal(400, "a chunk of the body has no length")
            await self.wait_for_more()
        return self._take(end + 2)[:-2]

    async def _read_exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self.wait_for_more()
        return self._take(count)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


def _too_large(limit_bytes: int) -> HttpRefusal:
    return HttpRefusal(413, f"the body is larger than {limit_bytes:,} bytes")
