"""What quantizations wrote, so that the same command after a kill says "done already" and not "exists".

A receipt is written when every output has its name and before the journal goes: by which work, and which files. It lies
in the cache, where no folder that was downloaded can bring one along. Where there is none, nothing is claimed.
"""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs.cache import cache_directory
from dfqs.errors import DfqsError
from dfqs.quantize.execute import Work
from dfqs.records import Record, read_json, write_json

_KEPT = 200
"""Receipts; older ones are dropped."""


class QuantizeReceipt(Record):
    """One quantization that was published."""

    schema_: Literal["dfqs.quantize-receipt/1"] = Field(default="dfqs.quantize-receipt/1", alias="schema")
    fingerprint: str
    """Of everything that decided the bytes, the inputs' times of change included."""
    outputs: list[list[str]]
    """Of each: path, device, inode, bytes, and when it last changed (nanoseconds)."""


def write_receipt(work: Work) -> None:
    """Keep what `work` wrote. Without a cache that can be written nothing is kept."""
    with contextlib.suppress(OSError, DfqsError):
        path = _receipt_path(work)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, QuantizeReceipt(fingerprint=work.fingerprint, outputs=_stamps(work)))
        for old in sorted(path.parent.glob("*.json"), key=lambda found: found.stat().st_mtime_ns)[:-_KEPT]:
            old.unlink(missing_ok=True)


def is_done(work: Work) -> bool:
    """Whether every output is there, and is what this very work wrote."""
    try:
        receipt = read_json(_receipt_path(work), QuantizeReceipt)
        return receipt.fingerprint == work.fingerprint and receipt.outputs == _stamps(work)
    except (OSError, DfqsError):
        return False


def _stamps(work: Work) -> list[list[str]]:
    stamps = []
    for file in work.outputs:
        found = file.path.lstat()
        numbers = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        stamps.append([str(file.path), *map(str, numbers)])
    return stamps


def _receipt_path(work: Work) -> Path:
    name = hashlib.sha256(os.fsencode(work.outputs[0].path)).hexdigest()[:32]
    return cache_directory() / "quantized" / f"{name}.json"
