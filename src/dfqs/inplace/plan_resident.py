"""Plans a merge in place: the largest shard keeps its data where it is on disk.

A gap is inserted in front of that data by the file system (no bytes move), so large that the new header and the data of
earlier shards fit. The gap must be a multiple of the file system's block, so one key, `dfqs.padding`, makes the header
as long as it has to be. Where the first shard is the largest, its header starts with the same bytes as the new one (the
vocabulary, mostly): the gap is inserted behind those, and they are not written again.
"""

import hashlib
from dataclasses import dataclass

from dfqs.errors import UsageError
from dfqs.gguf import FileSource, ValueType, align_up, array, encode_header
from dfqs.gguf.shard import Shard
from dfqs.inplace.job import TAIL_BYTES, Freeing, Job, Resident, Source
from dfqs.shards.plan import Copy, MergePlan
from dfqs.shards.provenance import read_hub_record

PADDING_KEY = "dfqs.padding"
HEAD_BYTES = 24
"""Magic, version and the two counts."""


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A job, and the header that it will write (kept out of the journal: it can be many megabytes)."""

    job: Job
    header: bytes


def plan_in_place(plan: MergePlan, unit: int, freeing: Freeing) -> JobPlan:
    """Plan which shard stays, and what is written around it.

    Args:
        unit: multiple that the file system asks of an inserted range, in bytes.

    Raises:
        UsageError: the shard that would stay is padded in another way than the output.
    """
    index = largest_shard(plan)
    shard = plan.shards[index]
    if shard.header.alignment != plan.alignment:
        raise UsageError(
            f"{shard.path.name} is aligned to {shard.header.alignment} bytes, the output to {plan.alignment}; its data "
            "cannot stay as it is. --consume needs little space too"
        )
    data_offset = shard.header.data_offset
    # Offset of the first tensor that stays, in the new data section: what earlier shards take.
    earlier = sum(len(before.tensors) for before in plan.shards[:index])
    before = plan.tensors[earlier].offset if shard.tensors else 0
    header, gap = _fit_header(plan, data_offset, before, max(unit, plan.alignment))
    with FileSource(shard.path) as source:
        old_header = source.read_exactly(0, data_offset)
    insert_at = _insertion_point(old_header, header, unit) if index == 0 else 0
    shift = len(header) - len(plan.header)
    copies = [
        Copy(copy.shard, copy.source_offset, copy.length, copy.output_offset + shift)
        for copy in plan.copies
        if copy.shard != index
    ]
    job = Job(
        mode="in-place",
        freeing=freeing,
        file_bytes=plan.file_bytes + shift,
        header_bytes=len(header),
        header_sha256=hashlib.sha256(header).hexdigest(),
        copies=tuple(copies),
        sources=tuple(map(describe_source, plan.shards)),
        resident=Resident(
            shard=index,
            insert_at=insert_at,
            gap=gap,
            old_bytes=shard.header.file_size,
            old_head=old_header[:HEAD_BYTES],
            old_tail=old_header[insert_at:],
        ),
    )
    return JobPlan(job, header)


def largest_shard(plan: MergePlan) -> int:
    """Index of the largest shard that has tensors."""
    return max(range(len(plan.shards)), key=lambda i: (bool(plan.shards[i].tensors), plan.shards[i].header.file_size))


def describe_source(shard: Shard) -> Source:
    """What the journal keeps of a shard to know it again."""
    with FileSource(shard.path) as source:
        tail = source.read_at(max(source.size - TAIL_BYTES, 0), TAIL_BYTES)
        record = read_hub_record(shard.path)
        expected = record.sha256 if record is not None else None
        return Source(shard.path.name, source.size, hashlib.sha256(tail).hexdigest(), expected)


def _fit_header(plan: MergePlan, data_offset: int, before: int, step: int) -> tuple[bytes, int]:
    """The header, padded by a key to where the data comes to lie, and the gap that puts it there.

    Header + `before` bytes must end `gap` bytes behind the old `data_offset`.
    """
    gap = align_up(max(len(plan.header) + before - data_offset, 0), step)
    if data_offset + gap - before == len(plan.header):
        return plan.header, gap
    shapes = [(tensor.name, tensor.shape, tensor.type) for tensor in plan.tensors]

    def encode(padding: int) -> bytes:
        key = array(PADDING_KEY, ValueType.UINT8, bytes(padding))
        return encode_header((*plan.keys, key), shapes, alignment=plan.alignment)

    least = len(encode(0))
    while data_offset + gap - before < least:
        gap += step
    return encode(data_offset + gap - before - least), gap


def _insertion_point(old: bytes, new: bytes, unit: int) -> int:
    """The last multiple of `unit` up to which both headers agree, their first 24 bytes not looked at."""
    agreed = 0
    while agreed + unit <= min(len(old), len(new)):
        start = max(agreed, HEAD_BYTES)
        if old[start : agreed + unit] != new[start : agreed + unit]:
            break
        agreed += unit
    return agreed
