"""One file to shards, byte for byte as `llama-gguf-split --split` makes them (at alignment 32).

The first shard carries the file's keys; each shard carries `split.no`, `split.tensors.count` and `split.count`, in this
order, because that tool writes the count last. At another alignment that tool's shards cannot be read; here later
shards carry `general.alignment` too.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import AlreadyDone, UsageError
from dfqs.gguf import FileSource, Header, TensorInfo, align_up, parse_header, u32
from dfqs.gguf.layout import DEFAULT_ALIGNMENT
from dfqs.gguf.shard import SPLIT_COUNT, SPLIT_KEYS, Shard
from dfqs.gguf.writer import Key
from dfqs.progress import Progress, no_progress
from dfqs.receipts import find_receipt, stamp_record, write_receipt, written_before
from dfqs.records import readable_text, sha256_of
from dfqs.shards.layout import GGUF_SPLIT_ORDER, FileLayout, lay_out_file, new_shard_paths, publish_shards, split_keys
from dfqs.shards.plain_merge import open_unchanged
from dfqs.shards.plan import carried_key
from dfqs.storage.atomic import (
    check_output_path,
    partial_path,
    remove_abandoned_partials,
    storage_errors,
)
from dfqs.storage.copying import RangeWriter
from dfqs.storage.identity import FileStamp, settled_stamp
from dfqs.storage.locks import NoLocks, open_locked
from dfqs.storage.space import require_space
from dfqs.units import format_bytes

DEFAULT_MAX_TENSORS = 128
"""As llama-gguf-split."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard to be written: its header, then these tensors of the model, each padded."""

    file: FileLayout
    tensors: tuple[TensorInfo, ...]
    """As the model's header has them; `offset` counts in the model."""

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def file_bytes(self) -> int:
        return self.file.file_bytes


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """A split that has been checked and can be carried out."""

    model: Path
    header: Header
    shards: tuple[ShardPlan, ...]
    stamp: FileStamp | None = None
    """Which file the model was when its header was read."""

    @property
    def file_bytes(self) -> int:
        """Of all shards."""
        return sum(shard.file_bytes for shard in self.shards)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(shard.path for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the bytes of the shards."""
        model = [readable_text(self.model.absolute()), self.stamp and stamp_record(self.stamp)]
        shards = [[shard.file_bytes, hashlib.sha256(shard.file.header).hexdigest()] for shard in self.shards]
        return sha256_of({"split": model, "shards": shards})


def plan_split(
    model: Path,
    prefix: Path,
    *,
    max_bytes: int | None = None,
    max_tensors: int | None = None,
    no_tensor_first_split: bool = False,
) -> SplitPlan:
    """Decide which tensors go into which shard.

    Args:
        prefix: the shards are named `PREFIX-00001-of-0000N.gguf`.
        max_bytes: of tensors in one shard, headers not counted; a single larger tensor gets a shard of its own.
        max_tensors: in one shard; 128 when neither limit is given.
        no_tensor_first_split: the first shard holds the keys alone.

    Raises:
        UsageError: both limits, a limit that cannot be kept, or a model that is itself a shard.
        FormatError: the model's header lies.
    """
    if max_bytes is not None and max_tensors is not None:
        raise UsageError("give a limit in bytes or in tensors, not both")
    if prefix.is_dir():
        raise UsageError(f"{prefix} is a directory; give a name for the shards in it, like {prefix / Path(model).stem}")
    if max_tensors is not None and max_tensors < 1:
        raise UsageError(f"at most {max_tensors} tensors in a shard makes no sense")
    with FileSource(Path(model)) as source:
        stamp = settled_stamp(source.fileno())
        header = parse_header(source)
    if header.metadata.get(SPLIT_COUNT) not in (None, 0, 1):
        raise UsageError(f"{model} is itself a shard; merge the set first")
    if max_bytes is not None:
        groups = _group_by_bytes(header, max_bytes)
    else:
        groups = _group_by_count(header, max_tensors or DEFAULT_MAX_TENSORS)
    if no_tensor_first_split:
        groups.insert(0, ())
    paths = new_shard_paths(prefix.parent, prefix.name, len(groups))
    shards = (_plan_shard(header, number, paths, tensors) for number, tensors in enumerate(groups))
    return SplitPlan(Path(model), header, tuple(shards), stamp)


def split(plan: SplitPlan, *, progress: Progress = no_progress) -> tuple[Path, ...]:
    """Write all shards, or none: each under a temporary name, then all are renamed, the first shard last.

    Args:
        progress: in bytes of all shards.

    Raises:
        AlreadyDone: the same call has ended well before, and nothing changed since.
        UsageError: a shard's name is taken, or the directory is not writable.
        SpaceError: there is not enough room.
        ShardError: the model was changed or cut short since it was planned.
    """
    paths = plan.paths
    if find_receipt(plan.fingerprint, paths) is not None:
        raise AlreadyDone(f"{paths[0]} exists already, and is what this command made: done already")
    # A run that was killed while it gave them their names had begun with the last.
    ours = written_before(plan.fingerprint, paths)
    for path in paths:
        check_output_path(path, overwrite=path in ours)
    require_space(paths[0].parent, plan.file_bytes, "free some space, or name a prefix on another disk")
    model = Shard(str(plan.model), plan.header, plan.stamp)
    with _alone(paths), _all_or_none(plan, ours) as temporaries, open_unchanged(model) as source:
        done = 0
        for shard, temporary in zip(plan.shards, temporaries, strict=True):
            with storage_errors(shard.path), temporary.open("xb") as file:
                os.ftruncate(file.fileno(), shard.file_bytes)
                name = shard.path.name
                writer = RangeWriter(file.fileno(), plan.file_bytes, progress, done_bytes=done, note=name)
                writer.write(shard.file.header, 0)
                for tensor, offset in zip(shard.tensors, shard.file.offsets, strict=True):
                    writer.copy(source.fileno(), plan.header.span(tensor).offset, offset, tensor.length)
                os.fsync(file.fileno())
            done += shard.file_bytes
        progress(done, plan.file_bytes)
    return paths


def _group_by_count(header: Header, limit: int) -> list[tuple[TensorInfo, ...]]:
    tensors = header.tensors
    return [tensors[start : start + limit] for start in range(0, len(tensors), limit)] or [()]


def _group_by_bytes(header: Header, limit: int) -> list[tuple[TensorInfo, ...]]:
    groups: list[list[TensorInfo]] = [[]]
    size = 0
    for tensor in header.tensors:
        length = align_up(tensor.length, header.alignment)
        if size + length > limit:
            if not groups[-1]:
                raise UsageError(
                    f"the first tensor, {tensor.name}, takes {format_bytes(length)}; shards of {format_bytes(limit)} "
                    "cannot hold it"
                )
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += length
    return [tuple(group) for group in groups]


def _plan_shard(header: Header, number: int, paths: Sequence[Path], tensors: tuple[TensorInfo, ...]) -> ShardPlan:
    keys: list[Key] = []
    if number == 0:
        keys = [carried_key(header, entry) for entry in header.entries if entry.name not in SPLIT_KEYS]
    elif header.alignment != DEFAULT_ALIGNMENT:
        keys = [u32("general.alignment", header.alignment)]
    keys += split_keys(number, len(paths), len(header.tensors), GGUF_SPLIT_ORDER)
    shapes = [(tensor.name, tensor.shape, tensor.type) for tensor in tensors]
    return ShardPlan(lay_out_file(paths[number], keys, shapes, header.alignment), tensors)


@contextlib.contextmanager
def _alone(paths: Sequence[Path]) -> Iterator[None]:
    """Hold a lock that other splits to the same names see, and remove what killed ones left.

    Raises:
        UsageError: another split is writing the same shards.
    """
    busy = f"another dfqs is writing {paths[0]}; wait for it or stop it"
    lock = partial_path(paths[0], "split")
    with storage_errors(paths[0]), contextlib.ExitStack() as stack:
        with contextlib.suppress(NoLocks):
            stack.callback(os.close, open_locked(lock, busy))
        stack.callback(lock.unlink, missing_ok=True)
        for path in paths:
            remove_abandoned_partials(path)
        yield


@contextlib.contextmanager
def _all_or_none(plan: SplitPlan, before: Sequence[Path]) -> Iterator[list[Path]]:
    """Temporary names that become the shards' when the block ends well; nothing is left when it does not.

    Args:
        before: shards that a killed run had named: the same bytes, and replaced.
    """
    paths, tag = plan.paths, secrets.token_hex(4)
    temporaries = [partial_path(path, f"{tag}-{n}") for n, path in enumerate(paths)]
    published: list[Path] = []
    try:
        yield temporaries
        write_receipt(plan.fingerprint, paths, unnamed=temporaries)
        for path in before:
            path.unlink()
        publish_shards(zip(temporaries, paths, strict=True), on_published=published.append)
        write_receipt(plan.fingerprint, paths)
    except BaseException:
        for leftover in (*temporaries, *published):
            leftover.unlink(missing_ok=True)
        raise
