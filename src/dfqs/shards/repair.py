"""Repair: a correct file out of a damaged one, where every byte of the model is there and only its form is wrong.

What can be fixed: shards joined with cat (in any order), trailing bytes, raw pieces, gaps and misalignment between
tensors, a whole model that calls itself a shard, experts that stand one tensor each, and when asked for names that are
another program's. What cannot: bytes that are not there, or that two tensors claim.
"""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from dfqs.errors import AlreadyDone, FormatError, ShardError, UsageError
from dfqs.gguf import FileSource, Header, RawKeyValue, TensorInfo, layout_problems
from dfqs.gguf.pieces import find_raw_pieces
from dfqs.gguf.shard import SPLIT_COUNT, SPLIT_NO, Shard, is_whole_model
from dfqs.progress import Progress, no_progress
from dfqs.shards.concatenated import EmbeddedFile, read_embedded
from dfqs.shards.plan import merged_keys, plan_merge_of
from dfqs.shards.rewriting import Move, RepairPlan, Rewritten, plan_rewriting
from dfqs.shards.stacking import has_lone_experts, stack_experts
from dfqs.shards.translate import translate
from dfqs.storage.atomic import atomic_writer, check_output_path
from dfqs.storage.copying import RangeWriter
from dfqs.storage.identity import FileStamp, settled_stamp
from dfqs.storage.space import require_space


def plan_repair(path: Path, dialect: str | None = None) -> RepairPlan:
    """Find out what is wrong with a file and how to fix it.

    Args:
        dialect: `upstream`: beside its form, names that are another program's become llama.cpp's.

    Raises:
        AlreadyDone: it is to be put into llama.cpp's words, and is in them.
        UsageError: nothing is wrong with it, or it cannot be read.
        FormatError: it cannot be fixed; the message says why.
        ShardError: it holds shards that do not make a model.
    """
    path = Path(path)
    if pieces := find_raw_pieces(path):
        if not pieces.complete:
            raise FormatError(
                f"the {len(pieces.paths)} raw pieces here have {pieces.joined_bytes:,} bytes, the model "
                f"{pieces.expected_bytes:,}; a piece is missing",
                path=path,
            )
        stamps = tuple(FileStamp.of(piece.stat()) for piece in pieces.paths)
        return replace(_plan_joining(pieces.paths, pieces.joined_bytes), stamps=stamps)
    with FileSource(path) as source:
        stamp = settled_stamp(source.fileno())
        files = read_embedded(source)
        if len(files) > 1:
            plan = _plan_separating(source, files)
        else:
            plan = _plan_rewriting(source, files[0]) if dialect is None else _plan_translation(source, files[0])
        return replace(plan, stamps=(stamp,))


def repair(plan: RepairPlan, out: Path, *, progress: Progress = no_progress) -> None:
    """Write the fixed file; the sources stay.

    Args:
        progress: in bytes of the output.

    Raises:
        UsageError: `out` exists, or its directory is not writable.
        SpaceError: no room.
        FormatError: a source changed meanwhile.
    """
    check_output_path(out)
    require_space(out.parent, plan.file_bytes, "the damaged file stays as it is")
    with ExitStack() as stack:
        sources = [stack.enter_context(FileSource(path)) for path in plan.sources]
        for source, expected in zip(sources, plan.source_bytes, strict=True):
            if source.size != expected:
                raise FormatError(f"had {expected:,} bytes when it was planned, now {source.size:,}", path=source.path)
        _require_unchanged(plan, sources)
        file = stack.enter_context(atomic_writer(out))
        os.ftruncate(file.fileno(), plan.file_bytes)
        writer = RangeWriter(file.fileno(), plan.file_bytes, progress)
        writer.write(plan.header, 0)
        for move in plan.moves:
            writer.copy(sources[move.source].fileno(), move.source_offset, move.output_offset, move.length)
        _require_unchanged(plan, sources)


