"""Loading a model that streams: the part that every token needs in memory, experts on disk with a cache before them."""

import ctypes
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import UsageError
from dfqs.gguf.file import GGUFFile
from dfqs.gguf.reader import Header, read_header
from dfqs.model.spec import expert_table_layer, read_model_spec
from dfqs.progress import Progress, no_progress
from dfqs.runtime.library import Library
from dfqs.runtime.loading import StreamFigures
from dfqs.runtime.model import Model
from dfqs.streaming.cache import ExpertCache
from dfqs.streaming.guessing import NextChoice, find_routers
from dfqs.streaming.layout import PAGE_BYTES, StreamLayout, plan_layout
from dfqs.streaming.lazy_map import lazy_mapping
from dfqs.streaming.lookahead import LookAhead, plan_guess_room
from dfqs.streaming.pages import MappedFiles
from dfqs.streaming.policy import ChoiceLog
from dfqs.streaming.reader import Arrival, PageReader
from dfqs.streaming.settings import StreamSettings
from dfqs.streaming.stream import ExpertStream, ExpertTables
from dfqs.streaming.verification import SliceCheck

_RESIDENT_PIECE_BYTES = 16 << 20
_TIMED_RANGE_BYTES, _TIMED_BYTES = 1 << 20, 32 << 20
"""Reads as long as those of experts, and enough of them to tell a rate."""


@dataclass(slots=True)
class ExpertsOnDisk:
    """The experts of a model that llama.cpp has mapped, streaming."""

    stream: ExpertStream
    """Must see the graphs of every context of the model."""
    layout: StreamLayout
    disk_bytes_per_s: float | None
    """What the disk gave while the part that stays was read; None where too little was read to tell."""
    _files: MappedFiles
    _reader: PageReader
    check: SliceCheck | None = None
    """What holds the bytes against a manifest, where that was asked for."""
    ahead: LookAhead | None = None
    """What reads guesses, where that is done."""

    def figures(self) -> StreamFigures:
        """What streaming did up to now."""
        counts = self.stream.cache.counts
        choices = counts.hits + counts.misses
        unused = self.ahead.unused_bytes if self.ahead is not None else 0
        return StreamFigures(
            passes=counts.passes,
            choices=choices,
            hit_rate=counts.hits / choices if choices else None,
            read_bytes=counts.read_bytes + unused,
            wait_s=counts.wait_s,
            tokens=self.stream.tokens,
            passes_s=self.stream.passes_s,
            disk_bytes_per_s=self.disk_bytes_per_s,
            checked=self.check.checked if self.check is not None else None,
            ahead_bytes=self.ahead.used_bytes if self.ahead is not None else None,
            unused_bytes=unused if self.ahead is not None else None,
        )

    def close(self) -> None:
        """After the contexts. The pages stay as they are until the model goes."""
        self._reader.close()
        self._files.close()


@dataclass(slots=True)
class StreamedModel:
    """A loaded model whose experts stream, into whatever context is made of it."""

    model: Model
    experts: ExpertsOnDisk

    @property
    def stream(self) -> ExpertStream:
        return self.experts.stream

    @property
    def layout(self) -> StreamLayout:
        return self.experts.layout

    def close(self) -> None:
        """Contexts first, then this."""
        self.experts.close()
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_streamed(
    library: Library,
    paths: Sequence[Path],
    settings: StreamSettings,
    *,
    log: ChoiceLog | None = None,
    progress: Progress = no_progress,
) -> StreamedModel:
    """Load a model so that at most `settings.cache_bytes` of its experts are in memory, beside the part that stays.

    Args:
        paths: the file, or all shards of a set in their order.
        log: is told of every choice of a layer.
        progress: in bytes of the part that stays.

    Raises:
        UsageError: there is nothing to stream in this model.
        RuntimeFailure: llama.cpp refused the file, or did not map it.
        IntegrityError: a tensor that stays is not as recorded.
    """
    layout = plan_streaming(paths)
    with lazy_mapping(library.path) as is_lazy:
        # Repacking copies weights into anonymous memory, which then holds the whole model.
        model = Model(library, paths[0], load_mode="mmap", gpu_layers=0, repack=False)
    try:
        experts = stream_mapped(layout, paths, settings, is_lazy=is_lazy, log=log, progress=progress)
        model.callback = experts.stream
        return StreamedModel(model, experts)
    except BaseException:
        model.close()
        raise


