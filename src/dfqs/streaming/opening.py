"""Loading a model that streams: the part that every token needs in memory, experts on disk with a cache before them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dfqs.errors import UsageError
from dfqs.gguf.file import GGUFFile
from dfqs.gguf.reader import read_header
from dfqs.model.spec import expert_table_layer
from dfqs.progress import Progress, no_progress
from dfqs.runtime.library import Library
from dfqs.runtime.model import Model
from dfqs.streaming.cache import ExpertCache
from dfqs.streaming.layout import PAGE_BYTES, StreamLayout, plan_layout
from dfqs.streaming.lazy_map import lazy_mapping
from dfqs.streaming.pages import MappedFiles
from dfqs.streaming.policy import ChoiceLog
from dfqs.streaming.reader import Arrival, PageReader
from dfqs.streaming.stream import ExpertStream, ExpertTables

_RESIDENT_PIECE_BYTES = 16 << 20


@dataclass(slots=True)
class StreamedModel:
    """A loaded model whose experts stream, into whatever context is made of it."""

    model: Model
    stream: ExpertStream
    layout: StreamLayout
    _files: MappedFiles
    _reader: PageReader

    def close(self) -> None:
        """Contexts first, then this."""
        self._reader.close()
        self.model.close()
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_streamed(
    library: Library,
    paths: Sequence[Path],
    cache_bytes: int,
    *,
    log: ChoiceLog | None = None,
    copies_borders: bool = True,
    progress: Progress = no_progress,
) -> StreamedModel:
    """Load a model so that at most `cache_bytes` of its experts are in memory, beside the part that stays.

    Args:
        paths: the file, or all shards of a set in their order.
        log: is told of every choice of a layer.
        copies_borders: copy pages that two slices share with what stays; else they are left to the page cache.
        progress: in bytes of the part that stays.

    Raises:
        UsageError: there is nothing to stream in this model.
        RuntimeFailure: llama.cpp refused the file, or did not map it.
    """
    layout = plan_layout([read_header(path) for path in paths])
    if not layout.experts:
        raise UsageError(f"{paths[0]} has no experts of at least a page each, so nothing of it can be streamed")
    with lazy_mapping(library.path) as is_lazy:
        # Repacking copies weights into anonymous memory, which then holds the whole model.
        model = Model(library, paths[0], load_mode="mmap", gpu_layers=0, repack=False)
    try:
        files = MappedFiles(paths)
        reader = PageReader(paths)
        if not is_lazy:
            for expert in layout.experts.values():
                for pages in expert.ranges:
                    files.forget(pages)
        _make_resident(layout, files, reader, copies_borders, progress)
        cache = ExpertCache(layout, files, reader, cache_bytes, log)
        stream = ExpertStream(layout, files, reader, cache, _read_tables(paths))
        model.callback = stream
        return StreamedModel(model, stream, layout, files, reader)
    except BaseException:
        model.close()
        raise


def _make_resident(
    layout: StreamLayout, files: MappedFiles, reader: PageReader, copies_borders: bool, progress: Progress
) -> None:
    """Copy what every token needs into anonymous memory, where the kernel does not take it away for the experts."""
    left = () if copies_borders else layout.borders
    done, total = len(left) * PAGE_BYTES, layout.resident_bytes
    for pages in left:
        files.want_soon(pages)
    for pages in sorted(set(layout.resident) - set(left), key=lambda pages: (pages.file, pages.offset)):
        address = files.lay_over(pages)
        pieces = list(pages.pieces(_RESIDENT_PIECE_BYTES))
        arrival = Arrival(len(pieces))
        for piece in pieces:
            reader.start(piece, address + piece.offset - pages.offset, arrival)
        arrival.wait()
        done += pages.length
        progress(done, total)


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
