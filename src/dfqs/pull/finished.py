"""The last look before a model gets its name: every byte of the finished files, against what the Hub promises.

What was hashed while it was fetched may have been written over since. So the finished files are read once more, in the
order of the model: the remote files' hashes are computed anew from them, their headers are compared with those that the
plan was made of, and the same bytes go to whoever writes down what the model is. Nothing that this pass has not seen
becomes part of a model or of its manifest. Where the kernel says that nobody else opened the files, it has been seen.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from dfqs.errors import FormatError, IntegrityError, printable
from dfqs.gguf import Header, parse_header
from dfqs.gguf.source import ByteSource
from dfqs.progress import Progress
from dfqs.pull.output import BUFFER_BYTES, digest_for, rest_path
from dfqs.pull.plan import Layout, Piece, Place, PullPlan, plan_pull_of
from dfqs.storage.files import open_regular, open_to_read, read_at
from dfqs.storage.hashing import Digest

_BEHIND = 4
"""Pieces that may wait to be hashed."""


class Stored(Protocol):
    """Finished files that can be read as the remote files that they were made of, and as the model that they are."""

    def read(self, layout: Layout, start: int, end: int) -> Iterator[bytes]: ...
    def read_model(self, start: int, end: int) -> Iterator[bytes]: ...

    def is_untouched(self) -> bool:
        """Whether nobody else can have written since the remote files' bytes were found right, as they are written."""
        ...


class Recorder(Protocol):
    """Takes down what a model's bytes are, as they come in order."""

    def takers(self, whole: Digest | None, /) -> Sequence[Callable[[bytes], None]]:
        """What is to be given every piece, in order each and side by side.

        Args:
            whole: the SHA-256 of the same bytes, where somebody computes it already.
        """
        ...


RecorderFor = Callable[[Header], Recorder]
"""Makes a recorder of a model with that header."""


class StoredSource:
    """One remote file, to read a header from, as it was written to the disk."""

    def __init__(self, stored: Stored, layout: Layout) -> None:
        self.name = layout.file.name
        self.size = layout.file.size
        self._stored = stored
        self._layout = layout

    def read_at(self, offset: int, length: int) -> bytes:
        return b"".join(self._stored.read(self._layout, offset, min(offset + length, self.size)))


class JoinedSource:
    """Several remote files laid end to end, to read a header from, as they were written to the disk."""

    def __init__(self, stored: Stored, plan: PullPlan) -> None:
        self.name = plan.layouts[0].file.name
        self.size = plan.file_bytes
        self._stored = stored

    def read_at(self, offset: int, length: int) -> bytes:
        return b"".join(self._stored.read_model(offset, min(offset + length, self.size)))


class FinishedModel:
    """A model that has its name already, for reading alone.

    The headers and padding of the remote files are read from what the pull left; where that is gone, they are the
    headers of the plan and zeroes, which is what writers of shards put there. Closes with its `with` block.
    """

    def __init__(self, plan: PullPlan, out: Path) -> None:
        self._plan = plan
        self._out = out
        self._heads = {layout.file.name: header.raw for layout, header in zip(plan.layouts, plan.headers, strict=False)}
        self._handles = [open_to_read(out)]
        rest = rest_path(out)
        if rest.is_file() and not rest.is_symlink() and rest.stat().st_size == plan.rest_bytes:
            self._handles.append(open_regular(rest))

    def read(self, layout: Layout, start: int, end: int) -> Iterator[bytes]:
        for piece in layout.within(start, end):
            for skip in range(0, piece.length, BUFFER_BYTES):
                yield self._read(layout, piece, skip, min(BUFFER_BYTES, piece.length - skip))

    def read_model(self, start: int, end: int) -> Iterator[bytes]:
        for offset in range(start, end, BUFFER_BYTES):
            yield self._pread(Place.MODEL, min(BUFFER_BYTES, end - offset), offset)

    def is_untouched(self) -> bool:
        return False

    def __enter__(self) -> "FinishedModel":
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            os.close(self._handles.pop())

    def _read(self, layout: Layout, piece: Piece, skip: int, length: int) -> bytes:
        if piece.place < len(self._handles):
            return self._pread(piece.place, length, piece.offset + skip)
        start = piece.source_offset + skip
        return self._heads[layout.file.name][start : start + length].ljust(length, b"\0")

    def _pread(self, place: Place, length: int, offset: int) -> bytes:
        data = read_at(self._handles[place], offset, length)
        if len(data) != length:
            raise FormatError("was cut short while it was read", path=self._out)
        return data


