"""SHA-256 of a file, of its tensors, and of its content whatever the layout.

hashlib lets go of the interpreter lock while it hashes, so threads are enough to keep every core at it. The file's own
hash goes byte by byte and cannot be divided; tensors can. With both wanted, one thread reads, and the hashes of the
same bytes are computed side by side; with tensors alone, each thread takes tensors of its own. Memory is bounded by the
buffers. Holes of a sparse file are read and hashed as the zeroes they are.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dfqs.gguf import FileSource, Header, TensorInfo, read_header
from dfqs.gguf.layout import squeeze_shape
from dfqs.progress import Progress, no_progress
from dfqs.storage.hashing import BUFFER_BYTES, Digest, Lane, read_pieces, read_some
from dfqs.storage.linux import advise_sequential, advise_soon, usable_cpus
from dfqs.storage.sharing import SharedProgress, share_out

_AHEAD_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class TensorHash:
    """One tensor's identity."""

    name: str
    type: str
    shape: tuple[int, ...]
    """GGUF order, without trailing axes of size one."""
    length: int
    """Bytes."""
    sha256: str
    zeroes: bool
    """It holds nothing but zero bytes, as space that was taken and never written does."""
    expert_sha256: tuple[str, ...] = ()
    """Of each expert's slice, where asked for."""


@dataclass(frozen=True, slots=True)
class ModelHashes:
    """A model's identity."""

    file_bytes: int
    file_sha256: str | None
    """None when it was not asked for."""
    content_sha256: str
    tensors: tuple[TensorHash, ...]
    """In file order."""


def content_line(name: str, type_: str, shape: Sequence[int], sha256: str) -> bytes:
    """One tensor's line: a JSON array without spaces, `["name","Q8_0",[64,10],"<hex>"]`, UTF-8, and a newline."""
    values = [name, type_, list(squeeze_shape(shape)), sha256]
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def content_sha256(tensors: Iterable[TensorHash]) -> str:
    """SHA-256 over the sorted lines (as bytes): the same for every layout of the same tensors."""
    digest = hashlib.sha256()
    for line in sorted(content_line(t.name, t.type, t.shape, t.sha256) for t in tensors):
        digest.update(line)
    return digest.hexdigest()