def _require_unchanged(plan: RepairPlan, sources: Sequence[FileSource]) -> None:
    """Raises FormatError when a source is not the file any more that was planned with."""
    if not plan.stamps:
        return
    for source, stamp in zip(sources, plan.stamps, strict=True):
        if FileStamp.of(os.fstat(source.fileno())) != stamp:
            raise FormatError(
                "was changed or replaced since it was looked at; wait until nothing changes it, and run this again",
                path=source.path,
            )


def _plan_joining(paths: tuple[Path, ...], total: int) -> RepairPlan:
    """Raw pieces: one behind the other."""
    sizes = tuple(path.stat().st_size for path in paths)
    moves, offset = [], 0
    for index, size in enumerate(sizes):
        moves.append(Move(index, 0, size, offset))
        offset += size
    return RepairPlan(paths, sizes, f"{len(paths)} raw pieces are joined", b"", tuple(moves), total, 0)


def _plan_separating(source: FileSource, files: Sequence[EmbeddedFile]) -> RepairPlan:
    """A cat of shards: merged as if they were files of their own."""
    for file in files:
        _refuse_lost_bytes(source, file.header)
    shards = [(Shard(f"{source.path}, file at byte {file.base:,}", file.header), file) for file in files]
    if any(shard.split_number(SPLIT_COUNT) in (None, 0) for shard, _ in shards):
        raise ShardError(
            f"{len(files)} GGUF files stand end to end and not all are shards of one model; which one is meant? "
            f"The first is whole: `head -c {files[0].end}` of it is a model by itself",
            path=source.path,
        )
    counts = {shard.split_number(SPLIT_COUNT) for shard, _ in shards}
    count = max(value for value in counts if value is not None)
    numbers = {shard.split_number(SPLIT_NO) for shard, _ in shards}
    missing = [str(n + 1) for n in range(min(count, len(files) + 1)) if n not in numbers]
    if len(files) < count and missing:
        raise ShardError(
            f"holds {len(files)} of {count} shards; number {missing[0]} is missing, and its bytes are nowhere in it",
            path=source.path,
        )
    repeated = [
        n + 1 for n, times in Counter(shard.split_number(SPLIT_NO) or 0 for shard, _ in shards).items() if times > 1
    ]
    if repeated:
        raise ShardError(
            f"shard {repeated[0]} of {count} stands in it more than once; join the shards again, each once",
            path=source.path,
        )
    ordered = sorted(shards, key=lambda pair: pair[0].split_number(SPLIT_NO) or 0)
    plan = plan_merge_of([shard for shard, _ in ordered])
    moves = [Move(0, ordered[c.shard][1].base + c.source_offset, c.length, c.output_offset) for c in plan.copies]
    sorted_already = [file.base for _, file in ordered] == sorted(file.base for _, file in ordered)
    order = "" if sorted_already else ", put in their right order,"
    what = f"{len(files)} shards that were joined with cat{order} become one model"
    return RepairPlan(
        (source.path,), (source.size,), what, plan.header, tuple(moves), plan.file_bytes, len(plan.tensors)
    )


def _plan_rewriting(source: FileSource, file: EmbeddedFile) -> RepairPlan:
    """One file: its tensors one behind the other, and nothing after them."""
    header = file.header
    _refuse_lost_bytes(source, header)
    _refuse_shared_bytes(source, header)
    if has_lone_experts(header.tensors):
        return _plan_stacking(source, header)
    false_shard = is_whole_model(header, source.path)
    displaced = any(layout_problems(header))
    if not displaced and not false_shard:
        extra = source.size - file.end
        if extra <= 0:
            raise UsageError(f"nothing is wrong with the form of {source.path}; `dfqs verify` looks at its bytes")
        move = Move(0, 0, file.end, 0)
        what = f"{extra:,} bytes after the last tensor are cut off"
        return RepairPlan((source.path,), (source.size,), what, b"", (move,), file.end, len(header.tensors))
    keys = merged_keys(header) if false_shard else _raw_keys(header)
    tensors = [Rewritten.of(header, tensor) for tensor in header.tensors]
    what = "its tensors are put one behind the other" if displaced else "split.count is set to 0: it is a whole model"
    return plan_rewriting(source.path, source.size, keys, tensors, header.alignment, what)


