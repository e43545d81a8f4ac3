"""What work wrote, so that the same command after a kill says "done already" and not "exists".

A receipt says by which work (a fingerprint of all that decided the bytes) and which files, each with its stamp. It is
written when they are whole, before they get their names, and again when they have them. It lies in the cache, where no
folder that was downloaded can bring one along. Where there is none, nothing is claimed: headers and sizes that agree do
not make the bytes agree.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs.errors import DfqsError
from dfqs.records import Document, Record, Text, read_json, write_json
from dfqs.storage.atomic import OnWhole
from dfqs.storage.cache import cache_directory
from dfqs.storage.identity import FileStamp

_KEPT = 500
"""Receipts; older ones are dropped."""


class WrittenFile(Record):
    """One file that was written: `FileStamp`, stored."""

    path: Text
    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int | None
    """Null before it had its name: getting it is a change."""

    def is_still(self, path: Path) -> bool:
        """Whether the file of that name is this one, with the bytes that it had."""
        try:
            found = _written(path, path)
        except OSError:
            return False
        return self == (found if self.changed_ns is not None else found.model_copy(update={"changed_ns": None}))


class Receipt(Document):
    """What one piece of work wrote, or was about to publish."""

    schema_: Literal["dfqs.receipt/1"] = Field(default="dfqs.receipt/1", alias="schema")
    fingerprint: str
    """Of everything that decided the bytes, its inputs' stamps included."""
    outputs: tuple[WrittenFile, ...]
    source_sha256: tuple[str | None, ...]
    """Of the inputs, where the work hashed them."""


def write_receipt(
    fingerprint: str,
    outputs: Sequence[Path],
    *,
    unnamed: Sequence[Path | int] | None = None,
    source_sha256: Sequence[str | None] = (),
) -> None:
    """Keep which files a work wrote. Without a cache that can be written nothing is kept.

    Args:
        unnamed: where the outputs are that do not have their names yet, by another name or an open handle.
    """
    with contextlib.suppress(OSError, DfqsError):
        written = [_written(path, place) for path, place in zip(outputs, unnamed or outputs, strict=True)]
        if unnamed is not None:
            written = [file.model_copy(update={"changed_ns": None}) for file in written]
        receipt = Receipt(fingerprint=fingerprint, outputs=tuple(written), source_sha256=tuple(source_sha256))
        path = _receipt_path(outputs)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, receipt, overwrite=True)
        for old in sorted(path.parent.glob("*.json"), key=lambda found: found.stat().st_mtime_ns)[:-_KEPT]:
            old.unlink(missing_ok=True)


@contextlib.contextmanager
def receipt_of(fingerprint: str, output: Path, source_sha256: Sequence[str | None] = ()) -> Iterator[OnWhole]:
    """Keeps the receipt of one file that is written in the block: what is given is told when it is whole."""
    keep = partial(write_receipt, fingerprint, [output], source_sha256=source_sha256)
    yield lambda handle: keep(unnamed=[handle])
    keep()


def find_receipt(fingerprint: str, outputs: Sequence[Path]) -> Receipt | None:
    """The receipt of this very work, if every output is there still as it wrote it."""
    receipt = _read(fingerprint, outputs)
    return receipt if receipt is not None and len(written_before(fingerprint, outputs)) == len(outputs) else None


def written_before(fingerprint: str, outputs: Sequence[Path]) -> list[Path]:
    """Those of the outputs that are there as this very work wrote them: one that was killed had named them."""
    receipt = _read(fingerprint, outputs)
    written = receipt.outputs if receipt is not None else ()
    return [path for path, file in zip(outputs, written, strict=False) if file.is_still(path)]


def stamp_record(stamp: FileStamp) -> dict[str, int]:
    """A stamp as it is stored: without the device, which a restart can number anew."""
    return {name: value for name, value in asdict(stamp).items() if name != "device"}


def _read(fingerprint: str, outputs: Sequence[Path]) -> Receipt | None:
    with contextlib.suppress(OSError, DfqsError):
        receipt = read_json(_receipt_path(outputs), Receipt)
        if receipt.fingerprint == fingerprint and len(receipt.outputs) == len(outputs):
            return receipt
    return None


def _written(path: Path, place: Path | int) -> WrittenFile:
    # A link's own stamp is no written file's.
    state = os.fstat(place) if isinstance(place, int) else place.lstat()
    return WrittenFile(path=path.absolute(), **stamp_record(FileStamp.of(state)))


def _receipt_path(outputs: Sequence[Path]) -> Path:
    name = hashlib.sha256(os.fsencode(outputs[0].absolute())).hexdigest()[:32]
    return cache_directory() / "receipts" / f"{name}.json"