def hash_model(
    path: Path,
    *,
    header: Header | None = None,
    file: bool = True,
    experts: bool = False,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> ModelHashes:
    """Hash a model in one pass.

    Args:
        header: the file's, where it was read before; read again unless it is what the file begins with.
        file: compute `file_sha256` too.
        experts: hash every expert's slice too (slices of the third axis of `*_exps` tensors).
        threads: for tensors; all cores by default.
        progress: in bytes of the file.

    Raises:
        FormatError: the header lies, or the file is cut short meanwhile.
        UsageError: there is no such file, or it cannot be read.
    """
    with FileSource(path) as source:
        if header is None or not header.is_of(source):
            header = read_header(source)
        count = threads or usable_cpus()
        if file:
            whole, tensors = _hash_side_by_side(source, header, experts, progress)
        else:
            whole, tensors = None, _hash_tensors(source, header, experts, count, progress)
        progress(source.size, source.size)
        return ModelHashes(source.size, whole, content_sha256(tensors), tensors)


class TensorDigest:
    """Hashes of one tensor, fed with its bytes in order."""

    def __init__(self, tensor: TensorInfo, *, experts: bool = False) -> None:
        self.tensor = tensor
        self._whole = hashlib.sha256()
        self._zeroes = True
        self._slice_bytes = 0
        self._slices: list[str] = []
        self._slice = hashlib.sha256()
        self._filled = 0
        if experts and is_expert_tensor(tensor):
            self._slice_bytes = tensor.length // tensor.shape[2]

    def update(self, piece: bytes | memoryview) -> None:
        self._whole.update(piece)
        if self._zeroes:
            self._zeroes = piece == _ZEROES[: len(piece)]
        view = memoryview(piece)
        while self._slice_bytes and view:
            part = view[: self._slice_bytes - self._filled]
            self._slice.update(part)
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == self._slice_bytes:
                self._slices.append(self._slice.hexdigest())
                self._slice, self._filled = hashlib.sha256(), 0

    def result(self) -> TensorHash:
        t = self.tensor
        shape = squeeze_shape(t.shape)
        return TensorHash(
            t.name, t.type.name, shape, t.length, self._whole.hexdigest(), self._zeroes, tuple(self._slices)
        )


class ModelDigest:
    """Hashes of a model whose bytes are given once, in order, by whoever reads them."""

    def __init__(self, header: Header) -> None:
        self._file_bytes = header.file_size
        self._whole: Digest = hashlib.sha256()
        self._router = _Router(header)

    def takers(self, whole: Digest | None = None) -> tuple[Callable[[bytes | memoryview], None], ...]:
        """What is to be given the bytes of the file, each in order; the one may be behind the other.

        Args:
            whole: the SHA-256 of the same bytes, where somebody computes it already.
        """
        if whole is None:
            return self._whole.update, self._route
        self._whole = whole
        return (self._route,)

    def _route(self, piece: bytes | memoryview) -> None:
        for start in range(0, len(piece), BUFFER_BYTES):
            self._router.update(memoryview(piece)[start : start + BUFFER_BYTES])

    def result(self) -> ModelHashes:
        """The hashes, when every byte has been given."""
        tensors = self._router.result()
        return ModelHashes(self._file_bytes, self._whole.hexdigest(), content_sha256(tensors), tensors)


def is_expert_tensor(tensor: TensorInfo) -> bool:
    """Whether its third axis counts routed experts."""
    return "_exps" in tensor.name and len(tensor.shape) == 3 and tensor.length % tensor.shape[2] == 0


_ZEROES = memoryview(bytes(BUFFER_BYTES))


def _hash_side_by_side(
    source: FileSource, header: Header, experts: bool, progress: Progress
) -> tuple[str, tuple[TensorHash, ...]]:
    """File and tensors from the same pages: one thread reads, two hash."""
    advise_sequential(source.fileno())
    whole = hashlib.sha256()
    router = _Router(header, experts=experts)
    with ExitStack() as stack:
        lanes = [stack.enter_context(Lane(whole.update)), stack.enter_context(Lane(router.update))]
        for offset, piece in read_pieces(source.fileno(), source.path, source.size, lanes):
            progress(offset + len(piece), source.size)
    return whole.hexdigest(), router.result()


class _Router:
    """Gives the bytes of a file, as they come in order, to the tensors they belong to; one is hashed at a time."""

    def __init__(self, header: Header, *, experts: bool = False) -> None:
        self._header = header
        self._experts = experts
        self._found: list[TensorHash] = []
        self._digest: TensorDigest | None = None
        self._position = 0

    def update(self, piece: memoryview) -> None:
        end, tensors = self._position + len(piece), self._header.tensors
        while len(self._found) < len(tensors):
            tensor = tensors[len(self._found)]
            span = self._header.span(tensor)
            if span.offset >= end:
                break
            self._digest = self._digest or TensorDigest(tensor, experts=self._experts)
            first, last = max(span.offset, self._position), min(span.end, end)
            self._digest.update(piece[first - self._position : last - self._position])
            if span.end > end:
                break
            self._found.append(self._digest.result())
            self._digest = None
        self._position = end

    def result(self) -> tuple[TensorHash, ...]:
        """Of every tensor, when every byte has been given."""
        return tuple(self._found)


def _hash_tensors(
    source: FileSource, header: Header, experts: bool, threads: int, progress: Progress
) -> tuple[TensorHash, ...]:
    """Tensors alone: each thread takes the next one, largest first so that none is left with a long last one."""
    found: dict[str, TensorHash] = {}
    done = SharedProgress(progress, source.size)

    def hash_one(tensor: TensorInfo, stop: threading.Event) -> None:
        digest = TensorDigest(tensor, experts=experts)
        span = header.span(tensor)
        buffer = memoryview(bytearray(min(BUFFER_BYTES, span.length)))
        advise_soon(source.fileno(), span.offset, min(span.length, _AHEAD_BYTES))
        offset = span.offset
        while offset < span.end and not stop.is_set():
            view = buffer[: min(BUFFER_BYTES, span.end - offset)]
            got = read_some(source.fileno(), source.path, view, offset)
            digest.update(view[:got])
            offset += got
            done.add(got)
        if offset == span.end:
            found[tensor.name] = digest.result()

    order = sorted(header.tensors, key=lambda tensor: -tensor.length)
    share_out(order, hash_one, threads=threads, name="hash")
    return tuple(found[tensor.name] for tensor in header.tensors)
