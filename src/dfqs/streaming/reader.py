"""Reads page ranges of files straight into memory with several threads, past the page cache where that is possible."""

import contextlib
import ctypes
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from dfqs.errors import DfqsError, RuntimeFailure
from dfqs.storage.identity import FileStamp, describe_change, settled_stamp
from dfqs.streaming.layout import PageRange

THREADS = 8
"""Reads under way at once: enough to keep a fast disk busy with pieces of a megabyte."""

Job = Callable[[], object]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.pread.restype = ctypes.c_ssize_t
_libc.pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]


class Arrival:
    """Reads that are waited for together."""

    __slots__ = ("_error", "_gate", "_left", "_lock")

    def __init__(self, reads: int) -> None:
        self._left = reads
        self._lock = threading.Lock()
        # Open when all have arrived. A bare lock wakes who waits at it several times faster than an event.
        self._gate = threading.Lock()
        self._error: str | DfqsError | None = None
        if reads:
            self._gate.acquire()

    @property
    def is_done(self) -> bool:
        return not self._left

    def count_down(self, error: str | DfqsError | None) -> None:
        """One read is over."""
        with self._lock:
            self._error = self._error or error
            self._left -= 1
            if not self._left:
                self._gate.release()

    def wait(self) -> None:
        """Return when all bytes are there.

        Raises:
            RuntimeFailure: the disk or the file failed.
            IntegrityError: the bytes are not those that they have to be.
        """
        if self._left:
            with self._gate:
                pass
        if self._error:
            raise self._error if isinstance(self._error, DfqsError) else RuntimeFailure(self._error)


class PageReader:
    """Threads that fill memory with pages of a model's files.

    Args:
        paths: the files, in the order in which `PageRange.file` counts them.
    """

    def __init__(self, paths: Sequence[Path], threads: int = THREADS) -> None:
        self.inspect: Callable[[PageRange, int], DfqsError | None] | None = None
        """Asked of all that was read, before anybody has it; what it returns is raised where that is waited for."""
        self._paths = tuple(paths)
        self._buffered = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
        self._direct = [open_direct(path) for path in paths]
        self._sizes = [os.fstat(handle).st_size for handle in self._buffered]
        self._stamps = [settled_stamp(handle) for handle in self._buffered]
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._wanted = 0
        """Reads that somebody waits for, or will."""
        self._idle_jobs: deque[Job] = deque()
        self._is_idling = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def is_direct(self) -> bool:
        """Whether every file is read past the page cache."""
        return all(handle is not None for handle in self._direct)

    def start(self, pages: PageRange, address: int, arrival: Arrival, prepare: Job | None = None) -> None:
        """Begin to read `pages` to `address`, which must be whole pages of memory.

        Args:
            prepare: done before, by the thread that reads; where it raises RuntimeFailure nothing is read.
        """
        self.bring(partial(self._read_after, prepare, pages, address), arrival)

    def bring(self, job: Callable[[], str | DfqsError | None], arrival: Arrival) -> None:
        """Begin something else that is waited for as a read is; it returns what is wrong."""
        with self._lock:
            self._wanted += 1
        self._queue.put(partial(self._serve, job, arrival))

    def read_now(self, pages: PageRange, address: int) -> str | DfqsError | None:
        """Read in the thread that calls; what is wrong where that failed."""
        return self._fill(pages, address)

    def offer(self, jobs: Sequence[Job]) -> list[Job]:
        """Have these done, in their order, one at a time, while nothing is wanted; in place of those offered before.

        Returns:
            Of those offered before, what was not begun, and never will be.
        """
        with self._lock:
            left = list(self._idle_jobs)
            self._idle_jobs = deque(jobs)
            self._begin_idle()
        return left

    def do(self, job: Job) -> None:
        """Have a thread do something else that takes its time; nobody learns when, nor whether it failed."""
        self._queue.put(job)

    def require_intact(self, pages: PageRange, address: int) -> None:
        """Ask `inspect` of pages that came into memory in another way.

        Raises:
            IntegrityError: the bytes are not those that they have to be.
        """
        if self.inspect is not None and (error := self.inspect(pages, address)) is not None:
            raise error

    def require_unchanged(self) -> None:
        """
        Raises:
            RuntimeFailure: a file was written to, cut or replaced since it was opened; what was computed with it may be
                wrong.
        """
        for path, handle, stamp in zip(self._paths, self._buffered, self._stamps, strict=True):
            found = FileStamp.of(os.fstat(handle))
            if found != stamp:
                what = describe_change(path, stamp) or "its attributes changed"
                raise RuntimeFailure(f"{path} is not what it was when it was loaded: {what}; load it again")

    def close(self) -> None:
        """End the threads and close the files."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        for handle in (*self._buffered, *(handle for handle in self._direct if handle is not None)):
            os.close(handle)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            with contextlib.suppress(RuntimeFailure, OSError):
                job()

    def _begin_idle(self) -> None:
        if self._idle_jobs and not self._wanted and not self._is_idling:
            self._is_idling = True
            self._queue.put(self._do_idle)

    def _do_idle(self) -> None:
        with self._lock:
            job = self._idle_jobs.popleft() if self._idle_jobs and not self._wanted else None
        try:
            if job is not None:
                job()
        finally:
            with self._lock:
                self._is_idling = False
                self._begin_idle()

    def _serve(self, job: Callable[[], str | DfqsError | None], arrival: Arrival) -> None:
        try:
            error = job()
        except DfqsError as failure:
            error = failure
        except BaseException as failure:
            # Whoever waits must not wait for ever.
            error = f"reading {self._paths[0]} failed: {failure!r}"
        arrival.count_down(error)
        with self._lock:
            self._wanted -= 1
            self._begin_idle()

    def _read_after(self, prepare: Job | None, pages: PageRange, address: int) -> str | DfqsError | None:
        if prepare is not None:
            prepare()
        return self._fill(pages, address)

    def _fill(self, pages: PageRange, address: int) -> str | DfqsError | None:
        """Read one range; what is wrong where that failed."""
        # The last page of a file may reach past its end.
        length = min(pages.length, self._sizes[pages.file] - pages.offset)
        done = 0
        handle = self._direct[pages.file]
        while done < length:
            # Whole pages are asked for: direct reads take nothing else, and past the end there is nothing to get.
            wanted = pages.length - done if handle is not None else length - done
            got = -1
            if handle is not None:
                got = _libc.pread(handle, address + done, wanted, pages.offset + done)
            if got < 0 or (handle is None and got <= 0):
                # Alignment that this file system does not take, or none of it: through the page cache.
                handle = None
                got = _libc.pread(self._buffered[pages.file], address + done, length - done, pages.offset + done)
            if got <= 0:
                path = self._paths[pages.file]
                ended = describe_change(path, self._stamps[pages.file]) or "it ends earlier than it did"
                why = os.strerror(ctypes.get_errno()) if got < 0 else ended
                return f"{path} cannot be read at byte {pages.offset + done:,}: {why}"
            done += got
        return self.inspect(pages, address) if self.inspect is not None else None


def open_direct(path: Path) -> int | None:
    """A handle that reads past the page cache; None where the file system does not give one."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return None
