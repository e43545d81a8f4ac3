"""What a merge will do, worked out from headers alone: the new header, and which bytes go where.

The bytes are those of `llama-gguf-split --merge` (canonical): the first shard's keys in their order, `split.count`
taken out and put last with value 0, the tensors of all shards in order, padded with zeroes. Where that tool is wrong
the plan is right instead: `general.alignment` other than 32 is kept (the tool pads to 32 whatever the key says), and
strings with a NUL are kept whole (the tool cuts them).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dfqs.errors import UsageError
from dfqs.gguf import Header, KeyEntry, RawKeyValue, TensorInfo, ValueType, encode_header, u16
from dfqs.gguf.layout import data_section_length, place_tensors
from dfqs.gguf.shard import SPLIT_COUNT, Shard, iter_tensors, read_shards
from dfqs.gguf.writer import Key
from dfqs.shards.consistency import consistency_notes, consistency_problems
from dfqs.shards.layout import aligned_keys, check_alignment
from dfqs.shards.provenance import provenance_notes
from dfqs.storage.atomic import find_same_file


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes of one shard that go to one place of the output."""

    shard: int
    """Index into the plan's shards."""
    source_offset: int
    """Bytes from the start of the shard."""
    length: int
    output_offset: int
    """Bytes from the start of the output."""

    @property
    def source_end(self) -> int:
        return self.source_offset + self.length

    @property
    def output_end(self) -> int:
        return self.output_offset + self.length


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge that has been checked and can be carried out.

    What no copy covers (padding between tensors) is zeroes.
    """

    shards: tuple[Shard, ...]
    header: bytes
    """The output's bytes before its data section."""
    keys: tuple[Key, ...]
    alignment: int
    tensors: tuple[TensorInfo, ...]
    """Of the output, in file order."""
    copies: tuple[Copy, ...]
    """In the order of the output, which is also the order of shards and of bytes within each."""
    file_bytes: int
    notes: tuple[str, ...]
    """What is odd but legal."""

    @property
    def copied_bytes(self) -> int:
        return sum(copy.length for copy in self.copies)

    def copies_of(self, shard: int) -> tuple[Copy, ...]:
        return tuple(copy for copy in self.copies if copy.shard == shard)


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge did."""

    path: Path
    file_bytes: int
    moved_bytes: int
    """Bytes written: the header, and what was copied."""
    wall_s: float
    shard_sha256: tuple[str | None, ...]
    """One for each shard, in order; None where its bytes did not pass (or not in one run)."""
    left: tuple[Path, ...] = ()
    """Files with the name of a used-up shard that are not that shard: somebody put them there meanwhile."""
    done_already: bool = False
    """Nothing had to be done: an earlier run wrote this very file of these very shards."""


def plan_merge(first_shard: Path, *, alignment: int | None = None) -> MergePlan:
    """Read and check a set of local shards, and plan their merge.

    Args:
        alignment: of tensors in the output, in bytes; as in the shards where nothing is said.

    Raises:
        ShardError: not a shard, one missing, truncated, doubled, or of another model; the message names the file.
        UsageError: a later shard was given in place of the first, or a file cannot be read.
        FormatError: a header lies.
    """
    plan = plan_merge_of(read_shards(Path(first_shard)), alignment=check_alignment(alignment))
    return replace(plan, notes=(*plan.notes, *provenance_notes(plan.shards)))


def plan_merge_of(shards: Sequence[Shard], *, alignment: int | None = None) -> MergePlan:
    """Plan a merge of shards whose headers have been read, wherever they lie.

    Args:
        alignment: as `plan_merge` takes it.

    Raises:
        ShardError: they do not make one model.
    """
    shards = tuple(shards)
    for problem in consistency_problems(shards):
        raise problem
    first = shards[0].header
    keys = merged_keys(first)
    if alignment is not None and alignment != first.alignment:
        keys = aligned_keys(keys, alignment)
    alignment = alignment or first.alignment
    shapes = [(tensor.name, tensor.shape, tensor.type) for _, tensor in iter_tensors(shards)]
    header = encode_header(keys, shapes, alignment=alignment)
    tensors = tuple(place_tensors(shapes, alignment))
    return MergePlan(
        shards=shards,
        header=header,
        keys=keys,
        alignment=alignment,
        tensors=tensors,
        copies=tuple(_copies(shards, tensors, len(header))),
        file_bytes=len(header) + data_section_length(tensors, alignment),
        notes=tuple(consistency_notes(shards)),
    )


def merged_keys(first: Header) -> tuple[Key, ...]:
    """The first shard's keys as the merged file has them."""
    kept = [carried_key(first, entry) for entry in first.entries if entry.name != SPLIT_COUNT]
    return (*kept, u16(SPLIT_COUNT, 0))


def carried_key(header: Header, entry: KeyEntry) -> Key:
    """A key as llama.cpp's writer would write it again: byte for byte, but a bool is 0 or 1."""
    if ValueType.BOOL not in (entry.type, entry.element_type):
        return header.raw_entry(entry)
    raw = header.raw_entry(entry)
    value_start = entry.value_start - entry.start
    values = bytes(1 if byte else 0 for byte in raw.data[value_start:])
    return RawKeyValue(entry.name, raw.data[:value_start] + values)


def _copies(shards: tuple[Shard, ...], tensors: Sequence[TensorInfo], data_offset: int) -> Iterator[Copy]:
    """One copy for each run of tensors that stand in the output as in their shard, with no padding between them.

    Padding is not copied: a shard may hold anything there, the output holds zeroes.
    """
    run: Copy | None = None
    for (index, tensor), placed in zip(iter_tensors(shards), tensors, strict=True):
        if tensor.length == 0:
            continue
        source_offset = shards[index].header.data_offset + tensor.offset
        output_offset = data_offset + placed.offset
        if run and (run.shard, run.source_end, run.output_end) == (index, source_offset, output_offset):
            run = Copy(index, run.source_offset, run.length + tensor.length, run.output_offset)
            continue
        if run:
            yield run
        run = Copy(index, source_offset, tensor.length, output_offset)
    if run:
        yield run


def refuse_source_as_output(shards: tuple[Shard, ...], out: Path) -> None:
    """Raises UsageError when `out` is one of the shards, under whatever name."""
    source = find_same_file(out, (shard.path for shard in shards))
    if source is not None:
        raise UsageError(f"{out} is one of the shards ({source.name}); choose another name for the output")
