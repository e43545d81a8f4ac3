"""`dfqs verify` against a manifest: reading and hashing, and a start."""

import sys

from speed.frame import DFQS, Arm, Goal, Place, Row, command
from speed.inputs import total_bytes, warm, write_model

HASH = """
import hashlib, sys, threading
def run():
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 18))
    with open(sys.argv[1], "rb", buffering=0) as file:
        while got := file.readinto(buffer):
            digest.update(buffer[:got])
both = [threading.Thread(target=run) for _ in range(2)]
for each in both: each.start()
for each in both: each.join()
"""
"""The file's hash and its tensors' are of different bytes: two hashes, each on a core."""


def row(place: Place) -> Row:
    """0.84 GB, its manifest beside it."""
    model = write_model(place.scratch / "model.gguf", 24, rows=round(1000 * place.scale))
    warm([model])
    manifest = place.scratch / "model.gguf.manifest.json"
    command([*DFQS, "manifest", model, "-o", manifest])()
    arms = (
        Arm("two SHA-256 side by side", "limit", command([sys.executable, "-c", HASH, model])),
        Arm("dfqs verify --manifest", "ours", command([*DFQS, "verify", model, "--manifest", manifest])),
    )
    goals = (Goal("dfqs verify --manifest", "two SHA-256 side by side", "wall", 1.0, 0.12),)
    return Row("verify", "Verifying", arms, arms[0].name, goals, total_bytes([model]))
