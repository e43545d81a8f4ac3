"""The journal of work that can be interrupted: what it belongs to, and how far it is.

One file, a line for each record (`dfqs.storage.lines`). The first record is the header: the schema, and the fingerprint
of what the journal belongs to; later ones say what is done. A record counts when its line is whole. One that was torn
by a loss of power is the last, and is ignored; the next one is written over it.

What is damaged in the middle is refused, unless every record is a claim that is checked before it counts: then it and
what follows are cut off, and done again. See docs/decisions/journal.md.
"""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqs.errors import FormatError, IntegrityError, SpaceError, UsageError, printable
from dfqs.storage.disk import Disk, DiskFile, LocalDisk, LocalFile
from dfqs.storage.files import open_to_read
from dfqs.storage.lines import (
    decode_line,
    encode_line,
    encode_plain,
    is_torn_first,
    is_whole,
    is_whole_plain,
    read_lines,
    schema_of,
)
from dfqs.storage.seal import Sealer, key_path

_WAIT_STEP_S = 0.05
_HEAD_BYTES = 4096
_ZEROES = 32
"""At the beginning of a file: its first block did not reach the disk."""

Take = Callable[[int, dict[str, Any]], bool]
"""Takes records in, the header as number 0; False for one that no work of this kind writes."""


@dataclass(frozen=True, slots=True)
class JournalKind:
    """What journals of one kind of work have in common."""

    schema: str
    work: str
    """One word, for sentences: "merge"."""
    busy: str
    """Said when another process has the journal open."""
    give_up: str
    """How a user goes on without what the journal knows."""
    limit_bytes: int
    """A journal that is larger was not written here."""
    line_bytes: int
    purpose: str | None = None
    """Of the seals; None: records are not sealed."""
    is_claims: bool = False
    """Every record is checked against what it speaks of before it counts, and costs only work when it is lost."""
    is_plain: bool = False
    """Lines are JSON alone, all of them records: what the journal belongs to stands in a file beside it."""
    reserved_bytes: int = 0
    """Room for records behind the header, taken when the journal is made, so that a full disk cannot stop it."""

    def sealer(self) -> Sealer | None:
        """For the records of one journal; None where they are not sealed."""
        return None if self.purpose is None else Sealer(self.purpose)

    def path_beside(self, out: Path) -> Path:
        """Where the journal of work on `out` lies: `dfqs.merge-journal/3` is the schema of `OUT.merge-journal`."""
        return out.with_name(f"{out.name}.{self.schema.removeprefix('dfqs.').partition('/')[0]}")

    def refuse_older(self, *names: Path) -> None:
        """Raises UsageError where what dfqs 0.1 left, which called it otherwise, would be passed over."""
        for path in names:
            if os.path.lexists(path):
                raise UsageError(
                    f"{path} was left by an unfinished {self.work} of dfqs 0.1; finish with that version, or "
                    f"{self.give_up}"
                )


