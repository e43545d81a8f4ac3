"""What of an unfinished output is already durable, so that a killed run goes on where it was.

A `dfqs.storage.journal` beside the output: its fingerprint is of everything that decides the output's bytes, each
record is a finished tensor with its hashes. A record is written only after the bytes it speaks of have been synced, and
those are read back before it is believed. Each is sealed: the source's hash cannot be held against anything later, so a
damaged line, or one that came with a download, would put a wrong one into the file.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqs.storage.atomic import storage_errors
from dfqs.storage.disk import Disk, LocalDisk
from dfqs.storage.journal import Journal as StoredJournal
from dfqs.storage.journal import JournalKind

MAX_JOURNAL_BYTES = 32 << 20
"""A line takes some 300 bytes; the largest models have some 50,000 tensors."""
KIND = JournalKind(
    schema="dfqs.quantize-journal/2",
    work="quantization",
    busy="another process is writing this output",
    give_up="give --restart to throw away what it wrote",
    limit_bytes=MAX_JOURNAL_BYTES,
    line_bytes=1 << 20,
    purpose="quantize-journal",
    is_claims=True,
)
LOCK_WAIT_S = 2.0
"""The worker of a killed run dies with its caller, but not before its last write to the disk has ended."""
_HASH = re.compile(r"[0-9a-f]{64}")
_COMPLETE = {"complete": True}


@dataclass(frozen=True, slots=True)
class FinishedTensor:
    """A tensor whose bytes are on disk."""

    name: str
    source_sha256: str
    sha256: str


class Journal:
    """The journal of one output, open and locked, with what an earlier run left.

    Args:
        restart: forget what an earlier run left.

    Raises:
        UsageError: it is of other work, another process has it, or it is no regular file.
        IntegrityError: another version of dfqs left it.
        FormatError: it is larger than any journal.
        SpaceError: the disk is full.
    """

    def __init__(self, path: Path, fingerprint: str, *, restart: bool = False, disk: Disk | None = None) -> None:
        self.path = path
        self.finished: dict[str, FinishedTensor] = {}
        self.complete = False
        """Whether every output has been synced whole, so that only reading back and renaming are left."""
        self.is_new = False
        """Whether there was nothing to go on with."""
        disk = disk or LocalDisk()
        with storage_errors(path):
            self._journal = StoredJournal.open_or_create(disk, path, KIND, wait_s=LOCK_WAIT_S)
            try:
                if restart or not self._journal.read(self._take, fingerprint=fingerprint):
                    self.is_new = True
                    self._journal.begin({}, fingerprint=fingerprint)
            except BaseException:
                self._journal.close()
                raise

    def add(self, tensors: list[FinishedTensor]) -> None:
        """Note tensors whose bytes have been synced."""
        for tensor in tensors:
            line = {"tensor": tensor.name, "source_sha256": tensor.source_sha256, "sha256": tensor.sha256}
            self._journal.append(line, durable=False)
        if tensors:
            self._journal.sync()

    def mark_complete(self) -> None:
        """Note that all outputs are whole and synced."""
        self._journal.append(_COMPLETE)

    def close(self) -> None:
        """Let another process have it. Safe to repeat."""
        self._journal.close()

    def remove(self) -> None:
        """Forget it: there is nothing to go on with."""
        self._journal.remove()

    def _take(self, number: int, record: dict[str, Any]) -> bool:
        if number == 0:
            return True
        if record == _COMPLETE:
            self.complete = True
            return True
        name, source, out = record.get("tensor"), record.get("source_sha256"), record.get("sha256")
        if not (isinstance(name, str) and isinstance(source, str) and isinstance(out, str)):
            return False
        if not (_HASH.fullmatch(source) and _HASH.fullmatch(out)):
            return False
        self.finished[name] = FinishedTensor(name, source, out)
        return True
