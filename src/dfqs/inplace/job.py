"""A merge that consumes its shards, as data: all that is needed to carry it on after a crash.

Pure: made by `dfqs.inplace.plan_resident` and `dfqs.inplace.plan_consume`, kept in the journal, carried out by
`dfqs.inplace.execute`.
"""

import base64
import re
import zlib
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Literal

from dfqs.gguf.shard_names import MAX_SHARDS
from dfqs.shards.plan import Copy
from dfqs.storage.identity import FileStamp

Mode = Literal["in-place", "consume"]
Freeing = Literal["punch", "delete"]
MAX_UNDO_BYTES = 128 << 20
"""Of the header that a merge in place must be able to put back; no model's comes near."""
MAX_COPIES = 1_000_000
_HASH = re.compile(r"[0-9a-f]{64}")
_MAX_BYTES = 1 << 62


class State(IntEnum):
    """How far a job is; later states are larger."""

    BEGUN = 0
    """The job is written down; the shards hold all they held."""
    INSERTED = 1
    """In place only: the gap is open in front of the data that stays."""
    UNDOING = 2
    """In place only: all was put back but the gap, which is being removed."""
    READY = 3
    """The working file has its header (but for the magic) and its size; the shards are still whole."""
    MOVING = 4
    """Bytes up to the recorded position are durable in the working file; shards are being freed behind it."""
    SEALED = 5
    """The working file is whole; names remain to be changed."""


TAIL_BYTES = 4096
"""The end of a shard by which it is known again; freed last."""


@dataclass(frozen=True, slots=True)
class Source:
    """One shard, and what tells that it is still the same file."""

    name: str
    """No directory: shards lie beside the first, wherever the disk is mounted today."""
    bytes: int
    tail_sha256: str
    """Of its last 4,096 bytes."""
    sha256: str | None = None
    """Of the whole file, where that is known beforehand."""
    stamp: FileStamp | None = None
    """As the shard was when the merge began; None in a plan."""


