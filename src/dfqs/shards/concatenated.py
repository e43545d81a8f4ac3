"""Files laid end to end: what `cat model-0000*-of-00003.gguf > model.gguf` makes of a set of shards.

llama.cpp reads the first header and then either refuses or, where the first file is a whole model, loads it and never
looks at the rest. Everything needed to make one correct file is still there.
"""

from dataclasses import dataclass

from dfqs.errors import FormatError
from dfqs.gguf import ByteSource, Header, HeaderBudget, TensorInfo, parse_header
from dfqs.gguf.layout import MAGIC
from dfqs.gguf.shard_names import MAX_SHARDS

_SEARCH_BYTES = 1 << 16
"""The next file begins at the end of the last, or where its padding ends. No alignment in use is larger than this."""


@dataclass(frozen=True, slots=True)
class EmbeddedFile:
    """One GGUF file inside another."""

    base: int
    """Where it begins."""
    header: Header
    """Its offsets count from `base`."""

    @property
    def end(self) -> int:
        """Where its data ends, padding included."""
        return self.base + max(self.header.end_of_data, self.header.data_offset)

    @property
    def payload_end(self) -> int:
        """Where its last byte that matters ends; some writers leave the last padding out."""
        ends = [self.header.data_offset + t.offset + t.length for t in self.header.tensors]
        return self.base + max(ends, default=self.header.header_length)

    def span_start(self, tensor: TensorInfo) -> int:
        """Where a tensor begins, counted from the start of the outer file."""
        return self.base + self.header.data_offset + tensor.offset


def read_embedded(source: ByteSource) -> tuple[EmbeddedFile, ...]:
    """The files that stand end to end in `source`, the first one included; reading stops where none follows, or where
    the headers would be more than those of a model are together.

    Raises:
        FormatError: the first header is broken.
    """
    budget = HeaderBudget()
    files = [EmbeddedFile(0, parse_header(source, budget=budget))]
    while len(files) < MAX_SHARDS:
        base = _next_magic(source, files[-1])
        if base is None:
            break
        try:
            files.append(EmbeddedFile(base, parse_header(source, base=base, budget=budget)))
        except FormatError:
            # The magic, but no header behind it: trailing bytes of another kind.
            break
    return tuple(files)


def _next_magic(source: ByteSource, last: EmbeddedFile) -> int | None:
    """Where the file after `last` begins, if one does."""
    start = last.payload_end
    window = min(last.end - start, _SEARCH_BYTES) + len(MAGIC)
    found = source.read_at(start, window).find(MAGIC) if start < source.size else -1
    return start + found if found >= 0 else None