def _plan_stacking(source: FileSource, header: Header) -> RepairPlan:
    """A model of the time before experts were stacked."""
    _refuse_shard(source, header)
    tensors = _stacked(source, header)
    lone = sum(len(tensor.spans) for tensor in tensors if len(tensor.spans) > 1)
    made = sum(len(tensor.spans) > 1 for tensor in tensors)
    what = f"{lone:,} tensors of one expert each become {made:,} stacked ones"
    return plan_rewriting(source.path, source.size, _whole_keys(header), tensors, header.alignment, what)


def _plan_translation(source: FileSource, file: EmbeddedFile) -> RepairPlan:
    """A model under another program's names; its form is put in order on the way."""
    header = file.header
    _refuse_lost_bytes(source, header)
    _refuse_shared_bytes(source, header)
    _refuse_shard(source, header)
    lone = has_lone_experts(header.tensors)
    tensors = _stacked(source, header) if lone else [Rewritten.of(header, tensor) for tensor in header.tensors]
    found = translate(header, _whole_keys(header), tensors)
    if found.changes:
        whose = " and ".join(found.dialects)
        what = f"names of {whose} become llama.cpp's" if whose else "keys that llama.cpp needs are told by the tensors"
        path, size, alignment = source.path, source.size, header.alignment
        return plan_rewriting(path, size, found.keys, found.tensors, alignment, what, found.changes)
    try:
        return _plan_rewriting(source, file)
    except UsageError:
        raise AlreadyDone(f"{source.path} is in llama.cpp's words and in order: nothing to do") from None


def _stacked(source: FileSource, header: Header) -> list[Rewritten]:
    experts = header.metadata.integer(f"{header.metadata.text('general.architecture')}.expert_count") or 0
    stacks = stack_experts(header.tensors, experts, source.name)
    return [
        Rewritten(
            stack.name,
            stack.shape,
            stack.type,
            tuple((header.span(part).offset, part.length) for part in stack.parts),
        )
        for stack in stacks
    ]


def _raw_keys(header: Header) -> tuple[RawKeyValue, ...]:
    return tuple(header.raw_entry(entry) for entry in header.entries)


def _whole_keys(header: Header) -> tuple[RawKeyValue, ...]:
    """Without what a shard says of itself."""
    return tuple(key for key in _raw_keys(header) if not key.name.startswith("split."))


def _refuse_shard(source: FileSource, header: Header) -> None:
    shards = header.metadata.integer(SPLIT_COUNT) or 0
    if shards > 1 and not is_whole_model(header, source.path):
        raise UsageError(f"{source.path} is one of {shards} shards; merge them first (`dfqs merge`)")


def _refuse_lost_bytes(source: FileSource, header: Header) -> None:
    lost = list(_where(header, lambda tensor: header.span(tensor).end > header.file_size))
    if lost:
        missing = max(header.span(tensor).end for tensor in lost) - header.file_size
        raise FormatError(
            f"{missing:,} bytes of the model are missing (from {lost[0].name} on); no repair can make them, fetch the "
            "file again",
            path=source.path,
        )


def _refuse_shared_bytes(source: FileSource, header: Header) -> None:
    ordered = sorted((header.span(tensor) for tensor in header.tensors), key=lambda span: span.offset)
    for before, after in itertools.pairwise(ordered):
        if after.offset < before.end:
            raise FormatError(
                f"it claims bytes that {before.name} claims too; which are right cannot be known, fetch the file again",
                path=source.path,
                offset=after.offset,
                name=after.name,
            )


def _where(header: Header, condition: Callable[[TensorInfo], bool]) -> Iterator[TensorInfo]:
    return (tensor for tensor in header.tensors if condition(tensor))
