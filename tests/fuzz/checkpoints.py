"""An unfinished measurement of importance as a target: its journal, of a stranger and sealed by this user's own key."""

import hashlib
import json
import random
from pathlib import Path

from dfqs.quantize.checkpoint import KIND, Checkpoint, checkpoint_path
from dfqs.quantize.imatrix_file import read_imatrix
from dfqs.storage.seal import Sealer
from fuzz import documents
from fuzz.mutate import mutate_lines

FINGERPRINT = "f" * 64
STRANGER = "0" * 32


def imatrix_journal(scratch: Path) -> bytes:
    """The JSON of a journal of two checkpoints; the second is the file that lies there."""
    sums = hashlib.sha256(documents.imatrix(scratch)).hexdigest()
    lines = [
        {"schema": KIND.schema, "fingerprint": FINGERPRINT},
        {"checkpoint": "a" * 64, "chunks": 1, "tokens": 512},
        {"checkpoint": sums, "chunks": 2, "tokens": 1024},
    ]
    return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)


def mutate_imatrix_journal(rng: random.Random, data: bytes) -> bytes:
    """Half of them sealed by ourselves, one seal over the other, so that the records themselves are judged."""
    return seal_all(mutate_lines(rng, data), ours=rng.random() < 0.5)


def seal_all(data: bytes, *, ours: bool = True) -> bytes:
    """Every line with a checksum and a seal."""
    out, seal, sealer = b"", "", Sealer("imatrix-journal")
    for text in data.split(b"\n"):
        if text:
            seal = sealer.make_seal(seal.encode() + text) if ours else STRANGER
            rest = seal.encode() + b" " + text
            out += hashlib.sha256(rest).hexdigest()[:16].encode() + b" " + rest + b"\n"
    return out


def read_imatrix_journal(data: bytes, scratch: Path) -> None:
    """Gone on with. Sums come back only with a number of chunks that a record of ours gives for these very sums."""
    out = scratch / "m.imatrix"
    if data.startswith(b"{"):
        data = seal_all(data)
    checkpoint_path(out).write_bytes((scratch.parent / "base.imatrix").read_bytes())
    KIND.path_beside(out).write_bytes(data)
    with Checkpoint(out, FINGERPRINT) as checkpoint:
        matrix, chunks = checkpoint.read()
    assert matrix is not None, "sums that are there were not seen"
    assert f" {STRANGER} ".encode() not in data, "a stranger's journal was believed"
    assert type(chunks) is int and chunks >= 0 and type(matrix.tokens) is int and matrix.tokens >= 0
    assert matrix.entries.keys() == read_imatrix(checkpoint_path(out)).entries.keys()