class Journal:
    """A journal of this process: open and locked until `close`."""

    def __init__(self, disk: Disk, path: Path, kind: JournalKind, file: DiskFile) -> None:
        self.path = path
        self.kind = kind
        self._disk = disk
        self._file = file
        self._end = 0
        self._seal = ""
        self._sealer = kind.sealer()
        self._durable = True
        self._closed = False
        self._appending = threading.Lock()

    @classmethod
    def create(cls, disk: Disk, path: Path, kind: JournalKind) -> "Journal":
        """Make an empty one, which counts from `begin` on.

        Raises:
            FileExistsError: there is something of that name.
            UsageError: another process came between making and locking it, and takes it away.
        """
        file = disk.create(path)
        if not file.lock() or disk.identify(path) is None:
            # It is not ours to touch.
            file.close()
            raise UsageError(f"{kind.busy} ({path} is locked); run this again when it is done")
        return cls(disk, path, kind, file)

    @classmethod
    def open(cls, disk: Disk, path: Path, kind: JournalKind, *, wait_s: float = 0.0) -> "Journal | None":
        """Open and lock what is there; None where nothing is.

        Args:
            wait_s: how long another process may keep the lock: one that was killed lets it go when its last write ends.

        Raises:
            UsageError: another process has it; it is a link or no regular file.
        """
        deadline = time.monotonic() + wait_s
        while True:
            found = disk.identify(path)
            if found is None:
                return None
            if not found.is_regular or (found.links > 1 and not kind.is_plain):
                raise UsageError(f"{path} is a link or no regular file, so it was not left by a {kind.work}; remove it")
            try:
                file = disk.open(path)
            except FileNotFoundError:
                continue
            if file.lock():
                named = disk.identify(path)
                if named is not None and named.inode == file.identify().inode:
                    return cls(disk, path, kind, file)
                # Work that ended between opening and locking took its journal away.
                file.close()
                continue
            file.close()
            if time.monotonic() >= deadline:
                raise UsageError(f"{kind.busy} ({path} is locked); wait for it or stop it")
            time.sleep(_WAIT_STEP_S)

    @classmethod
    def open_or_create(cls, disk: Disk, path: Path, kind: JournalKind, *, wait_s: float = 0.0) -> "Journal":
        """Open and lock what is there, or an empty one. Raises as `open`."""
        while True:
            with contextlib.suppress(FileExistsError):
                # Else another process came between.
                return cls.open(disk, path, kind, wait_s=wait_s) or cls.create(disk, path, kind)

    def begin(self, header: dict[str, Any], *, fingerprint: str | None = None) -> None:
        """Write the header, and forget what was there; from here on the journal counts. Durable when this returns.

        Args:
            fingerprint: of what it belongs to; None: the header itself is all of that.

        Raises:
            UsageError: the header is larger than can be read again; a file of somebody's has the journal's name.
            SpaceError: the disk is full.
        """
        named = {} if fingerprint is None else {"fingerprint": fingerprint}
        line, seal = self._encode({"schema": self.kind.schema, **named, **header}, "")
        if self._file.size():
            self._require_ours()
            self._file.truncate(0)
        self._write(0, line + bytes(self.kind.reserved_bytes), durable=True)
        self._disk.sync_directory(self.path.parent)
        self._end, self._seal = len(line), seal

    def read(self, take: Take, *, fingerprint: str | None = None, trusted: bool = False) -> bool:
        """Have `take` look at every record that counts; False where not even a header does: begin it.

        Args:
            fingerprint: what the journal must belong to; None: `take` judges by the header.
            trusted: the user vouches for records without a seal of ours.

        Raises:
            UsageError: it belongs to other work, or is no journal.
            IntegrityError: it is damaged, of another version, or not of this user and machine.
            FormatError: it is larger than any journal.
        """
        number = self._scan(take, fingerprint, trusted=trusted)
        if number == 0 and not self.kind.is_plain:
            self._require_ours()
        elif not self.kind.reserved_bytes and self._file.size() > self._end:
            self._file.truncate(self._end)
        return number > 0

    def _scan(self, take: Take, fingerprint: str | None, *, trusted: bool) -> int:
        """How many records count."""
        kind, number = self.kind, 0
        if self._file.size() > kind.limit_bytes:
            raise FormatError(
                f"larger than the {kind.limit_bytes:,} bytes that a journal of a {kind.work} can have", path=self.path
            )
        lines = read_lines(self._file, kind.limit_bytes, kind.line_bytes)
        for offset, line in lines:
            if not line and not kind.is_claims:
                message = f"a line of more than {kind.line_bytes:,} bytes, which no {kind.work} writes"
                raise FormatError(message, path=self.path, offset=offset)
            if not self._is_whole(line):
                self._refuse_damage(offset, line, (after for _, after in lines))
                break
            seal = self._accept(number, line, take, fingerprint, trusted=trusted)
            if seal is None:
                break
            self._end, self._seal, number = offset + len(line), seal, number + 1
        return number

    def _is_whole(self, line: bytes) -> bool:
        return is_whole_plain(line) if self.kind.is_plain else is_whole(line)

    def append(self, record: dict[str, Any], *, durable: bool = True) -> None:
        """Write a record. Safe to call from several threads.

        Args:
            durable: when false, a killed process leaves it, and a loss of power may not.

        Raises:
            SpaceError: the disk is full; what was written before is whole, and this record does not count.
        """
        with self._appending:
            line, seal = self._encode(record, self._seal)
            if not self._durable and not self.kind.is_claims:
                # Only the last record can be torn: damage before it is no power loss's.
                self._write(self._end, b"", durable=True)
            self._write(self._end, line, durable=durable)
            self._end, self._seal, self._durable = self._end + len(line), seal, durable

    def sync(self) -> None:
        """Make all records durable."""
        with self._appending:
            self._file.sync()
            self._durable = True

    def owner(self) -> int:
        """The number of the user whose file it is."""
        return self._file.identify().owner

    def close(self) -> None:
        """Let another process have it. Safe to repeat."""
        if not self._closed:
            self._closed = True
            self._file.close()

    def remove(self) -> None:
        """The work is over, one way or the other."""
        self._disk.unlink(self.path)
        self._disk.sync_directory(self.path.parent)
        self.close()

    def _encode(self, record: dict[str, Any], seal_before: str) -> tuple[bytes, str]:
        if self.kind.is_plain:
            line, seal = encode_plain(record), ""
        else:
            line, seal = encode_line(record, seal_before, sealer=self._sealer)
        if len(line) > self.kind.line_bytes:
            raise UsageError(f"{self.path} would hold more than can be read again, a record of {len(line):,} bytes")
        return line, seal

    def _write(self, offset: int, data: bytes, *, durable: bool) -> None:
        try:
            if data:
                self._file.write_at(offset, data)
            if durable:
                self._file.sync()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise SpaceError(f"no room for {self.path}; free some space and run the same command again") from error

    def _accept(self, number: int, line: bytes, take: Take, fingerprint: str | None, *, trusted: bool) -> str | None:
        """The seal of a record that counts; None for one that is to be cut off, with what follows it."""
        kind = self.kind
        try:
            record, seal, text = decode_line(
                line, self.path, kind.work, sealed=self._sealer is not None, plain=kind.is_plain
            )
        except IntegrityError:
            if kind.is_claims and number:
                return None
            raise
        if number == 0 and not kind.is_plain:
            self._require_same(line, record, fingerprint)
        sealer = None if trusted else self._sealer
        if sealer is not None and not sealer.is_sealed(self._seal.encode() + text, seal):
            if kind.is_claims:
                return None
            raise IntegrityError(
                f"{self.path} was not written by this user's dfqs on this machine. {self.how_to_go_on()}"
            )
        if take(number, record):
            return seal
        if kind.is_claims:
            return None
        raise IntegrityError(f"{self.path}: record {number} makes no sense")

    def how_to_go_on(self) -> str:
        """What to do with a journal that is not ours by its seal."""
        return (
            f"If it came with the folder, delete {self.path.name}. If you began this {self.kind.work} yourself (and "
            f"its key, {key_path()}, is gone), give --trust-journal"
        )

    def _require_same(self, line: bytes, header: dict[str, Any], fingerprint: str | None) -> None:
        self._refuse_other_version(line)
        if fingerprint is not None and header.get("fingerprint") != fingerprint:
            origin = header.get("origin")
            which = f" ({printable(str(origin), 300)})" if origin is not None else ""
            raise UsageError(
                f"{self.path} is of another {self.kind.work}{which}; finish that one, or {self.kind.give_up}"
            )

    def _refuse_other_version(self, line: bytes) -> None:
        found = schema_of(line)
        if found == self.kind.schema:
            return
        if found is None:
            raise UsageError(f"{self.path} is in the way and is no journal of a {self.kind.work}; move it away")
        raise IntegrityError(
            f"{self.path} has the format {found}, and this version of dfqs reads {self.kind.schema}: another version "
            f"left it. Finish with that version, or {self.kind.give_up}"
        )

    def _refuse_damage(self, offset: int, line: bytes, after: Iterator[bytes]) -> None:
        """A line that is not whole: a torn one at the end, or damage."""
        if offset == 0 and not self.kind.is_plain and schema_of(line) is not None:
            self._refuse_other_version(line)
        if self.kind.is_claims or not any(map(self._is_whole, after)):
            return
        if self.kind.is_plain:
            raise FormatError("damaged; nothing is changed by it", path=self.path, offset=offset)
        raise IntegrityError(f"{self.path} is damaged at byte {offset:,}; nothing is changed by it")

    def _require_ours(self) -> None:
        """Raises where something else than an unfinished work's journal would be cut to nothing."""
        if self.kind.is_claims:
            head = self._file.read_at(0, _HEAD_BYTES)
            if not is_torn_first(head) and any(head[:_ZEROES]) and schema_of(head) is None:
                raise UsageError(f"{self.path} is in the way and is no journal of a {self.kind.work}; move it away")
        elif not is_torn_first(self._file.read_at(0, self.kind.limit_bytes)):
            raise IntegrityError(
                f"{self.path} is damaged, or no journal of a {self.kind.work}; look at it and remove it"
            )


def read_header(disk: Disk, path: Path, kind: JournalKind) -> dict[str, Any] | None:
    """The header of a journal that may be another process's, if it is of this kind, whole and sealed by us."""
    found = disk.identify(path)
    if found is None or not found.is_regular:
        return None
    sealer = kind.sealer()
    file = disk.open(path)
    try:
        _, line = next(read_lines(file, kind.limit_bytes, kind.line_bytes), (0, b""))
        if not is_whole(line) or schema_of(line) != kind.schema:
            return None
        record, seal, text = decode_line(line, path, kind.work, sealed=sealer is not None)
    finally:
        file.close()
    return record if sealer is None or sealer.is_sealed(text, seal) else None


def read_unlocked(path: Path, kind: JournalKind, take: Take) -> int:
    """Have `take` look at every record that counts of a file that is only read; how many bytes those are.

    Raises:
        IntegrityError, FormatError, UsageError: as `Journal.read`.
    """
    file = LocalFile(open_to_read(path))
    try:
        journal = Journal(LocalDisk(), path, kind, file)
        journal._scan(take, None, trusted=False)
        return journal._end
    finally:
        file.close()
