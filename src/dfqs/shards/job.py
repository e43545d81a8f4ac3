"""A merge that consumes its shards, as data: all that is needed to carry it on after a crash.

Pure: made by `dfqs.shards.inplace` and `dfqs.shards.consume`, kept in the journal, carried out by
`dfqs.shards.execute`.
"""

import base64
import zlib
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Literal

from dfqs.shards.plan import Copy

Mode = Literal["in-place", "consume"]
Freeing = Literal["punch", "delete"]
MAX_UNDO_BYTES = 256 << 20


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
    """One shard, and what tells that it is still the same file. (Not its inode: some file systems make those up.)"""

    name: str
    """No directory: shards lie beside the first, wherever the disk is mounted today."""
    bytes: int
    tail_sha256: str
    """Of its last 4,096 bytes."""


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
            "copies": [[c.shard, c.source_offset, c.length, c.target_offset] for c in self.copies],
            "sources": [asdict(source) for source in self.sources],
            "resident": resident,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Job":
        """Back from the journal.

        Raises:
            KeyError, TypeError, ValueError: it is not of this form.
        """
        resident = record["resident"]
        if resident is not None:
            tail = zlib.decompressobj().decompress(base64.b64decode(resident["old_tail"]), MAX_UNDO_BYTES)
            resident = Resident(**{**resident, "old_head": bytes.fromhex(resident["old_head"]), "old_tail": tail})
        if record["mode"] not in ("in-place", "consume") or record["freeing"] not in ("punch", "delete"):
            raise ValueError(f"mode {record['mode']!r}, freeing {record['freeing']!r}")
        sources = tuple(Source(**source) for source in record["sources"])
        if any("/" in source.name or source.name in ("", ".", "..") for source in sources):
            raise ValueError("a shard's name with a directory in it")
        return cls(
            mode=record["mode"],
            freeing=record["freeing"],
            file_bytes=int(record["file_bytes"]),
            header_bytes=int(record["header_bytes"]),
            header_sha256=str(record["header_sha256"]),
            copies=tuple(Copy(*map(int, copy)) for copy in record["copies"]),
            sources=sources,
            resident=resident,
        )
