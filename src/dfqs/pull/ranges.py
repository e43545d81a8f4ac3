"""Ranges of remote files: asked for again until they are there, and never another file's bytes in their place.

A stream goes on from the byte it has reached after any failure. What is refused: an answer with another range than
asked, another length, another ETag while the Hub's own promise for the file changed too, or a compressed body. Whether
the bytes are right only the hash of the whole file decides; that is `dfqs.pull`'s part.
"""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import httpx

from dfqs import __version__
from dfqs.errors import IntegrityError, NetworkError, printable
from dfqs.pull.bounded import SlowAnswer, bounded_client, exchange
from dfqs.pull.hub import Address, Hub, Listing, RemoteFile
from dfqs.pull.retry import RETRIED_STATUS, RetryPolicy, retry_after_s
from dfqs.storage.closing import Closing

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)
HEAD_LIMIT_BYTES = 4 << 20
"""What may come before the first byte of a body: interim answers, redirects, headers, what is read ahead with them."""
PIECE_LIMIT_BYTES = 64 << 20
"""What may come before the next piece of a body."""
_EXPIRED_STATUS = frozenset({400, 401, 403, 404, 410})
"""What storage answers to a signed address that is too old."""


class RangeIgnored(Exception):
    """The server sends the whole file whatever is asked for."""


class _Again(Exception):
    """This answer is of no use; the next may be."""

    def __init__(
        self, reason: str, *, wait_s: float | None = None, resolve: bool = False, trickles: bool = False
    ) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.resolve = resolve
        self.trickles = trickles
        """Bytes came, but so few that they are no progress."""


