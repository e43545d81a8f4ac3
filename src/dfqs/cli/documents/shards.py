"""What `merge`, `split` and `repair` print."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs.gguf.shard_names import parse_shard_name, shard_paths
from dfqs.inplace import InplacePlan
from dfqs.records import Document, Record, Text
from dfqs.shards import MergePlan, MergeResult, SplitPlan
from dfqs.shards.rewriting import RepairPlan


class MergedShard(Record):
    """One shard of a merge. What a resumed merge does not know any more is null."""

    path: Text
    file_bytes: int | None
    tensors: int | None
    sha256: str | None
    """Null where its bytes did not pass in this run."""


class MergeDocument(Document):
    """A merge: planned, done, resumed or undone. What is not known is null."""

    schema_: Literal["dfqs.merge/1"] = Field(default="dfqs.merge/1", alias="schema")
    output: Text
    mode: Literal["plain", "in-place", "consume"] | None
    """What becomes of the shards: kept (plain) or used up."""
    freeing: str | None
    """How their room is given back while they are copied."""
    dry_run: bool
    resumed: bool
    """An earlier run began it."""
    aborted: bool
    """The shards are as they were before."""
    done_already: bool
    file_bytes: int | None
    tensors: int | None
    moved_bytes: int | None
    """Bytes written: the header, and what is copied."""
    peak_extra_bytes: int | None
    """Disk space beyond what the shards take, at most."""
    resident_shard: Text | None
    """The shard that becomes the output."""
    wall_s: float | None
    notes: tuple[Text, ...]
    """What is odd but legal, a sentence each."""
    shards: tuple[MergedShard, ...]
    left: tuple[Text, ...]
    """Files with the name of a used-up shard that somebody put there meanwhile."""

    @classmethod
    def of(
        cls, plan: MergePlan, inplace: InplacePlan | None, output: Path, result: MergeResult | None
    ) -> "MergeDocument":
        """A merge that was planned in this run. Without a result it was only planned."""
        hashes = result.shard_sha256 if result else (None,) * len(plan.shards)
        job = inplace.job.job if inplace is not None else None
        return cls(
            output=output,
            mode=job.mode if job is not None else "plain",
            freeing=job.freeing if job is not None else None,
            dry_run=result is None,
            resumed=False,
            aborted=False,
            done_already=result is not None and result.done_already,
            file_bytes=job.file_bytes if job is not None else plan.file_bytes,
            tensors=len(plan.tensors),
            moved_bytes=job.moved_bytes if job is not None else len(plan.header) + plan.copied_bytes,
            peak_extra_bytes=inplace.peak_bytes if inplace is not None else plan.file_bytes,
            resident_shard=plan.shards[job.resident.shard].path.name if job is not None and job.resident else None,
            wall_s=result.wall_s if result else None,
            notes=inplace.notes if inplace is not None else plan.notes,
            shards=tuple(
                MergedShard(
                    path=shard.source, file_bytes=shard.header.file_size, tensors=len(shard.tensors), sha256=sha256
                )
                for shard, sha256 in zip(plan.shards, hashes, strict=True)
            ),
            left=result.left if result else (),
        )

    @classmethod
    def resumed_of(cls, first_shard: Path, mode: str, tensors: int, result: MergeResult) -> "MergeDocument":
        """A merge that an earlier run planned; its plan is gone with its journal."""
        count = len(result.shard_sha256)
        named = parse_shard_name(first_shard.name) is not None
        paths = shard_paths(first_shard, count) if named else [first_shard] * count
        return cls(
            output=result.path,
            mode=mode,
            freeing=None,
            dry_run=False,
            resumed=True,
            aborted=False,
            done_already=result.done_already,
            file_bytes=result.file_bytes,
            tensors=tensors,
            moved_bytes=result.moved_bytes,
            peak_extra_bytes=None,
            resident_shard=None,
            wall_s=result.wall_s,
            notes=(),
            shards=tuple(
                MergedShard(path=path, file_bytes=None, tensors=None, sha256=sha256)
                for path, sha256 in zip(paths, result.shard_sha256, strict=True)
            ),
            left=result.left,
        )

    @classmethod
    def aborted_of(cls, first_shard: Path, output: Path, mode: str | None) -> "MergeDocument":
        """A merge that was undone."""
        name = parse_shard_name(first_shard.name)
        paths = shard_paths(first_shard, name.count) if name is not None else [first_shard]
        return cls(
            output=output,
            mode=mode,
            freeing=None,
            dry_run=False,
            resumed=False,
            aborted=True,
            done_already=False,
            file_bytes=None,
            tensors=None,
            moved_bytes=None,
            peak_extra_bytes=None,
            resident_shard=None,
            wall_s=None,
            notes=(),
            shards=tuple(MergedShard(path=path, file_bytes=None, tensors=None, sha256=None) for path in paths),
            left=(),
        )


class SplitShard(Record):
    """One shard of a split."""

    path: Text
    tensors: int
    header_bytes: int
    file_bytes: int


class SplitDocument(Document):
    """A split, planned or done."""

    schema_: Literal["dfqs.split/1"] = Field(default="dfqs.split/1", alias="schema")
    model: Text
    dry_run: bool
    done_already: bool = False
    """An earlier run of the same command wrote them."""
    file_bytes: int
    """Of all shards together."""
    shards: tuple[SplitShard, ...]

    @classmethod
    def of(cls, plan: SplitPlan, *, dry_run: bool, done_already: bool = False) -> "SplitDocument":
        """What was planned, and whether it was done."""
        return cls(
            model=plan.model,
            dry_run=dry_run,
            done_already=done_already,
            file_bytes=plan.file_bytes,
            shards=tuple(
                SplitShard(
                    path=shard.path,
                    tensors=len(shard.tensors),
                    header_bytes=len(shard.file.header),
                    file_bytes=shard.file_bytes,
                )
                for shard in plan.shards
            ),
        )


class RepairDocument(Document):
    """A repair, planned or done."""

    schema_: Literal["dfqs.repair/1"] = Field(default="dfqs.repair/1", alias="schema")
    sources: tuple[Text, ...]
    output: Text | None
    """Null where there is nothing to do."""
    dry_run: bool
    done_already: bool = False
    """It is as it should be: nothing is written."""
    fixed: Text
    """What is wrong with the sources and was fixed, in words."""
    changes: tuple[Text, ...] = ()
    """Of `--dialect`: each key and tensor name that becomes another, and each key that was derived, with how."""
    runtime: Text | None = None
    """The runtime that loads what it becomes, asked before anything is written; null: not asked."""
    file_bytes: int
    tensors: int | None
    left: tuple[Text, ...] | None
    """What is still to be seen to; null before it is written."""

    @classmethod
    def of(cls, plan: RepairPlan, output: Path, left: list[str] | None, runtime: str | None) -> "RepairDocument":
        """What was planned, and what is left of it."""
        return cls(
            sources=plan.sources,
            output=output,
            dry_run=left is None,
            fixed=plan.what,
            changes=plan.changes,
            runtime=runtime,
            file_bytes=plan.file_bytes,
            tensors=plan.tensors or None,
            left=left,
        )
