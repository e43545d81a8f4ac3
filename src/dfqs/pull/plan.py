"""What a pull will do, worked out from headers alone: where every byte of every remote file goes.

Tensor bytes go to their final place in the model. What lies between them (each shard's header, padding) goes to a
small second file: it is no part of the model, but without it a shard's hash could not be computed.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path, PurePosixPath

from dfqs.errors import ShardError, UsageError
from dfqs.gguf import Header, layout_problems
from dfqs.gguf.numbered_names import whole_name
from dfqs.gguf.shard import SPLIT_COUNT, SPLIT_TENSORS_COUNT, STALE_COUNT_FIX, Shard, check_layout, read_shard_count
from dfqs.gguf.shard_names import ShardName
from dfqs.pull.hub import Listing, RemoteFile
from dfqs.pull.selection import Choice
from dfqs.shards.layout import check_alignment
from dfqs.shards.plan import MergePlan, plan_merge_of

CHUNK_BYTES = 16 << 20
"""One request, and one claim of the journal."""
MIN_CHUNK_BYTES = 64 << 10
MAX_CHUNKS = 1 << 20
"""Of all files together: what is known of each takes memory, and a line of the journal."""
REST_LIMIT_BYTES = 1 << 30
"""Headers and padding of all shards; the largest models have some 20 MB."""


class Place(IntEnum):
    """Which file bytes go to."""

    MODEL = 0
    REST = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of a remote file's bytes that goes to one place."""

    source_offset: int
    length: int
    place: Place
    offset: int
    """In the file that `place` names."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one remote file's bytes go; the pieces cover it from first byte to last."""

    file: RemoteFile
    pieces: tuple[Piece, ...]
    starts: tuple[int, ...]
    """`source_offset` of each piece, to search in."""

    def within(self, start: int, end: int) -> Iterator[Piece]:
        """The pieces of a range, cut to it."""
        index = bisect.bisect_right(self.starts, start) - 1
        while start < end:
            piece = self.pieces[index]
            skip = start - piece.source_offset
            length = min(piece.length - skip, end - start)
            yield Piece(start, length, piece.place, piece.offset + skip)
            start += length
            index += 1


