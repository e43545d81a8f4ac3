"""What `merge`, `split` and `repair` print."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs.records import Document, Record, Text
from dfqs.shards import SplitPlan
from dfqs.shards.rewriting import RepairPlan


class MergedShard(Record):
    """One shard of a merge. What a resumed merge does not know any more is null."""

    path: Text
    file_bytes: int | None
    tensors: int | None
    sha256: str | None
    """Null where its bytes did not pass in this run."""


class MergeDocument(Document):
    """A merge: planned, done, resumed or undone. What is not known is null. Made of `dfqs.cli.merging.MergeFacts`."""

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
