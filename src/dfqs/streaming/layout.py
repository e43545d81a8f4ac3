"""Which pages of a model's files hold what: the slices of single experts, and everything else.

Pure. llama.cpp maps a model's files into memory and keeps pointers into the mapping, so what can be exchanged under it
is whole pages. The pages that lie wholly inside one expert's slice of a tensor come and go with that expert; all
others (attention, embeddings, norms, and the pages that two slices share) stay. Where tensor data is aligned to pages
no page is shared; at llama.cpp's usual alignment of 32 bytes one page a slice is.

Of a table in which a token looks up its row (the embeddings, where they are not the output too) a token needs one page
or two: it is left to the page cache, and takes no memory from the experts.
"""

import mmap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from dfqs.gguf.layout import TensorInfo, TensorSpan
from dfqs.gguf.reader import Header
from dfqs.model.spec import lookup_tables, stacked_matrix

PAGE_BYTES = mmap.PAGESIZE

ExpertKey = tuple[int, int]
"""(layer, expert)"""


@dataclass(frozen=True, slots=True)
class PageRange:
    """Whole pages of one file."""

    file: int
    """Index into the model's files."""
    offset: int
    """Bytes from the start of the file."""
    length: int

    def pieces(self, piece_bytes: int) -> Iterator["PageRange"]:
        """The range in parts of at most `piece_bytes`, which must be whole pages."""
        for start in range(0, self.length, piece_bytes):
            yield PageRange(self.file, self.offset + start, min(piece_bytes, self.length - start))


@dataclass(frozen=True, slots=True)
class ExpertPages:
    """The pages of one expert of one layer, in the order in which the layer needs them."""

    inner: tuple[PageRange, ...]
    """Of gate and up, which are multiplied first."""
    outer: tuple[PageRange, ...]
    """Of down, which waits for their product."""

    @property
    def ranges(self) -> tuple[PageRange, ...]:
        return self.inner + self.outer

    @property
    def length(self) -> int:
        return sum(pages.length for pages in self.ranges)


@dataclass(frozen=True, slots=True)
class StackedTensor:
    """A tensor that holds one matrix of every expert of a layer."""

    name: str
    layer: int
    file: int
    offset: int
    """Bytes from the start of the file."""
    is_last: bool
    """Whether it is multiplied by what the others gave (down)."""


@dataclass(frozen=True)
class StreamLayout:
    """A model's files, cut into what stays and what streams. Sums over tens of thousands of ranges are kept."""

    experts: dict[ExpertKey, ExpertPages]
    tensors: tuple[StackedTensor, ...]
    """Those that `experts` are pages of."""
    resident: tuple[PageRange, ...]
    """In file order; the last range of a file may reach past its end."""
    tables: tuple[PageRange, ...] = ()
    """Left where they are: a token reads a row of each."""

    @cached_property
    def resident_bytes(self) -> int:
        return sum(pages.length for pages in self.resident)

    @cached_property
    def sizes(self) -> dict[ExpertKey, int]:
        """Bytes that each expert takes in a cache, and that bringing it reads."""
        return {key: pages.length for key, pages in self.experts.items()}

    @cached_property
    def experts_bytes(self) -> int:
        """Of all experts' pages."""
        return sum(self.sizes.values())

    @cached_property
    def largest_layer_bytes(self) -> int:
        """Of all experts of the layer that has the most: what a long batch needs together."""
        layers: Counter[int] = Counter()
        for (layer, _), size in self.sizes.items():
            layers[layer] += size
        return max(layers.values(), default=0)

    @cached_property
    def largest_expert_bytes(self) -> int:
        return max(self.sizes.values(), default=0)

    @property
    def borders(self) -> tuple[PageRange, ...]:
        """Of `resident`, the single pages that two slices share."""
        slices = [pages for expert in self.experts.values() for pages in expert.ranges]
        starts = {(pages.file, pages.offset) for pages in slices}
        ends = {(pages.file, pages.offset + pages.length) for pages in slices}
        return tuple(
            pages
            for pages in self.resident
            if pages.length == PAGE_BYTES
            and (pages.file, pages.offset) in ends
            and (pages.file, pages.offset + PAGE_BYTES) in starts
        )


def plan_layout(headers: Sequence[Header]) -> StreamLayout:
    """Cut the files of a model, given by their headers in the order of its shards."""
    inner: dict[ExpertKey, list[PageRange]] = {}
    outer: dict[ExpertKey, list[PageRange]] = {}
    tensors: list[StackedTensor] = []
    resident: list[PageRange] = []
    tables: list[PageRange] = []
    looked_up = lookup_tables({tensor.name for header in headers for tensor in header.tensors})
    for file, header in enumerate(headers):
        taken: list[PageRange] = []
        for tensor in header.tensors:
            if tensor.name in looked_up:
                tables += _whole_pages(file, header.span(tensor))
            stacked = stacked_matrix(tensor.name)
            if stacked is None:
                continue
            layer, matrix = stacked
            offset = header.span(tensor).offset
            slots = _slots(tensor, file, offset)
            if not slots:
                continue
            is_last = matrix == "down"
            tensors.append(StackedTensor(tensor.name, layer, file, offset, is_last))
            pages = outer if is_last else inner
            for expert, slot in enumerate(slots):
                pages.setdefault((layer, expert), []).append(slot)
            taken.extend(slots)
        taken += [pages for pages in tables if pages.file == file]
        resident.extend(_complement(taken, file, header.data_offset, header.file_size))
    keys = sorted(set(inner) | set(outer))
    experts = {key: ExpertPages(tuple(inner.get(key, ())), tuple(outer.get(key, ()))) for key in keys}
    return StreamLayout(experts, tuple(tensors), tuple(resident), tuple(tables))


def _slots(tensor: TensorInfo, file: int, offset: int) -> tuple[PageRange, ...]:
    """The pages inside each expert's slice, equally many for every expert so that one can take another's place."""
    count = tensor.shape[-1]
    if len(tensor.shape) != 3 or tensor.length % count:
        return ()
    slice_bytes = tensor.length // count
    starts = [-(-(offset + expert * slice_bytes) // PAGE_BYTES) * PAGE_BYTES for expert in range(count)]
    ends = [(offset + (expert + 1) * slice_bytes) // PAGE_BYTES * PAGE_BYTES for expert in range(count)]
    length = min(end - start for start, end in zip(starts, ends, strict=True))
    return tuple(PageRange(file, start, length) for start in starts) if length > 0 else ()


def _whole_pages(file: int, span: TensorSpan) -> list[PageRange]:
    """The pages that hold nothing but this tensor."""
    start = -(-span.offset // PAGE_BYTES) * PAGE_BYTES
    end = (span.offset + span.length) // PAGE_BYTES * PAGE_BYTES
    return [PageRange(file, start, end - start)] if end > start else []


def _complement(taken: Sequence[PageRange], file: int, data_offset: int, file_size: int) -> list[PageRange]:
    """The pages of a file's data section that are in no slot."""
    ranges: list[PageRange] = []
    position = data_offset // PAGE_BYTES * PAGE_BYTES
    for slot in sorted(taken, key=lambda pages: pages.offset):
        if slot.offset > position:
            ranges.append(PageRange(file, position, slot.offset - position))
        position = slot.offset + slot.length
    end = -(-file_size // PAGE_BYTES) * PAGE_BYTES
    if end > position:
        ranges.append(PageRange(file, position, end - position))
    return ranges