def plan_streaming(paths: Sequence[Path]) -> StreamLayout:
    """How a model's files are cut.

    Raises:
        UsageError: there is nothing to stream in this model.
    """
    layout = plan_layout([read_header(path) for path in paths])
    if not layout.experts:
        raise UsageError(f"{paths[0]} has no experts of at least a page each, so nothing of it can be streamed")
    return layout


def stream_mapped(
    layout: StreamLayout,
    paths: Sequence[Path],
    settings: StreamSettings,
    *,
    is_lazy: bool,
    log: ChoiceLog | None = None,
    progress: Progress = no_progress,
) -> ExpertsOnDisk:
    """Stream the experts of a model that this process has mapped.

    Args:
        layout: of the files at `paths`.
        is_lazy: nothing was read when they were mapped.
        log, progress: as `open_streamed` takes them.

    Raises:
        RuntimeFailure: the files are not mapped, or cannot be read.
        IntegrityError: a tensor that stays is not as recorded.
    """
    files = MappedFiles(paths)
    reader = PageReader(paths)
    if not is_lazy:
        for pages in (*layout.tables, *(part for expert in layout.experts.values() for part in expert.ranges)):
            files.forget(pages)
    rate = _make_resident(layout, files, reader, settings.copies_borders, progress)
    check = SliceCheck(settings.recorded, layout, files, paths) if settings.recorded is not None else None
    if check is not None:
        check.check_resident()
        reader.inspect = check.check_slice
    headers = [read_header(path) for path in paths]
    ahead, budget = None, settings.cache_bytes
    if settings.looks_ahead and not settings.hints:
        room = plan_guess_room(layout, read_model_spec(headers[0]).experts_used, budget)
        ahead, budget = LookAhead(files, reader, room) if room.places else None, budget - room.bytes
    cache = ExpertCache(layout, files, reader, budget, log, hints=settings.hints, ahead=ahead)
    guesser = _make_guesser(layout, files, headers) if ahead is not None else None
    stream = ExpertStream(layout, files, reader, cache, _read_tables(paths), guesser)
    return ExpertsOnDisk(stream, layout, rate, files, reader, check, ahead)


def _make_guesser(layout: StreamLayout, files: MappedFiles, headers: Sequence[Header]) -> NextChoice:
    """Of the routers where they lie in memory, which stays."""
    routers = {
        layer: {name: _view(files.bases[part.file] + part.offset, part.shape) for name, part in parts.items()}
        for layer, parts in find_routers(headers).items()
    }
    return NextChoice(routers, sorted({layer for layer, _ in layout.experts}))


def _view(address: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    buffer = (ctypes.c_char * (4 * math.prod(shape))).from_address(address)
    return np.ndarray(shape, np.float32, memoryview(buffer))


def _make_resident(
    layout: StreamLayout, files: MappedFiles, reader: PageReader, copies_borders: bool, progress: Progress
) -> float | None:
    """Copy what every token needs into anonymous memory, where the kernel does not take it away for the experts.

    Returns:
        Bytes a second that the disk gave for it.
    """
    left = () if copies_borders else layout.borders
    done, total = len(left) * PAGE_BYTES, layout.resident_bytes
    timed_bytes, timed_s = 0, 0.0
    for pages in left:
        files.want_soon(pages)
    for pages in sorted(set(layout.resident) - set(left), key=lambda pages: (pages.file, pages.offset)):
        address = files.lay_over(pages)
        pieces = list(pages.pieces(_RESIDENT_PIECE_BYTES))
        arrival = Arrival(len(pieces))
        started = time.perf_counter()
        for piece in pieces:
            reader.start(piece, address + piece.offset - pages.offset, arrival)
        arrival.wait()
        if pages.length >= _TIMED_RANGE_BYTES:
            timed_bytes, timed_s = timed_bytes + pages.length, timed_s + time.perf_counter() - started
        done += pages.length
        progress(done, total)
    return timed_bytes / timed_s if reader.is_direct and timed_bytes >= _TIMED_BYTES else None


def _read_tables(paths: Sequence[Path]) -> ExpertTables:
    """The tables of layers in which a token's experts stand written."""
    tables = {}
    for path in paths:
        with GGUFFile(path) as file:
            for tensor in file.header.tensors:
                layer = expert_table_layer(tensor.name)
                if layer is not None:
                    tables[layer] = file.array(tensor.name)
    return tables