@dataclass(frozen=True, slots=True)
class PullPlan:
    """A pull that has been checked and can be carried out."""

    listing: Listing
    choice: Choice
    layouts: tuple[Layout, ...]
    header: bytes
    """What is written at the start of the model when all else is there; empty for a single file."""
    file_bytes: int
    rest_bytes: int
    tensors: int
    chunk_bytes: int
    notes: tuple[str, ...]
    headers: tuple[Header, ...] = field(repr=False)
    """What the plan was made of, as it was read: whether those are the files' own headers only their hashes say."""
    alignment: int | None = None
    """That tensors were asked to be laid to, in bytes; None: as in the shards."""

    @property
    def fetch_bytes(self) -> int:
        """Bytes of the remote files."""
        return sum(layout.file.size for layout in self.layouts)

    @property
    def joined(self) -> bool:
        """Whether the remote files are pieces of one file, with one header between them."""
        return self.choice.joined

    def chunks(self, index: int) -> int:
        """How many chunks a file has."""
        return -(-self.layouts[index].file.size // self.chunk_bytes)

    def chunk_range(self, index: int, chunk: int) -> tuple[int, int]:
        """Where a chunk begins and ends in its file."""
        start = chunk * self.chunk_bytes
        return start, min(start + self.chunk_bytes, self.layouts[index].file.size)

    def gaps(self) -> Iterator[tuple[int, int]]:
        """Where in the model no remote file's bytes go: its header and the padding between tensors."""
        position = 0
        for layout in self.layouts:
            for piece in layout.pieces:
                if piece.place is Place.MODEL:
                    if piece.offset > position:
                        yield position, piece.offset
                    position = piece.offset + piece.length
        if position < self.file_bytes:
            yield position, self.file_bytes

    def gap_bytes(self, start: int, end: int) -> bytes:
        """What stands there: the header, then zeroes."""
        return self.header[start:end].ljust(end - start, b"\0")

    def all_chunks(self, chunk_bytes: int) -> int:
        """How many chunks there are where files are cut so."""
        return sum(-(-layout.file.size // chunk_bytes) for layout in self.layouts)

    def identity(self) -> dict[str, object]:
        """Everything that decides which bytes go where; a journal is for one identity. Chunks may be cut otherwise."""
        asked = {} if self.alignment is None else {"alignment": self.alignment}
        return asked | {
            "files": [[layout.file.name, layout.file.size, layout.file.identity] for layout in self.layouts],
            "file_bytes": self.file_bytes,
            "rest_bytes": self.rest_bytes,
        }


def plan_pull_of(
    listing: Listing,
    choice: Choice,
    headers: Sequence[Header],
    *,
    chunk_bytes: int = CHUNK_BYTES,
    alignment: int | None = None,
) -> PullPlan:
    """Plan from headers that have been read, one for each of the chosen files.

    Args:
        alignment: of tensors in the model, in bytes; as in the shards where nothing is said.

    Raises:
        UsageError: no such alignment, or the model is fetched as it is.
        ShardError: the files do not make one model, or one is broken as it stands on the Hub.
    """
    check_alignment(alignment)
    if not choice.sharded:
        if alignment is not None:
            raise UsageError(
                f"{choice.name} is one file, which is fetched as it is; --align is for a model in shards, which "
                "are put together anew (`dfqs quantize --align` writes an aligned one)"
            )
        return _plan_one_file(listing, choice, headers[0], chunk_bytes)
    shards = tuple(Shard(file.name, header) for file, header in zip(choice.files, headers, strict=True))
    count = read_shard_count(shards[0])
    if count != len(shards):
        raise ShardError(f"split.count is {count:,}, the repository has {len(shards):,}", path=shards[0].source)
    for shard in shards:
        check_layout(shard)
    merge = plan_merge_of(shards, alignment=alignment)
    layouts, rest_bytes = _layouts(choice.files, merge)
    if rest_bytes > REST_LIMIT_BYTES:
        raise ShardError(f"headers and padding take {rest_bytes:,} bytes, more than any model's", path=choice.name)
    return PullPlan(
        listing,
        choice,
        layouts,
        merge.header,
        merge.file_bytes,
        rest_bytes,
        len(merge.tensors),
        chunk_bytes,
        merge.notes,
        tuple(headers),
        alignment,
    )


def _plan_one_file(listing: Listing, choice: Choice, header: Header, chunk_bytes: int) -> PullPlan:
    """A model that is fetched as it is: one remote file, or its pieces one after the other."""
    name = choice.files[0].name
    shard = Shard(name, header)
    count = shard.split_number(SPLIT_COUNT)
    # By its own count it has every tensor: the key is left over from the shards that it was merged of.
    stale = count is not None and count > 1 and shard.split_number(SPLIT_TENSORS_COUNT) == len(header.tensors)
    if count is not None and not 0 <= count <= 1 and not stale:
        example = ShardName("PREFIX", 1, count) if count > 0 else "PREFIX-00001-of-00002.gguf"
        raise ShardError(
            f"this is one shard of {count:,} and no whole model, and the set is not named like {example}, as shards "
            "must be to be put together; fetch its files, rename them and `dfqs merge` them",
            path=name,
            name=SPLIT_COUNT,
        )
    for problem in layout_problems(header):
        raise ShardError(f"{problem.detail}; the file is broken on the Hub", path=name, name=problem.name)
    extra = header.file_size - max(header.end_of_data, header.data_offset)
    notes: tuple[str, ...] = ()
    if extra > 0:
        notes = (f"{extra:,} bytes stand after the last tensor; they are fetched as they are",)
    if stale:
        notes += (f"it holds every tensor, but calls itself one of {count:,} shards; {STALE_COUNT_FIX}",)
    layouts, position = [], 0
    for file in choice.files:
        layouts.append(Layout(file, (Piece(0, file.size, Place.MODEL, position),), (0,)))
        position += file.size
    return PullPlan(
        listing, choice, tuple(layouts), b"", position, 0, len(header.tensors), chunk_bytes, notes, (header,)
    )


def require_few_chunks(plan: PullPlan) -> None:
    """Raises UsageError where the files would be cut into more chunks than can be kept in mind."""
    if plan.all_chunks(plan.chunk_bytes) > MAX_CHUNKS:
        least = MIN_CHUNK_BYTES
        while plan.all_chunks(least) > MAX_CHUNKS:
            least *= 2
        raise UsageError(
            f"chunks of {plan.chunk_bytes:,} bytes are too many for {plan.fetch_bytes:,} bytes; give --chunk "
            f"{least >> 10}KiB or more"
        )


def output_path(out: Path, choice: Choice) -> Path:
    """The file to write: `out`, or in it, where it is a directory, the name that the repository gives.

    Raises:
        UsageError: that name is hidden or otherwise unfit; then `out` must name the file.
    """
    if not out.is_dir():
        return out
    # Only the last part of a name from outside is used, and the listing has been through `is_safe_name`.
    first = choice.files[0].name
    name = PurePosixPath(whole_name(first) if choice.sharded or choice.joined else first).name
    if name.startswith((".", "-")) or len(name.encode()) > 200:
        raise UsageError(f"the repository's name for it, {name!r}, is no good here; name the file with -o")
    return out / name


def _layouts(files: Sequence[RemoteFile], merge: MergePlan) -> tuple[tuple[Layout, ...], int]:
    layouts, rest = [], 0
    for index, file in enumerate(files):
        pieces: list[Piece] = []
        position = 0
        for copy in merge.copies_of(index):
            if copy.source_offset > position:
                gap = copy.source_offset - position
                pieces.append(Piece(position, gap, Place.REST, rest))
                rest += gap
            pieces.append(Piece(copy.source_offset, copy.length, Place.MODEL, copy.output_offset))
            position = copy.source_end
        if position < file.size:
            pieces.append(Piece(position, file.size - position, Place.REST, rest))
            rest += file.size - position
        layouts.append(Layout(file, tuple(pieces), tuple(piece.source_offset for piece in pieces)))
    return tuple(layouts), rest