@dataclass
class _State:
    """What is known of one remote file."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    address: Address | None = None
    etag: str | None = None


class RangeClient(Closing):
    """Fetches ranges of one repository's files, on several connections at once. Closes with its `with` block."""

    def __init__(self, hub: Hub, listing: Listing, *, retry: RetryPolicy | None = None, connections: int = 8) -> None:
        self._hub = hub
        self._listing = listing
        self._retry = retry or hub.retry
        self._client = bounded_client(
            timeout=httpx.Timeout(self._retry.stall_s, connect=min(self._retry.stall_s, 15.0)),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            headers={"User-Agent": f"dfqs/{__version__}", "Accept-Encoding": "identity"},
            follow_redirects=True,
        )
        self._states: dict[str, _State] = {}
        self._lock = threading.Lock()
        self._not_before = self._told_until = 0.0
        self._stopped = threading.Event()
        self._open: set[httpx.Response] = set()
        self.fetched_bytes = 0
        """Bytes of bodies that arrived, whatever became of them."""
        self.requests = 0

    def stream(self, file: RemoteFile, start: int, end: int, *, whole: bool = False) -> Iterator[bytes]:
        """The bytes `start` to `end` (not included) of a file, in order, in pieces.

        Args:
            whole: go on where the server ignores Range, reading and throwing away what comes before.

        Raises:
            RangeIgnored: the server ignores Range and `whole` is false.
            NetworkError: no byte came in any of the attempts.
            IntegrityError: the file on the server is not the one that was planned.
        """
        position, failures, trickles = start, 0, 0
        while position < end:
            try:
                for piece in self._request(file, position, end, whole):
                    position += len(piece)
                    failures = 0
                    yield piece
                if position < end:
                    raise _Again("the answer ended before its bytes did")
            except _Again as problem:
                reason, wait_s, resolve = str(problem), problem.wait_s, problem.resolve
                trickles += problem.trickles
            except SlowAnswer as error:
                reason, wait_s, resolve = str(error), None, False
                trickles += 1
            except httpx.TransportError as error:
                reason, wait_s, resolve = str(error) or type(error).__name__, None, False
            except (httpx.TooManyRedirects, httpx.InvalidURL, UnicodeError) as error:
                # An address that leads nowhere, or is none: UnicodeError comes from a host name that cannot be one.
                reason, wait_s, resolve = str(error), None, True
            else:
                return
            if self._stopped.is_set():
                raise NetworkError("stopped")
            failures += 1
            if trickles > self._retry.attempts:
                raise NetworkError(
                    f"{printable(file.name)}: {reason}, on {trickles} connections one after the other; "
                    "the same command goes on from here"
                )
            if failures > self._retry.attempts:
                raise NetworkError(
                    f"{printable(file.name)}: no byte came in {failures} attempts ({printable(reason, 200)}); "
                    "the same command goes on from here"
                )
            if resolve:
                self._forget_address(file)
            self._wait(f"{printable(file.name)}: {printable(reason, 200)}", failures, wait_s)

    def abort(self) -> None:
        """End every stream now, from another thread."""
        self._stopped.set()
        with self._lock:
            responses = list(self._open)
        for response in responses:
            stream = response.extensions.get("network_stream")
            socket = stream.get_extra_info("socket") if stream is not None else None
            if socket is not None:
                try:
                    socket.shutdown(2)
                except OSError:
                    continue

    def close(self) -> None:
        self._client.close()

    def _request(self, file: RemoteFile, start: int, end: int, whole: bool) -> Iterator[bytes]:
        """One request; pieces of `start` to `end` for as long as they come."""
        self._wait_for_turn()
        state = self._state(file)
        address = self._address(file, state)
        headers = {**address.headers, "Range": f"bytes={start}-{end - 1}"}
        with ExitStack() as stack:
            # Connecting, redirects and the head of the answer have one clock; the body then has its pace.
            with exchange(self._retry.stall_s, HEAD_LIMIT_BYTES):
                response = stack.enter_context(self._client.stream("GET", address.url, headers=headers))
            with self._lock:
                self.requests += 1
                self._open.add(response)
            try:
                skip = self._check(file, state, response, start, end, whole)
                left = end - start
                for piece in self._at_a_fair_pace(response):
                    with self._lock:
                        self.fetched_bytes += len(piece)
                    if self._stopped.is_set():
                        raise NetworkError("stopped")
                    if skip >= len(piece):
                        skip -= len(piece)
                        continue
                    wanted = piece[skip : skip + left]
                    skip = 0
                    left -= len(wanted)
                    yield wanted
                    if left == 0:
                        return
            finally:
                with self._lock:
                    self._open.discard(response)

    def _at_a_fair_pace(self, response: httpx.Response) -> Iterator[bytes]:
        """The body, for as long as it does not merely trickle: a byte now and then is no stall, but no progress."""
        pieces, length = response.iter_raw(), response.headers.get("Content-Length", "")
        coming = int(length) if length.isascii() and length.isdigit() else 0
        received, waited_s = 0, 0.0
        while True:
            # Only the waiting counts: what is done with a piece may take long, too.
            asked = time.monotonic()
            with exchange(self._retry.stall_s, PIECE_LIMIT_BYTES, coming):
                piece = next(pieces, None)
            waited_s += time.monotonic() - asked
            if piece is None:
                return
            yield piece
            received += len(piece)
            coming = max(coming - len(piece), 0)
            if waited_s >= self._retry.stall_s:
                if received < waited_s * self._retry.slowest_bytes_per_s:
                    raise _Again(f"only {received:,} bytes came in {waited_s:.0f} s", trickles=True)
                received, waited_s = 0, 0.0

    def _check(
        self, file: RemoteFile, state: _State, response: httpx.Response, start: int, end: int, whole: bool
    ) -> int:
        """Look at an answer's head.

        Returns:
            Bytes of the body that come before the range: 0, or `start` where Range was ignored.
        """
        status, headers = response.status_code, response.headers
        if status in RETRIED_STATUS:
            raise _Again(f"HTTP {status}", wait_s=retry_after_s(headers.get("Retry-After")))
        if status in _EXPIRED_STATUS:
            raise _Again(f"HTTP {status}; the address has expired, or is not for us", resolve=True)
        if status == 416:
            raise _changed(file, "it is shorter now")
        if status not in (200, 206):
            raise NetworkError(f"{printable(file.name)}: the server answered HTTP {status}")
        if headers.get("Content-Encoding", "identity") != "identity":
            raise NetworkError(f"{printable(file.name)}: the server compresses it, so ranges mean nothing")
        self._check_etag(file, state, headers.get("ETag"))
        if status == 206:
            match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
            if match is None or int(match[1]) != start or int(match[2]) >= end:
                raise _Again("another range than asked for")
            if match[3] not in ("*", str(file.size)):
                raise _changed(file, f"it has {match[3]} bytes now, {file.size:,} were promised")
            return 0
        length = headers.get("Content-Length")
        if headers.get("Content-Type", "").startswith("text/html"):
            raise NetworkError(f"{printable(file.name)}: a web page came in its place; does a proxy ask for a login?")
        if length is not None and length != str(file.size):
            raise _changed(file, f"it has {printable(length)} bytes now, {file.size:,} were promised")
        if start == 0 and end == file.size:
            return 0
        if not whole:
            raise RangeIgnored
        return start

    def _check_etag(self, file: RemoteFile, state: _State, etag: str | None) -> None:
        """A changed ETag is a changed file, unless the Hub still promises the same one: then the hash decides."""
        if etag is None or etag.startswith("W/"):
            return
        with state.lock:
            known, state.etag = state.etag, etag
        if known is not None and known != etag:
            self._hub.resolve(self._listing, file)

    def _state(self, file: RemoteFile) -> _State:
        with self._lock:
            return self._states.setdefault(file.name, _State())

    def _address(self, file: RemoteFile, state: _State) -> Address:
        with state.lock:
            if state.address is None:
                state.address = self._hub.resolve(self._listing, file)
            return state.address

    def _forget_address(self, file: RemoteFile) -> None:
        state = self._state(file)
        with state.lock:
            state.address = None

    def _wait(self, reason: str, failures: int, told_s: float | None) -> None:
        seconds, now = self._retry.wait_s(failures - 1, told_s), time.monotonic()
        with self._lock:
            if told_s is not None:
                self._not_before = max(self._not_before, now + seconds)
            # Connections fail together; one of them says it.
            is_told, self._told_until = now < self._told_until, max(self._told_until, now + seconds)
        if not is_told:
            self._retry.tell_wait(reason, seconds, failures, self._retry.attempts)
        self._stopped.wait(seconds)

    def _wait_for_turn(self) -> None:
        """A server that asked one connection to wait means all of them."""
        while (left := self._not_before - time.monotonic()) > 0 and not self._stopped.is_set():
            self._stopped.wait(left)


class RemoteSource:
    """A remote file, or several laid end to end, that a header can be read from."""

    def __init__(self, client: RangeClient, files: Sequence[RemoteFile], limit_bytes: int) -> None:
        self.name = files[0].name
        self.size = sum(file.size for file in files)
        self._client = client
        self._files = files
        self._left = limit_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        """Raises IntegrityError when the header is larger than any header is, so that it cannot fill memory."""
        end = min(offset + length, self.size)
        self._left -= max(end - offset, 0)
        if self._left < 0:
            raise IntegrityError(f"{printable(self.name)}: its header is larger than any model's; it is not fetched")
        parts: list[bytes] = []
        begins = 0
        for file in self._files:
            start, stop = max(offset - begins, 0), min(end - begins, file.size)
            if start < stop:
                parts += self._client.stream(file, start, stop, whole=True)
            begins += file.size
        return b"".join(parts)


def _changed(file: RemoteFile, how: str) -> IntegrityError:
    return IntegrityError(f"{printable(file.name)} changed on the server while it was fetched: {how}; start again")
