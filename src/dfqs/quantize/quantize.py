"""One model to another of a class: read, plan, check, write.

What is refused is refused here, before a byte is written: low-bit input, a missing or foreign importance matrix, a
target that exists, a disk without room. The work itself is `execute`, in a worker process.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqs.classes import DeploymentClass
from dfqs.errors import FormatError, IntegrityError, SpaceError, UsageError
from dfqs.gguf.kinds import require_model
from dfqs.gguf.layout import TensorInfo, align_up, place_tensors
from dfqs.gguf.reader import Header
from dfqs.gguf.writer import encode_header
from dfqs.integrity.hashes import hash_file, hash_model
from dfqs.integrity.manifest import Manifest, Provenance, SourceFile, check_manifest_place, manifest_of, write_manifest
from dfqs.model import Role, tensor_layer
from dfqs.progress import Progress, no_progress
from dfqs.quantize.execute import Outcome, OutputFile, TensorWork, Work
from dfqs.quantize.imatrix_file import ALL_ZERO, ImatrixFile
from dfqs.quantize.metadata import ImatrixOrigin, content_hash_slot, result_keys, split_keys
from dfqs.quantize.plan import PlannedTensor, QuantizationPlan, plan_quantization
from dfqs.quantize.recipe import recipe_record
from dfqs.records import sha256_of
from dfqs.runtime import Worker
from dfqs.shards.belonging import belonging_problems
from dfqs.shards.names import ShardName
from dfqs.shards.shard import read_model_shards
from dfqs.storage import check_writable_target, fsync_directory, publish_file
from dfqs.units import format_bytes

DEFAULT_MEMORY_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Source:
    """The model to be quantized: one file, or all its shards."""

    headers: tuple[Header, ...]

    @property
    def first(self) -> Header:
        return self.headers[0]

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return {tensor.name: tensor for header in self.headers for tensor in header.tensors}


@dataclass(frozen=True, slots=True)
class Quantized:
    """What was made."""

    plan: QuantizationPlan
    paths: tuple[Path, ...]
    manifests: tuple[Path, ...]
    """One for each of `paths`."""
    file_bytes: int
    imatrix: ImatrixOrigin | None
    outcome: Outcome


def read_source(path: Path) -> Source:
    """Headers of a model, given its file or its first shard.

    Raises:
        FormatError: a header lies, a shard is missing or of another model.
        UsageError: the file is missing, a later shard was given, or it is a GGUF of another kind than a model.
    """
    shards = read_model_shards(path)
    require_model(shards[0].header)
    if len(shards) > 1:
        for problem in belonging_problems(shards):
            raise problem
    return Source(tuple(shard.header for shard in shards))


def plan_source(source: Source, class_: DeploymentClass) -> QuantizationPlan:
    """What each tensor of `source` becomes."""
    return plan_quantization([header.tensors for header in source.headers], class_)


def quantize(
    source_path: Path,
    out: Path,
    class_: DeploymentClass,
    *,
    imatrix: Path | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int | None = None,
    allow_requantize: bool = False,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
    worker: Worker | None = None,
) -> Quantized:
    """Write `out` as `class_` says. Killed at any moment, the same call goes on where it was.

    Args:
        source_path: a file, or the first shard.
        out: the file; with `max_shard_bytes` its name without `.gguf` is the prefix of the shards' names.
        memory_bytes: peak of the worker process, whatever the model's size.
        progress: in parameters that change their type.
        worker: one that runs already, with the tables of IQ1 types built (they take seconds).

    Raises:
        UsageError: what was asked for makes no sense; says why.
        FormatError: the source is damaged, or holds weights that are no numbers.
        SpaceError: the disk has no room; what was written so far is kept and used.
    """
    source = read_source(source_path)
    plan = plan_source(source, class_)
    check_input_types(plan, allow_requantize)
    origin = check_imatrix(plan, source, imatrix)
    work = plan_work(source, plan, out, origin, max_shard_bytes, memory_bytes, threads, overwrite)
    for file in work.outputs:
        if not work.journal.exists():
            check_writable_target(file.path, overwrite=overwrite)
            check_manifest_place(file.path, overwrite=overwrite)
    check_space(work)
    total = plan.parameters_to_quantize

    def report(event: tuple[int, str]) -> None:
        progress(event[0], total, event[1])

    with ExitStack() as stack:
        running = worker if worker is not None else stack.enter_context(Worker(threads=threads))
        outcome: Outcome = running.call("dfqs.quantize.execute:execute", work, on_event=report)
    progress(total, total, "reading back")
    manifests = publish(work, source, outcome)
    paths = tuple(file.path for file in work.outputs)
    return Quantized(plan, paths, manifests, sum(file.size for file in work.outputs), origin, outcome)


def publish(work: Work, source: Source, outcome: Outcome) -> tuple[Path, ...]:
    """Read the outputs back, give them their names, and write a manifest beside each.

    Killed in here, the same command finds the journal complete: it reads back again and names what is left.

    Raises:
        IntegrityError: the disk holds other bytes than were written to it.
        UsageError: a target appeared meanwhile; it is left as it is.
    """
    described = [(file, _read_back(file, source, outcome)) for file in work.outputs]
    for file in work.outputs:
        if file.partial.exists():
            publish_file(file.partial, file.path, overwrite=work.overwrite)
    targets = tuple(write_manifest(file.path, manifest, overwrite=work.overwrite) for file, manifest in described)
    work.journal.unlink(missing_ok=True)
    fsync_directory(work.journal.parent)
    return targets


def _read_back(file: OutputFile, source: Source, outcome: Outcome) -> Manifest:
    shards = [
        SourceFile(name=Path(header.source_name).name, bytes=header.file_size, sha256=None) for header in source.headers
    ]
    path = file.partial if file.partial.exists() else file.path
    manifest = manifest_of(file.path.name, hash_model(path), Provenance(shards=shards))
    written = {tensor.name: tensor.sha256 for tensor in outcome.tensors}
    for tensor in manifest.tensors:
        if written[tensor.name] != tensor.sha256:
            raise IntegrityError(f"{path}: tensor '{tensor.name}' does not read back as it was written; check the disk")
    return manifest


def check_input_types(plan: QuantizationPlan, allow_requantize: bool) -> None:
    """Refuse to make a model from what has already lost its detail.

    Raises:
        UsageError: tensors below Q8_0 would be converted, and `allow_requantize` is false.
    """
    low = plan.requantized
    if low and not allow_requantize:
        types = ", ".join(sorted({t.source.type.name for t in low}))
        raise UsageError(
            f"{len(low)} tensors are already quantized ({types}; the first is '{low[0].name}'), and doing it again "
            "costs more quality than the class says; start from F16, BF16 or Q8_0, or add --allow-requantize"
        )


def check_imatrix(plan: QuantizationPlan, source: Source, path: Path | None) -> ImatrixOrigin | None:
    """Make sure that the importance matrix is this model's, and is there where it is needed.

    Raises:
        UsageError: types that need one are asked for, and there is none for some tensor; or nothing in it is of this
            model.
        FormatError: the file is damaged, or made from a model of other shapes.
    """
    needing = plan.needing_importance
    if path is None:
        if needing:
            raise UsageError(
                f"{needing[0].type.name} needs an importance matrix ({len(needing)} tensors, the first is "
                f"'{needing[0].name}'); make one with `dfqs imatrix`, and give it with --imatrix"
            )
        return None
    tensors = source.tensors
    with ImatrixFile(path) as file:
        known = set(file.names)
        if not known & set(tensors):
            raise UsageError(f"{path} is of another model: none of its {len(known)} weights is in this one")
        for name in sorted(known & set(tensors)):
            file.groups(name, tensors[name].shape)
        missing = [t for t in needing if t.name not in known]
        if missing:
            raise UsageError(
                f"{path} says nothing about {len(missing)} tensors that become {_types(missing)}, the first is "
                f"'{missing[0].name}'; measure it on this model with `dfqs imatrix`"
            )
        unseen, silent = _find_silence(plan, file, known)
        empty = [t for t in needing if t.name in silent]
        if empty:
            raise UsageError(
                f"{path} has nothing but zeroes for {len(empty)} tensors that become {_types(empty)}, the first is "
                f"'{empty[0].name}'; measure it again with `dfqs imatrix`"
            )
        datasets = file.datasets
        return ImatrixOrigin(
            path=path,
            sha256=hash_file(path),
            dataset=datasets[0] if datasets else None,
            entries=len(known),
            chunks=file.chunks,
            unseen_experts=unseen,
            silent_weights=len(silent),
        )


def _find_silence(plan: QuantizationPlan, file: ImatrixFile, known: set[str]) -> tuple[int, set[str]]:
    """(layer, expert) pairs without importance, counted, and tensors of which no part has any.

    Raises:
        FormatError: no tensor has any.
    """
    unseen: set[tuple[int | None, int]] = set()
    silent: set[str] = set()
    converted = [t for t in plan.tensors if not t.is_copied and t.name in known]
    for tensor in converted:
        groups = file.silent(tensor.name, tensor.source.shape)
        if len(groups) == file.groups(tensor.name, tensor.source.shape):
            silent.add(tensor.name)
        if tensor.role is Role.ROUTED_EXPERT:
            unseen |= {(tensor_layer(tensor.name), expert) for expert in groups}
    if converted and len(silent) == len(converted):
        raise FormatError(ALL_ZERO, path=file.path)
    return len(unseen), silent


def check_space(work: Work) -> None:
    """Refuse before hours of work what the disk cannot hold.

    Raises:
        SpaceError: less is free than the outputs still need.
    """
    needed = 0
    for file in work.outputs:
        if work.journal.exists() and file.path.exists() and not file.partial.exists():
            # An interrupted run had it whole, and named it.
            continue
        # What an interrupted run wrote is counted by blocks: the rest of the partial file is a hole.
        written = file.partial.stat().st_blocks * 512 if file.partial.exists() else 0
        needed += max(file.size - written, 0)
    directory = work.outputs[0].path.parent
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise SpaceError(
            f"{directory} has {format_bytes(free)} free, {format_bytes(needed)} are needed; free some, or write to "
            "another disk"
        )


def plan_work(
    source: Source,
    plan: QuantizationPlan,
    out: Path,
    imatrix: ImatrixOrigin | None,
    max_shard_bytes: int | None,
    memory_bytes: int,
    threads: int | None,
    overwrite: bool,
) -> Work:
    """Lay out the output files and say for each tensor where its bytes come from and go to.

    Raises:
        UsageError: the output is named like one of the inputs, or is to have too many shards.
    """
    alignment = source.first.alignment
    groups = _group_tensors(plan.tensors, max_shard_bytes)
    paths = _output_paths(out, len(groups), max_shard_bytes is not None)
    keys = result_keys(source.first, plan.class_, imatrix)
    outputs: list[OutputFile] = []
    tensors: list[TensorWork] = []
    for index, group in enumerate(groups):
        shapes = [(t.name, t.source.shape, t.type) for t in group]
        shard_keys = split_keys(index, len(groups), len(plan.tensors), source.first) if len(groups) > 1 else []
        header = encode_header([*(keys if index == 0 else []), *shard_keys], shapes, alignment=alignment)
        places = list(place_tensors(shapes, alignment))
        size = len(header) + (align_up(places[-1].offset + places[-1].length, alignment) if places else 0)
        partial = paths[index].with_name(f".{paths[index].name}.quantizing")
        outputs.append(
            OutputFile(paths[index], partial, header, size, content_hash_slot(header) if index == 0 else None)
        )
        for planned, place in zip(group, places, strict=True):
            tensors.append(_tensor_work(planned, source, index, len(header) + place.offset))
    sources = tuple(Path(header.source_name).absolute() for header in source.headers)
    inputs = [*sources, *([imatrix.path] if imatrix else [])]
    for file in outputs:
        for path in (file.path, file.partial):
            check_writable_target(path, overwrite=True, inputs=inputs)
    return Work(
        sources=sources,
        outputs=tuple(outputs),
        tensors=tuple(tensors),
        imatrix=imatrix.path.absolute() if imatrix else None,
        journal=outputs[0].partial.with_name(outputs[0].partial.name + ".journal"),
        fingerprint=_fingerprint(sources, outputs, tensors, plan.class_, imatrix),
        memory_bytes=memory_bytes,
        threads=threads or len(os.sched_getaffinity(0)),
        overwrite=overwrite,
    )


def _tensor_work(planned: PlannedTensor, source: Source, output: int, offset: int) -> TensorWork:
    header = source.headers[planned.shard]
    return TensorWork(
        name=planned.name,
        shape=planned.source.shape,
        source=planned.shard,
        source_type=planned.source.type,
        source_offset=header.span(planned.source).offset,
        type=planned.type,
        output=output,
        offset=offset,
    )


def _group_tensors(tensors: Sequence[PlannedTensor], limit: int | None) -> list[list[PlannedTensor]]:
    """Tensors of each output file: in order, as many as fit below `limit` bytes of tensor data, at least one."""
    if limit is None:
        return [list(tensors)]
    groups: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.length > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.length
    return groups


def _output_paths(out: Path, count: int, sharded: bool) -> list[Path]:
    # Of one shard llama.cpp's own splitter makes a plain file too.
    if not sharded or count == 1:
        return [out.absolute()]
    if count > 65535:
        raise UsageError(f"{count:,} shards; a set has at most 65,535: allow larger ones")
    prefix = out.name.removesuffix(".gguf")
    return [out.absolute().with_name(str(ShardName(prefix, number, count))) for number in range(1, count + 1)]


def _fingerprint(
    sources: Sequence[Path],
    outputs: Sequence[OutputFile],
    tensors: Sequence[TensorWork],
    class_: DeploymentClass,
    imatrix: ImatrixOrigin | None,
) -> str:
    """Hash of everything that decides the bytes written: two runs with the same one may continue each other."""
    inputs: list[list[Any]] = []
    for path in sources:
        status = path.stat()
        inputs.append([str(path), status.st_size, status.st_mtime_ns])
    return sha256_of(
        {
            "recipe": recipe_record(class_),
            "sources": inputs,
            "imatrix": imatrix.sha256 if imatrix else None,
            "outputs": [[str(o.path), o.size, hashlib.sha256(o.header).hexdigest()] for o in outputs],
            "tensors": [[t.name, list(t.shape), t.source_type.name, t.source_offset, t.type.name] for t in tensors],
        }
    )


def _types(tensors: Sequence[PlannedTensor]) -> str:
    return ", ".join(sorted({t.type.name for t in tensors}))