@dataclass(frozen=True, slots=True)
class Resident:
    """The shard whose data stays where it is on disk: its file becomes the output."""

    shard: int
    """Index into the job's sources."""
    insert_at: int
    """Where the gap is inserted, counted in the shard as it was."""
    gap: int
    old_bytes: int
    """Size of the shard as it was."""
    old_head: bytes
    """The shard's first 24 bytes."""
    old_tail: bytes
    """Its header from `insert_at` on. With `old_head`, what must be put back when the merge is undone."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done."""

    mode: Mode
    freeing: Freeing
    """`punch` frees a window at a time, `delete` a whole shard."""
    file_bytes: int
    header_bytes: int
    header_sha256: str
    copies: tuple[Copy, ...]
    """Of all shards but the resident, in order."""
    sources: tuple[Source, ...]
    resident: Resident | None = None

    @property
    def moved_bytes(self) -> int:
        """Bytes that will be written: copies, and the part of the header that is not there yet."""
        inserted = self.resident.insert_at if self.resident else 0
        return sum(copy.length for copy in self.copies) + self.header_bytes - inserted

    def bytes_before(self, copy: int, done: int) -> int:
        """Bytes copied at a position."""
        return sum(c.length for c in self.copies[:copy]) + done

    def is_last_of_shard(self, copy: int) -> bool:
        """Whether no further copy takes from the same shard."""
        return copy + 1 == len(self.copies) or self.copies[copy + 1].shard != self.copies[copy].shard

    def is_first_of_shard(self, copy: int) -> bool:
        return copy == 0 or self.copies[copy - 1].shard != self.copies[copy].shard

    def to_json(self) -> dict[str, Any]:
        """Plain values for the journal."""
        resident = None
        if self.resident is not None:
            resident = asdict(self.resident)
            resident["old_head"] = self.resident.old_head.hex()
            resident["old_tail"] = base64.b64encode(zlib.compress(self.resident.old_tail)).decode()
        return {
            "mode": self.mode,
            "freeing": self.freeing,
            "file_bytes": self.file_bytes,
            "header_bytes": self.header_bytes,
            "header_sha256": self.header_sha256,
            "copies": [[c.shard, c.source_offset, c.length, c.output_offset] for c in self.copies],
            "sources": [asdict(source) for source in self.sources],
            "resident": resident,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Job":
        """Back from the journal.

        Raises:
            KeyError, TypeError, ValueError: it is not of this form.
        """
        if record["mode"] not in ("in-place", "consume") or record["freeing"] not in ("punch", "delete"):
            raise ValueError(f"mode {record['mode']!r:.40}, freeing {record['freeing']!r:.40}")
        sources = tuple(map(_source_from_json, _list(record["sources"], MAX_SHARDS)))
        if not sources:
            raise ValueError("a merge of no shards")
        file_bytes = _count(record["file_bytes"])
        header_bytes = _count(record["header_bytes"], file_bytes)
        resident = None
        if record["resident"] is not None:
            resident = _resident_from_json(record["resident"], sources, header_bytes)
        if (resident is not None) != (record["mode"] == "in-place"):
            raise ValueError(f"mode {record['mode']}, but {'a' if resident else 'no'} shard stays where it is")
        job = cls(
            mode=record["mode"],
            freeing=record["freeing"],
            file_bytes=file_bytes,
            header_bytes=header_bytes,
            header_sha256=_hash(record["header_sha256"]),
            copies=tuple(_copy_from_json(copy, sources) for copy in _list(record["copies"], MAX_COPIES)),
            sources=sources,
            resident=resident,
        )
        _check_copies(job)
        return job


def _check_copies(job: Job) -> None:
    """Copies go through the shards one by one and through the output from its header on, and never overlap."""
    shard, position = -1, job.header_bytes
    for copy in job.copies:
        if copy.shard < shard or copy.output_offset < position or copy.output_end > job.file_bytes:
            raise ValueError(f"a copy to byte {copy.output_offset} that is out of order or beyond the output")
        if job.resident is not None and copy.shard == job.resident.shard:
            raise ValueError("a copy of the shard that stays where it is")
        shard, position = copy.shard, copy.output_end


def _copy_from_json(value: Any, sources: tuple[Source, ...]) -> Copy:
    shard, source_offset, length, output_offset = _list(value, 4)  # a shorter one is a ValueError
    shard = _count(shard, len(sources) - 1)
    if (length := _count(length, sources[shard].bytes)) == 0:
        raise ValueError("a copy of nothing")
    return Copy(shard, _count(source_offset, sources[shard].bytes - length), length, _count(output_offset))


def _source_from_json(value: dict[str, Any]) -> Source:
    name = value["name"]
    if not isinstance(name, str) or "/" in name or "\0" in name or name in ("", ".", ".."):
        raise ValueError("a shard's name with a directory in it, or none")
    sha256, stamp = value["sha256"], value["stamp"]
    return Source(
        name=name,
        bytes=_count(value["bytes"]),
        tail_sha256=_hash(value["tail_sha256"]),
        sha256=None if sha256 is None else _hash(sha256),
        stamp=None if stamp is None else stamp_from_json(stamp),
    )


def stamp_from_json(value: dict[str, Any]) -> FileStamp:
    """Raises KeyError, TypeError, ValueError when it is none."""
    device, inode, size, modified_ns, changed_ns = (
        _whole(value[key]) for key in ("device", "inode", "bytes", "modified_ns", "changed_ns")
    )
    return FileStamp(device, inode, size, modified_ns, changed_ns)


def _resident_from_json(value: dict[str, Any], sources: tuple[Source, ...], header_bytes: int) -> Resident:
    shard = _count(value["shard"], len(sources) - 1)
    head = bytes.fromhex(value["old_head"])
    unpacker = zlib.decompressobj()
    try:
        tail = unpacker.decompress(base64.b64decode(value["old_tail"], validate=True), MAX_UNDO_BYTES)
    except zlib.error as error:
        raise ValueError(f"the shard's header cannot be unpacked ({error})") from None
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("the shard's header is cut short or has something behind it")
    old_bytes = _count(value["old_bytes"])
    insert_at = _count(value["insert_at"], header_bytes)
    if old_bytes != sources[shard].bytes or insert_at + len(tail) > old_bytes or len(head) > old_bytes:
        raise ValueError("a header that is longer than its shard")
    return Resident(shard, insert_at, _count(value["gap"]), old_bytes, head, tail)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r:.40} where a whole number belongs")
    return value


def _count(value: Any, most: int = _MAX_BYTES) -> int:
    if not 0 <= _whole(value) <= most:
        raise ValueError(f"{value!r:.40} is below 0 or above {most}")
    return int(value)


def _hash(value: Any) -> str:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ValueError(f"{value!r:.40} where a SHA-256 belongs")
    return value


def _list(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise TypeError(f"no list of at most {most:,}")
    return value