def check_finished(
    plan: PullPlan, stored: Stored, recorder_for: RecorderFor | None, progress: Progress
) -> Recorder | None:
    """Read finished files once, from the model's first byte to its last. What was hashed as it was written, and nobody
    else can have written to since, is read for the recorder alone.

    Args:
        recorder_for: makes what is given every byte of the model.
        progress: in bytes of the remote files.

    Returns:
        The recorder; what it was given is what was found right.

    Raises:
        IntegrityError: a remote file's bytes are not those that the Hub promises, its header is not the one that the
            plan was made of, or the model's own header or padding is another.
    """
    recorder = recorder_for(model_header(plan)) if recorder_for is not None else None
    hashed_before = stored.is_untouched()
    digests = [digest_for(layout.file) for layout in plan.layouts]
    # A model that is one remote file has one hash, for both.
    is_one_file = plan.layouts[0].pieces == (Piece(0, plan.file_bytes, Place.MODEL, 0),) and digests[0][1] == "sha256"
    shared = digests[0][0] if is_one_file and not hashed_before else None
    takers = recorder.takers(shared) if recorder is not None else ()
    done, position = 0, 0
    with _Feed(takers) as feed:
        for index, layout in enumerate(plan.layouts):
            digest, prefix = digests[index]
            for piece in layout.pieces:
                in_model = piece.place is Place.MODEL
                if in_model:
                    _check_gap(plan, stored, position, piece.offset, feed)
                    position = piece.offset + piece.length
                end = piece.source_offset + piece.length
                if hashed_before and not (in_model and takers):
                    # Nobody wants these bytes once more.
                    done += piece.length
                    progress(done, plan.fetch_bytes, layout.file.name)
                    continue
                for data in stored.read(layout, piece.source_offset, end):
                    feed.give(data, None if hashed_before else digest.update, in_model=in_model)
                    done += len(data)
                    progress(done, plan.fetch_bytes, layout.file.name)
            feed.wait()
            if not hashed_before and f"{prefix}:{digest.hexdigest()}" != layout.file.identity:
                raise IntegrityError(
                    f"{printable(layout.file.name)}: the finished file does not hold the bytes that the Hub promises; "
                    "another program wrote to it"
                )
            if not header_is_as_planned(plan, stored, index):
                raise IntegrityError(f"{printable(layout.file.name)}: its header is not the one that was planned with")
        _check_gap(plan, stored, position, plan.file_bytes, feed)
        feed.wait()
    return recorder


class PlanIsWrong(IntegrityError):
    """The headers that a plan was made of are not those of the files, and the files' bytes went to other places."""


def plan_as_verified(plan: PullPlan, stored: Stored, index: int) -> PullPlan:
    """The plan again, made of the header that a verified file has; nearly always it is the same.

    Raises:
        PlanIsWrong: with the true header every byte would have gone to another place, or the files make no model.
    """
    if header_is_as_planned(plan, stored, index):
        return plan
    name = printable(plan.layouts[index].file.name)
    try:
        source: ByteSource = JoinedSource(stored, plan) if plan.joined else StoredSource(stored, plan.layouts[index])
        headers = list(plan.headers)
        headers[0 if plan.joined else index] = parse_header(source)
        again = plan_pull_of(plan.listing, plan.choice, headers, chunk_bytes=plan.chunk_bytes, alignment=plan.alignment)
    except FormatError as error:
        raise PlanIsWrong(
            f"{name}: the storage sent another header when the pull was planned, and with its own it is no model: "
            f"{printable(str(error), 200)}"
        ) from None
    if again.layouts != plan.layouts or again.file_bytes != plan.file_bytes:
        raise PlanIsWrong(
            f"{name}: the storage sent another header when the pull was planned, so what was fetched lies in wrong "
            "places and was thrown away; the same command begins anew"
        )
    return again


def header_is_as_planned(plan: PullPlan, stored: Stored, index: int) -> bool:
    """Whether a file begins, as it was written, with the very bytes that the plan was made of."""
    start = sum(layout.file.size for layout in plan.layouts[:index]) if plan.joined else 0
    raw = plan.headers[0 if plan.joined else index].raw[start:]
    layout = plan.layouts[index]
    position = 0
    for data in stored.read(layout, 0, min(len(raw), layout.file.size)):
        if raw[position : position + len(data)] != data:
            return False
        position += len(data)
    return True


def model_header(plan: PullPlan) -> Header:
    """The header that the model has when it is finished."""
    return parse_header(_PlannedSource(plan)) if plan.header else plan.headers[0]


class _PlannedSource:
    """A model whose header alone can be read."""

    def __init__(self, plan: PullPlan) -> None:
        self.name = plan.choice.name
        self.size = plan.file_bytes
        self._header = plan.header

    def read_at(self, offset: int, length: int) -> bytes:
        return self._header[offset : offset + length].ljust(max(min(length, self.size - offset), 0), b"\0")


class _Feed:
    """Gives pieces to several hashes side by side, each in order, while the next pieces are read."""

    def __init__(self, takers: Sequence[Callable[[bytes], None]]) -> None:
        self._takers = takers
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix="check") for _ in (None, *takers)]
        self._waiting: deque[list[Future[None]]] = deque()

    def give(self, data: bytes, remote: Callable[[bytes], None] | None, *, in_model: bool) -> None:
        """Give a piece to the hash of a remote file, if it is of one, and to those of the model."""
        if len(self._waiting) == _BEHIND:
            _finish(self._waiting.popleft())
        takers = [remote, *(self._takers if in_model else ())]
        threads = zip(self._threads, takers, strict=False)
        self._waiting.append([thread.submit(taker, data) for thread, taker in threads if taker is not None])

    def wait(self) -> None:
        while self._waiting:
            _finish(self._waiting.popleft())

    def __enter__(self) -> "_Feed":
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.shutdown()


def _finish(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.result()


def _check_gap(plan: PullPlan, stored: Stored, start: int, end: int, feed: _Feed) -> None:
    position = start
    for data in stored.read_model(start, end):
        if data != plan.gap_bytes(position, position + len(data)):
            raise IntegrityError(f"the header or padding of {printable(plan.choice.name)} was written over")
        feed.give(data, None, in_model=True)
        position += len(data)
