"""What quantizations and measurements wrote, so that the same command after a kill says "done already".

A receipt is written when every output has its name and before the journal goes: by which work, and which files. It lies
in the cache, where no folder that was downloaded can bring one along. Where there is none, nothing is claimed.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs.errors import DfqsError
from dfqs.records import Document, read_json, readable_text, write_json
from dfqs.storage.cache import cache_directory

_KEPT = 200
"""Receipts; older ones are dropped."""


class QuantizeReceipt(Document):
    """One quantization that was published."""

    schema_: Literal["dfqs.quantize-receipt/1"] = Field(default="dfqs.quantize-receipt/1", alias="schema")
    fingerprint: str
    """Of everything that decided the bytes, the inputs' times of change included."""
    outputs: list[list[str]]
    """Of each: path, device, inode, bytes, and when it last changed (nanoseconds)."""


def write_receipt(fingerprint: str, outputs: Sequence[Path]) -> None:
    """Keep which files a work wrote. Without a cache that can be written nothing is kept."""
    with contextlib.suppress(OSError, DfqsError):
        path = _receipt_path(outputs)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, QuantizeReceipt(fingerprint=fingerprint, outputs=_stamps(outputs)), overwrite=True)
        for old in sorted(path.parent.glob("*.json"), key=lambda found: found.stat().st_mtime_ns)[:-_KEPT]:
            old.unlink(missing_ok=True)


def is_done(fingerprint: str, outputs: Sequence[Path]) -> bool:
    """Whether every output is there, and is what this very work wrote."""
    try:
        receipt = read_json(_receipt_path(outputs), QuantizeReceipt)
        return receipt.fingerprint == fingerprint and receipt.outputs == _stamps(outputs)
    except (OSError, DfqsError):
        return False


def _stamps(outputs: Sequence[Path]) -> list[list[str]]:
    stamps = []
    for path in outputs:
        found = path.lstat()
        numbers = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        stamps.append([readable_text(path.absolute()), *map(str, numbers)])
    return stamps


def _receipt_path(outputs: Sequence[Path]) -> Path:
    name = hashlib.sha256(os.fsencode(outputs[0].absolute())).hexdigest()[:32]
    return cache_directory() / "quantized" / f"{name}.json"
