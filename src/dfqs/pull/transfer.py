"""The work of a pull: threads that fetch chunks, and one reader that hashes behind them.

A chunk is missing, under way, claimed (an earlier run's journal says that it is written) or written. The reader goes
through each file in order and hashes it: one hash says of every chunk what the file is as far as there, which is what
the journal claims, and of the last what the whole file is. A claim that does not hold has its chunk fetched again.
Where the whole file's hash is wrong a chunk came wrong: all are fetched again, once. A file that is right is then held
against the header that the plan was made of, which nothing had vouched for.
"""

import heapq
import threading
import time
from collections.abc import Iterator, Mapping
from enum import IntEnum
from itertools import accumulate
from pathlib import Path

from dfqs.errors import IntegrityError, printable
from dfqs.gguf import FileSource
from dfqs.progress import Progress
from dfqs.pull.finished import plan_as_verified
from dfqs.pull.journal import Progressed, PullJournal
from dfqs.pull.output import PullOutput, digest_for
from dfqs.pull.pace import ProcessorPace
from dfqs.pull.plan import PullPlan
from dfqs.pull.ranges import RangeClient, RangeIgnored
from dfqs.storage.hashing import Digest

READ_BYTES = 1 << 20
AHEAD_BYTES = 1 << 30
"""So far chunks are fetched before the reader at most: what it has not come to yet is lost to a kill."""
_ALWAYS_AT_WORK = 2
"""Connections that do not wait for room on the processor."""
_POLL_S = 0.2
_JOIN_S = 5.0


class _State(IntEnum):
    MISSING = 0
    UNDER_WAY = 1
    CLAIMED = 2
    WRITTEN = 3


