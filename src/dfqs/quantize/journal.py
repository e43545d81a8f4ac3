"""What of an unfinished output is already durable, so that a killed run goes on where it was.

The journal is a text file beside the output: one JSON object a line, the first naming the work by a fingerprint of
everything that decides its bytes, each further one a finished tensor with its hashes. A line is written only after
the bytes it speaks of have been synced, and is itself synced; a torn last line is ignored. Each is sealed: the
source's hash cannot be held against anything later, so a damaged line, or one that came with a
download, would put a wrong one into the file.
"""

import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import FormatError, UsageError
from dfqs.records import canonical_json, parse_json, read_bounded
from dfqs.storage.atomic import fsync_directory, storage_errors
from dfqs.storage.seal import is_sealed, make_seal

FORMAT = "dfqs.quantize-journal/1"
MAX_JOURNAL_BYTES = 32 << 20
"""A line takes some 300 bytes; the largest models have some 50,000 tensors."""
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FinishedTensor:
    """A tensor whose bytes are on disk."""

    name: str
    source_sha256: str
    sha256: str


@dataclass(frozen=True, slots=True)
class JournalState:
    """What an earlier run left."""

    finished: dict[str, FinishedTensor]
    complete: bool
    """Whether every output has been synced whole, so that only reading back and renaming are left."""


class Journal:
    """An open journal, which begins with what an earlier run left (`read_journal`).

    Raises:
        SpaceError: the disk is full.
    """

    def __init__(self, path: Path, fingerprint: str, state: JournalState) -> None:
        self.path = path
        self.finished, self.complete = state.finished, state.complete
        # Written anew, not appended to: a torn last line must not swallow the line after it.
        fresh = path.with_name(path.name + ".new")
        with storage_errors(path):
            # Not opened where something lies already: what an interrupted run left, or a pipe that would hang us.
            fresh.unlink(missing_ok=True)
            self._handle = os.open(fresh, _FLAGS, 0o666)
        self._append([{"format": FORMAT, "fingerprint": fingerprint}])
        self.add(list(state.finished.values()))
        if state.complete:
            self.mark_complete()
        fresh.replace(path)
        fsync_directory(path.parent)

    def add(self, tensors: list[FinishedTensor]) -> None:
        """Note tensors whose bytes have been synced."""
        if tensors:
            self._append([_line(t) for t in tensors])

    def mark_complete(self) -> None:
        """Note that all outputs are whole and synced."""
        self._append([_line(FinishedTensor(COMPLETE, "0" * 64, "0" * 64))])

    def _append(self, lines: list[dict[str, str]]) -> None:
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with storage_errors(self.path):
            while data:
                data = data[os.write(self._handle, data) :]
            os.fsync(self._handle)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def remove(self) -> None:
        """Forget it: there is nothing to go on with."""
        self.close()
        self.path.unlink(missing_ok=True)


COMPLETE = "*"
"""Stands for the whole output in place of a tensor's name (no tensor is called so: names are checked by the reader)."""


def read_journal(path: Path, fingerprint: str) -> JournalState:
    """What an earlier run of the same work left; nothing where there was none.

    Raises:
        UsageError: the journal there is of another work, or no regular file.
        FormatError: it is larger than any journal.
    """
    if not os.path.lexists(path):
        return JournalState({}, False)
    lines = io.BytesIO(read_bounded(path, MAX_JOURNAL_BYTES))
    first = lines.readline()
    if not first.endswith(b"\n"):
        return JournalState({}, False)
    head = _object(first)
    if head.get("format") != FORMAT or head.get("fingerprint") != fingerprint:
        raise UsageError(
            f"{path} is of an unfinished run with another input, class, importance matrix or version of dfqs; finish "
            "that run, or delete the journal and the .quantizing files beside it to start over"
        )
    finished = {}
    for line in lines:
        # A torn last line has no end.
        entry = _object(line) if line.endswith(b"\n") else {}
        name, source, out = entry.get("tensor"), entry.get("source_sha256"), entry.get("sha256")
        if not name or not source or not out or not (_HASH.fullmatch(source) and _HASH.fullmatch(out)):
            break
        tensor = FinishedTensor(name, source, out)
        if not is_sealed(FORMAT, _sealed_part(tensor), entry.get("check", "")):
            break
        finished[name] = tensor
    complete = finished.pop(COMPLETE, None) is not None
    return JournalState(finished, complete)


def _line(tensor: FinishedTensor) -> dict[str, str]:
    line = {"tensor": tensor.name, "source_sha256": tensor.source_sha256, "sha256": tensor.sha256}
    return {**line, "check": make_seal(FORMAT, _sealed_part(tensor))}


def _sealed_part(tensor: FinishedTensor) -> bytes:
    return canonical_json([tensor.name, tensor.source_sha256, tensor.sha256])


def _object(line: bytes) -> dict[str, str]:
    try:
        value = parse_json(line)
    except FormatError:
        return {}
    if not isinstance(value, dict):
        return {}
    return {key: item for key, item in value.items() if isinstance(item, str)}
