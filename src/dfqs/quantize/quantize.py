"""One model to another of a class: read, plan, check, write.

What is refused is refused here, before a byte is written: low-bit input, a missing or foreign importance matrix, a
output that exists, a disk without room. The work itself is `execute`, in a worker process.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqs.errors import AlreadyDone, IntegrityError
from dfqs.integrity.manifest import Manifest, Provenance, SourceFile, check_manifest_place, manifest_of, write_manifest
from dfqs.model.classes import DeploymentClass
from dfqs.model.files import ModelFiles
from dfqs.model.hashes import hash_model
from dfqs.processors import default_threads
from dfqs.progress import Progress, no_progress
from dfqs.quantize.checks import check_experts, check_imatrix, check_input_types
from dfqs.quantize.execute import execute
from dfqs.quantize.journal import KIND
from dfqs.quantize.metadata import ImatrixOrigin, content_hash_slot, result_keys, shard_keys
from dfqs.quantize.plan import PlannedTensor, QuantizationPlan
from dfqs.quantize.recipe import recipe_record
from dfqs.quantize.source import plan_source as plan_source
from dfqs.quantize.source import read_source as read_source
from dfqs.quantize.work import Outcome, OutputFile, TensorWork, Work
from dfqs.receipts import find_receipt, write_receipt
from dfqs.records import sha256_of
from dfqs.runtime import Worker
from dfqs.shards.layout import aligned_keys, check_alignment, lay_out_file, new_shard_paths, publish_shards
from dfqs.storage.atomic import check_output_path, fsync_directory
from dfqs.storage.space import allocated_bytes, require_space

DEFAULT_MEMORY_BYTES = 2_000_000_000


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


def quantize(
    source: Path | ModelFiles,
    out: Path,
    class_: DeploymentClass,
    *,
    imatrix: Path | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int | None = None,
    allow_requantize: bool = False,
    max_shard_bytes: int | None = None,
    align: int | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress = no_progress,
    worker: Worker | None = None,
) -> Quantized:
    """Write `out` as `class_` says. Killed at any moment, the same call goes on where it was.

    Args:
        source: a file, or the first shard.
        out: the file; with `max_shard_bytes` its name without `.gguf` is the prefix of the shards' names.
        memory_bytes: peak of the worker process, whatever the model's size.
        align: of tensors in the result, in bytes; as in the source where nothing is said.
        restart: throw away what an interrupted run left.
        progress: in parameters that change their type.
        worker: one that runs already, with the tables of IQ1 types built (they take seconds).

    Raises:
        AlreadyDone: the same call has ended well before, and nothing changed since.
        UsageError: what was asked for makes no sense; says why.
        FormatError: the source is damaged, or holds weights that are no numbers.
        SpaceError: the disk has no room; what was written so far is kept and used.
    """
    source = read_source(source)
    plan = plan_source(source, class_)
    check_experts(source, class_)
    check_input_types(plan, allow_requantize)
    origin = check_imatrix(plan, source, imatrix)
    work = plan_work(
        source, plan, out, origin, max_shard_bytes, memory_bytes, threads, overwrite, check_alignment(align)
    )
    refuse_older_names(work, restart)
    if restart or not work.journal.exists():
        check_targets(work)
    check_space(work)
    total = plan.parameters_to_quantize

    def report(event: tuple[int, str, bool]) -> None:
        # While it is only looked through what an earlier run did, the end of the work is not told: no rate comes of it.
        progress(event[0], None if event[2] else total, event[1])

    with ExitStack() as stack:
        work = dataclasses.replace(work, restart=restart)
        running = worker if worker is not None else stack.enter_context(quantizing_worker(threads))
        outcome = running.reporting(report).call(execute, work)
    progress(total, total, "reading back")
    manifests = publish(work, source, outcome)
    paths = tuple(file.path for file in work.outputs)
    return Quantized(plan, paths, manifests, sum(file.size for file in work.outputs), origin, outcome)


def quantizing_worker(threads: int | None = None) -> Worker:
    """A worker that only quantizes: nothing for running models is loaded, and no threads of a BLAS wait for work."""
    return Worker(threads=threads, env={"OPENBLAS_NUM_THREADS": "1"}, ready_for=execute.__module__)


def check_targets(work: Work) -> None:
    """What stands where a run that begins anew is going to write.

    Raises:
        AlreadyDone: what the same call made.
        UsageError: something else, and it is not to be overwritten.
    """
    if not work.overwrite and find_receipt(work.fingerprint, [file.path for file in work.outputs]):
        raise AlreadyDone(f"{work.outputs[0].path} exists already, and is what this command made: done already")
    for file in work.outputs:
        check_output_path(file.path, overwrite=work.overwrite)
        check_manifest_place(file.path, overwrite=work.overwrite)


def is_unfinished(out: Path) -> bool:
    """Whether a quantization to `out` was begun and is not over: killed at its end, it may have no manifest yet."""
    return KIND.path_beside(out.absolute()).exists()


def refuse_older_names(work: Work, restart: bool) -> None:
    """Raises UsageError where dfqs 0.1 left a run unfinished, unless it is to be thrown away."""
    hidden = [file.path.with_name(f".{file.path.name}.quantizing") for file in work.outputs]
    names = [hidden[0].with_name(hidden[0].name + ".journal"), *hidden]
    if restart:
        for path in names:
            path.unlink(missing_ok=True)
    KIND.refuse_older(*names)


def publish(work: Work, source: ModelFiles, outcome: Outcome) -> tuple[Path, ...]:
    """Read the outputs back, give them their names, and write a manifest beside each.

    Killed in here, the same command finds the journal complete: it reads back again and names what is left.

    Raises:
        IntegrityError: the disk holds other bytes than were written to it.
        UsageError: an output appeared meanwhile; it is left as it is.
    """
    described = [(file, _read_back(file, source, outcome)) for file in work.outputs]
    whole = [(file.partial, file.path) for file in work.outputs if file.partial.exists()]
    publish_shards(whole, overwrite=work.overwrite)
    manifests = tuple(write_manifest(file.path, manifest, overwrite=work.overwrite) for file, manifest in described)
    write_receipt(work.fingerprint, [file.path for file in work.outputs])
    work.journal.unlink(missing_ok=True)
    fsync_directory(work.journal.parent)
    return manifests


def _read_back(file: OutputFile, source: ModelFiles, outcome: Outcome) -> Manifest:
    shards = [SourceFile(name=shard.path.name, bytes=shard.header.file_size, sha256=None) for shard in source.shards]
    path = file.partial if file.partial.exists() else file.path
    manifest = manifest_of(file.path.name, hash_model(path), Provenance(shards=shards))
    written = {tensor.name: tensor.sha256 for tensor in outcome.tensors}
    for tensor in manifest.tensors:
        if written[tensor.name] != tensor.sha256:
            raise IntegrityError(f"{path}: tensor '{tensor.name}' does not read back as it was written; check the disk")
    return manifest


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
        # The rest of the partial file that an interrupted run left is a hole.
        needed += max(file.size - allocated_bytes(file.partial), 0)
    require_space(work.outputs[0].path.parent, needed, "free some, or write to another disk")


def plan_work(
    source: ModelFiles,
    plan: QuantizationPlan,
    out: Path,
    imatrix: ImatrixOrigin | None,
    max_shard_bytes: int | None,
    memory_bytes: int,
    threads: int | None,
    overwrite: bool,
    align: int | None = None,
) -> Work:
    """Lay out the output files and say for each tensor where its bytes come from and go to.

    Raises:
        UsageError: the output is named like one of the inputs, or is to have too many shards.
    """
    alignment = align or source.header.alignment
    groups = _group_tensors(plan.tensors, max_shard_bytes)
    paths = _output_paths(out, len(groups), max_shard_bytes is not None)
    keys = result_keys(source.header, plan.class_, imatrix)
    outputs: list[OutputFile] = []
    tensors: list[TensorWork] = []
    for index, group in enumerate(groups):
        shapes = [(t.name, t.source.shape, t.type) for t in group]
        own = shard_keys(index, len(groups), len(plan.tensors), source.header) if len(groups) > 1 else []
        whole = (*(keys if index == 0 else []), *own)
        laid = lay_out_file(paths[index], aligned_keys(whole, align) if align else whole, shapes, alignment)
        partial = laid.path.with_name(f"{laid.path.name}.quantizing")
        slot = content_hash_slot(laid.header) if index == 0 else None
        outputs.append(OutputFile(laid.path, partial, laid.header, laid.file_bytes, slot))
        for planned, offset in zip(group, laid.offsets, strict=True):
            tensors.append(_tensor_work(planned, source, index, offset))
    sources = tuple(path.absolute() for path in source.paths)
    inputs = [*sources, *([imatrix.path] if imatrix else [])]
    for file in outputs:
        for path in (file.path, file.partial):
            check_output_path(path, overwrite=True, inputs=inputs)
    return Work(
        sources=sources,
        outputs=tuple(outputs),
        tensors=tuple(tensors),
        imatrix=imatrix.path.absolute() if imatrix else None,
        journal=KIND.path_beside(outputs[0].path),
        fingerprint=_fingerprint(sources, outputs, tensors, plan.class_, imatrix),
        memory_bytes=memory_bytes,
        threads=threads or default_threads(),
        overwrite=overwrite,
    )


def _tensor_work(planned: PlannedTensor, source: ModelFiles, output: int, offset: int) -> TensorWork:
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
    return new_shard_paths(out.absolute().parent, out.name.removesuffix(".gguf"), count)


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
