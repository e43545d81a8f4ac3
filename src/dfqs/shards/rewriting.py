"""A file written anew out of bytes of others: which bytes go where, and the header before them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqs.gguf import GGMLType, Header, TensorInfo, encode_header
from dfqs.gguf.layout import data_section_length, place_tensors
from dfqs.gguf.writer import Key
from dfqs.storage.identity import FileStamp


@dataclass(frozen=True, slots=True)
class Move:
    """Bytes of one source that go to one place of the output."""

    source: int
    """Index into the plan's sources."""
    source_offset: int
    length: int
    output_offset: int


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """A repair that can be carried out. What no move covers is zeroes."""

    sources: tuple[Path, ...]
    source_bytes: tuple[int, ...]
    what: str
    """What is fixed, for people."""
    header: bytes
    """Written at the start; empty where the source's own is moved."""
    moves: tuple[Move, ...]
    file_bytes: int
    tensors: int
    stamps: tuple[FileStamp, ...] = ()
    """Which files the sources were before they were looked at."""
    changes: tuple[str, ...] = ()
    """Of a translation: every key and tensor name that becomes another, a line each."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A tensor of the new file, and the bytes of the old one that it is."""

    name: str
    shape: tuple[int, ...]
    """GGUF order: fastest axis first."""
    type: GGMLType
    spans: tuple[tuple[int, int], ...]
    """(offset in the old file, length), in order."""

    @classmethod
    def of(cls, header: Header, tensor: TensorInfo) -> "Rewritten":
        """A tensor as it is."""
        return cls(tensor.name, tensor.shape, tensor.type, ((header.span(tensor).offset, tensor.length),))

    @property
    def length(self) -> int:
        return sum(length for _, length in self.spans)


def plan_rewriting(
    path: Path,
    file_bytes: int,
    keys: Iterable[Key],
    tensors: Sequence[Rewritten],
    alignment: int,
    what: str,
    changes: tuple[str, ...] = (),
) -> RepairPlan:
    """One file with other keys, or its tensors in other places or pieces.

    Args:
        file_bytes: of the old file.
    """
    shapes = [(tensor.name, tensor.shape, tensor.type) for tensor in tensors]
    header = encode_header(keys, shapes, alignment=alignment)
    placed = tuple(place_tensors(shapes, alignment))
    moves: list[Move] = []
    for tensor, place in zip(tensors, placed, strict=True):
        position = len(header) + place.offset
        for offset, length in tensor.spans:
            moves.append(Move(0, offset, length, position))
            position += length
    total = len(header) + data_section_length(placed, alignment)
    return RepairPlan((path,), (file_bytes,), what, header, tuple(moves), total, len(placed), changes=changes)