class Transfer:
    """One run of a pull."""

    def __init__(
        self,
        plan: PullPlan,
        output: PullOutput,
        journal: PullJournal,
        client: RangeClient,
        known: Progressed,
        cached: Mapping[int, Path | None],
    ) -> None:
        self._plan = plan
        self._output = output
        self._journal = journal
        self._client = client
        self._cached = dict(cached)
        self._changed = threading.Condition()
        self._first_chunks = list(accumulate((plan.chunks(index) for index in range(len(plan.layouts))), initial=0))
        self._reached = 0
        """How many chunks of all files the reader is done with."""
        self._ahead = 0
        self._at_work = 0
        """Threads that fetch."""
        self._pace = ProcessorPace()
        self._stopped = False
        self._error: BaseException | None = None
        self._hashes: dict[tuple[int, int], str] = {}
        self._streamed_whole: set[int] = set()
        self._done_bytes = 0
        self.reused_bytes = 0
        self.cached_bytes = 0
        self.refetched: list[str] = []
        self._states = [bytearray(plan.chunks(index)) for index in range(len(plan.layouts))]
        self._missing: list[tuple[int, int]] = []
        self._take_over(known)

    @property
    def plan(self) -> PullPlan:
        """The plan, with the headers that the files were found to have."""
        return self._plan

    def run(self, connections: int, progress: Progress) -> None:
        """Fetch and verify everything that is not verified yet.

        Raises:
            IntegrityError, NetworkError, SpaceError, UsageError: as `dfqs.pull.pull`.
        """
        self._ahead = max(AHEAD_BYTES // self._plan.chunk_bytes, 2 * connections)
        threads = [threading.Thread(target=self._work, name=f"pull-{i}", daemon=True) for i in range(connections)]
        for thread in threads:
            thread.start()
        try:
            for index in range(len(self._plan.layouts)):
                self._verify_file(index, progress)
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
            self._client.abort()
            deadline = time.monotonic() + _JOIN_S
            for thread in threads:
                # A thread that waits for an answer of the Hub is left behind; it writes nothing any more.
                thread.join(timeout=max(deadline - time.monotonic(), 0))

    def _take_over(self, known: Progressed) -> None:
        for index in range(len(self._plan.layouts)):
            for chunk in range(self._plan.chunks(index)):
                # Taken out there, so that a million of them are not in memory twice.
                claimed = known.chunks.pop((index, chunk), None)
                if claimed is not None:
                    self._hashes[(index, chunk)] = claimed
                    self._states[index][chunk] = _State.CLAIMED
                    length = self._length(index, chunk)
                    self.reused_bytes += length
                    self._done_bytes += length
                else:
                    self._missing.append((index, chunk))
        heapq.heapify(self._missing)

    # -- the reader, in the caller's thread --------------------------------------------------------------------------

    def _verify_file(self, index: int, progress: Progress) -> None:
        """Wait for a file's chunks, hash them in order, and settle what does not fit."""
        file = self._plan.layouts[index].file
        wrong: dict[int, str] = {}
        for attempt in (1, 2):
            found = self._hash_in_order(index, progress, wrong)
            if found == file.identity:
                plan = plan_as_verified(self._plan, self._output, index)
                if plan is not self._plan:
                    self.refetched.append(f"{file.name}: the header that the pull was planned with had come wrong")
                self._plan = plan
                self._journal.record_verified(index)
                return
            if attempt == 1:
                wrong = self._fetch_again(index)
        raise IntegrityError(
            f"{printable(file.name)}: the Hub promises {file.identity}, what it sent (twice) is {found}; nothing was "
            f"published. Ask the repository's owner or try a mirror; {self._output.out.name}.part can be removed"
        )

    def _hash_in_order(self, index: int, progress: Progress, wrong: dict[int, str]) -> str:
        """The file's hash.

        Args:
            wrong: what it was as far as each chunk when it was wrong; the first chunk that differs had come wrong.
        """
        digest, name = digest_for(self._plan.layouts[index].file)
        for chunk in range(self._plan.chunks(index)):
            while True:
                claimed = self._wait_for(index, chunk, progress) is _State.CLAIMED
                through = self._hash_chunk(digest, index, chunk)
                if not claimed or through.hexdigest() == self._hashes[(index, chunk)]:
                    break
                self._drop(index, chunk, reused=True)
            digest, so_far = through, through.hexdigest()
            if not claimed:
                self._claim(index, chunk, so_far)
            if wrong.get(chunk, so_far) != so_far:
                self._note(index, chunk, "had come wrong")
                wrong.clear()
            with self._changed:
                self._reached = self._first_chunks[index] + chunk + 1
                self._changed.notify_all()
        return f"{name}:{digest.hexdigest()}"

    def _hash_chunk(self, before: Digest, index: int, chunk: int) -> Digest:
        """The hash of what comes before a chunk, and of the chunk as it was written."""
        through = before.copy()
        for data in self._output.read(self._plan.layouts[index], *self._plan.chunk_range(index, chunk)):
            through.update(data)
        return through

    def _claim(self, index: int, chunk: int, so_far: str) -> None:
        """Write down that the file is there as far as a chunk."""
        self._hashes[(index, chunk)] = so_far
        if self._plan.layouts[index].file.sha256 is not None:
            # Files outside large-file storage have another hash, and are a chunk at most.
            self._journal.record_chunk(index, chunk, so_far)

    def _wait_for(self, index: int, chunk: int, progress: Progress) -> _State:
        """Until the chunk is there; the workers' errors surface here."""
        while True:
            with self._changed:
                state = _State(self._states[index][chunk])
                if self._error is not None:
                    raise self._error
                if state not in (_State.CLAIMED, _State.WRITTEN):
                    self._changed.wait(_POLL_S)
                done = self._done_bytes
            progress(done, self._plan.fetch_bytes, self._plan.layouts[index].file.name)
            if state in (_State.CLAIMED, _State.WRITTEN):
                return state

    def _drop(self, index: int, chunk: int, *, reused: bool) -> None:
        """What was written for this chunk does not count; have it fetched again."""
        length = self._length(index, chunk)
        self._journal.record_dropped(index, chunk)
        with self._changed:
            self._states[index][chunk] = _State.MISSING
            self._done_bytes -= length
            if reused:
                self.reused_bytes -= length
                self._note(index, chunk, "was not on the disk as recorded")
            heapq.heappush(self._missing, (index, chunk))
            self._changed.notify_all()

    def _fetch_again(self, index: int) -> dict[int, str]:
        """A file's hash is wrong: have every chunk fetched again, not from the cache; what the hashes were."""
        before = {chunk: self._hashes[(index, chunk)] for chunk in range(self._plan.chunks(index))}
        self._cached[index] = None
        for chunk in before:
            self._drop(index, chunk, reused=False)
        with self._changed:
            self._streamed_whole.discard(index)
            self._reached = self._first_chunks[index]
        return before

    def _note(self, index: int, chunk: int, what: str) -> None:
        start, end = self._plan.chunk_range(index, chunk)
        self.refetched.append(f"{self._plan.layouts[index].file.name} bytes {start:,} to {end:,} {what}")

    def _length(self, index: int, chunk: int) -> int:
        start, end = self._plan.chunk_range(index, chunk)
        return end - start

    # -- the workers --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (task := self._next()) is not None:
                index, chunk = task
                path = self._cached.get(index)
                if path is not None:
                    self._take_from_cache(path, index, chunk)
                elif index in self._streamed_whole:
                    self._fetch_whole(index)
                else:
                    self._fetch_chunk(index, chunk)
                with self._changed:
                    self._at_work -= 1
        except BaseException as error:
            with self._changed:
                if not self._stopped and self._error is None:
                    self._error = error
                self._changed.notify_all()

    def _next(self) -> tuple[int, int] | None:
        """A chunk to fetch, for one thread more that is at work; None at the end."""
        with self._changed:
            while not self._stopped and self._error is None:
                while self._missing and self._is_near(*self._missing[0]) and self._has_processor():
                    index, chunk = heapq.heappop(self._missing)
                    if self._states[index][chunk] == _State.MISSING:
                        self._states[index][chunk] = _State.UNDER_WAY
                        self._at_work += 1
                        return index, chunk
                self._changed.wait(_POLL_S)
            return None

    def _has_processor(self) -> bool:
        """Whether one more connection can help: where the network is faster than what is done with its bytes, more
        of them only wait for each other."""
        return self._at_work < _ALWAYS_AT_WORK or self._pace.has_room()

    def _is_near(self, index: int, chunk: int) -> bool:
        """Whether the reader comes to a chunk soon enough."""
        return self._first_chunks[index] + chunk < self._reached + self._ahead

    def _fetch_chunk(self, index: int, chunk: int) -> None:
        start, end = self._plan.chunk_range(index, chunk)
        try:
            self._write_chunk(index, chunk, self._client.stream(self._plan.layouts[index].file, start, end))
        except RangeIgnored:
            with self._changed:
                first = index not in self._streamed_whole
                self._streamed_whole.add(index)
            if first:
                # This thread streams the file from its start and takes every chunk that is not there, this one too.
                self._fetch_whole(index)

    def _fetch_whole(self, index: int) -> None:
        """A server that ignores Range: one stream, all chunks in order; those that are there are passed over."""
        file = self._plan.layouts[index].file
        with self._changed:
            self._claim_all(index)
        stream = _Splitter(self._client.stream(file, 0, file.size, whole=True))
        for chunk in range(self._plan.chunks(index)):
            pieces = stream.take(self._length(index, chunk))
            if self._states[index][chunk] == _State.UNDER_WAY:
                self._write_chunk(index, chunk, pieces)
            for _ in pieces:
                continue

    def _claim_all(self, index: int) -> None:
        """Take a file's missing chunks out of the queue. The caller holds the lock."""
        self._missing = [task for task in self._missing if task[0] != index]
        heapq.heapify(self._missing)
        states = self._states[index]
        for chunk, state in enumerate(states):
            if state == _State.MISSING:
                states[chunk] = _State.UNDER_WAY

    def _take_from_cache(self, path: Path, index: int, chunk: int) -> None:
        start, end = self._plan.chunk_range(index, chunk)
        with FileSource(path) as source:
            self._write_chunk(index, chunk, _read_local(source, start, end))
        with self._changed:
            self.cached_bytes += end - start

    def _write_chunk(self, index: int, chunk: int, pieces: Iterator[bytes]) -> None:
        layout = self._plan.layouts[index]
        start, end = self._plan.chunk_range(index, chunk)
        position = start
        for piece in pieces:
            if self._stopped:
                return
            self._output.write(layout, position, piece)
            position += len(piece)
            with self._changed:
                self._done_bytes += len(piece)
        if position != end:
            raise IntegrityError(f"{printable(layout.file.name)}: ends at byte {position:,}, not at {end:,}")
        self._output.begin_writeback(layout, start, end)
        with self._changed:
            self._states[index][chunk] = _State.WRITTEN
            self._changed.notify_all()


class _Splitter:
    """Cuts a stream of pieces at given lengths."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def take(self, length: int) -> Iterator[bytes]:
        """The next `length` bytes, in pieces."""
        while length > 0:
            piece = self._rest or next(self._pieces, b"")
            if not piece:
                return
            self._rest = piece[length:]
            piece = piece[:length]
            length -= len(piece)
            yield piece


def _read_local(source: FileSource, start: int, end: int) -> Iterator[bytes]:
    for offset in range(start, end, READ_BYTES):
        yield source.read_exactly(offset, min(READ_BYTES, end - offset))
