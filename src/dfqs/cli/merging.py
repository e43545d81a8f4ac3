"""What a merge did, as `dfqs merge` tells it: the values of a `MergeDocument`, for who prints no document.

A merge in place of a small model takes half a second; loading what checks documents would be a fifth of that.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqs.gguf.shard_names import parse_shard_name, shard_paths
from dfqs.inplace import InplacePlan
from dfqs.shards import MergePlan, MergeResult


@dataclass(frozen=True, kw_only=True)
class MergeFacts:
    """The fields of `MergeDocument`, by the same names; of shards, dictionaries. What is not known is None."""

    output: Path
    mode: str | None
    freeing: str | None = None
    dry_run: bool = False
    resumed: bool = False
    aborted: bool = False
    done_already: bool = False
    file_bytes: int | None = None
    tensors: int | None = None
    moved_bytes: int | None = None
    peak_extra_bytes: int | None = None
    resident_shard: str | None = None
    wall_s: float | None = None
    notes: tuple[str, ...] = ()
    shards: tuple[dict[str, Any], ...]
    left: tuple[Path, ...] = ()


def _shard(
    path: Path | str, *, file_bytes: int | None = None, tensors: int | None = None, sha256: str | None = None
) -> dict[str, Any]:
    """The fields of a `MergedShard`."""
    return {"path": path, "file_bytes": file_bytes, "tensors": tensors, "sha256": sha256}


def describe_merge(
    plan: MergePlan, inplace: InplacePlan | None, output: Path, result: MergeResult | None
) -> MergeFacts:
    """A merge that was planned in this run. Without a result it was only planned."""
    hashes = result.shard_sha256 if result else (None,) * len(plan.shards)
    job = inplace.job.job if inplace is not None else None
    return MergeFacts(
        output=output,
        mode=job.mode if job is not None else "plain",
        freeing=job.freeing if job is not None else None,
        dry_run=result is None,
        done_already=result is not None and result.done_already,
        file_bytes=job.file_bytes if job is not None else plan.file_bytes,
        tensors=len(plan.tensors),
        moved_bytes=job.moved_bytes if job is not None else len(plan.header) + plan.copied_bytes,
        peak_extra_bytes=inplace.peak_bytes if inplace is not None else plan.file_bytes,
        resident_shard=plan.shards[job.resident.shard].path.name if job is not None and job.resident else None,
        wall_s=result.wall_s if result else None,
        notes=inplace.notes if inplace is not None else plan.notes,
        shards=tuple(
            _shard(shard.source, file_bytes=shard.header.file_size, tensors=len(shard.tensors), sha256=sha256)
            for shard, sha256 in zip(plan.shards, hashes, strict=True)
        ),
        left=result.left if result else (),
    )


def describe_resumed(first_shard: Path, mode: str, tensors: int, result: MergeResult) -> MergeFacts:
    """A merge that an earlier run planned; its plan is gone with its journal."""
    count = len(result.shard_sha256)
    named = parse_shard_name(first_shard.name) is not None
    paths = shard_paths(first_shard, count) if named else [first_shard] * count
    return MergeFacts(
        output=result.path,
        mode=mode,
        resumed=True,
        done_already=result.done_already,
        file_bytes=result.file_bytes,
        tensors=tensors,
        moved_bytes=result.moved_bytes,
        wall_s=result.wall_s,
        shards=tuple(_shard(path, sha256=sha256) for path, sha256 in zip(paths, result.shard_sha256, strict=True)),
        left=result.left,
    )


def describe_aborted(first_shard: Path, output: Path, mode: str | None) -> MergeFacts:
    """A merge that was undone."""
    name = parse_shard_name(first_shard.name)
    paths = shard_paths(first_shard, name.count) if name is not None else [first_shard]
    return MergeFacts(
        output=output,
        mode=mode,
        aborted=True,
        shards=tuple(map(_shard, paths)),
    )
