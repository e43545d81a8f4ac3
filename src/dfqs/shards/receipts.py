"""What plain merges wrote, so that the same command after a kill says "done already" and not "exists".

A receipt is written just before the output gets its name: which file it is, and of which shards. It lies in the cache,
where no folder that was downloaded can bring one along. Where there is none, nothing is claimed: headers and sizes that
agree do not make the bytes agree.
"""

import contextlib
import hashlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs.errors import DfqsError
from dfqs.gguf import FileSource
from dfqs.records import Document, Record, read_json, readable_text, write_json
from dfqs.shards.plan import MergePlan
from dfqs.storage.cache import cache_directory
from dfqs.storage.identity import FileStamp

_KEPT = 200
"""Receipts; older ones are dropped."""


class Stamp(Record):
    """`FileStamp`, stored."""

    device: int
    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int | None


class Receipt(Document):
    """One merge that was about to be published, or was."""

    schema_: Literal["dfqs.merge-receipt/1"] = Field(default="dfqs.merge-receipt/1", alias="schema")
    output: str
    output_stamp: Stamp
    header_sha256: str
    shards: list[str]
    shard_stamps: list[Stamp]
    shard_sha256: list[str | None]


def write_receipt(
    plan: MergePlan, out: Path, stamp: FileStamp, shard_sha256: list[str | None], *, named: bool = False
) -> None:
    """Keep what a merge wrote. Without a cache that can be written nothing is kept.

    Args:
        named: the output has its name, so that its time of change stays.
    """
    output = Stamp(**{**asdict(stamp), "changed_ns": stamp.changed_ns if named else None})
    stamps = [shard.stamp for shard in plan.shards if shard.stamp is not None]
    receipt = Receipt(
        output=readable_text(out.absolute()),
        output_stamp=output,
        header_sha256=hashlib.sha256(plan.header).hexdigest(),
        shards=[readable_text(shard.path.absolute()) for shard in plan.shards],
        shard_stamps=[Stamp(**asdict(found)) for found in stamps],
        shard_sha256=shard_sha256,
    )
    with contextlib.suppress(OSError, DfqsError):
        path = _receipt_path(out)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, receipt, overwrite=True)
        for old in sorted(path.parent.glob("*.json"), key=lambda found: found.stat().st_mtime_ns)[:-_KEPT]:
            old.unlink(missing_ok=True)


def find_receipt(plan: MergePlan, out: Path) -> Receipt | None:
    """The receipt of a merge of exactly these shards, if `out` is still the file that it wrote."""
    try:
        receipt = read_json(_receipt_path(out), Receipt)
        with FileSource(out) as source:
            found = FileStamp.of(os.fstat(source.fileno()))
            header = source.read_at(0, len(plan.header))
    except (OSError, DfqsError):
        return None
    stamps = [shard.stamp for shard in plan.shards if shard.stamp is not None]
    same = (
        receipt.output == readable_text(out.absolute())
        and receipt.shards == [readable_text(shard.path.absolute()) for shard in plan.shards]
        and [_as_stamp(stamp, 0) for stamp in receipt.shard_stamps] == stamps
        and _as_stamp(receipt.output_stamp, found.changed_ns) == found
        and header == plan.header
        and receipt.header_sha256 == hashlib.sha256(plan.header).hexdigest()
    )
    return receipt if same and not out.is_symlink() else None


def _as_stamp(stored: Stamp, changed_ns: int) -> FileStamp:
    """A stored stamp; `changed_ns` where that was not known yet."""
    known = stored.changed_ns if stored.changed_ns is not None else changed_ns
    return FileStamp(stored.device, stored.inode, stored.bytes, stored.modified_ns, known)


def _receipt_path(out: Path) -> Path:
    name = hashlib.sha256(os.fsencode(out.absolute())).hexdigest()[:32]
    return cache_directory() / "merges" / f"{name}.json"
