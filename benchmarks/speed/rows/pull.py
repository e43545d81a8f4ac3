"""`dfqs pull` beside `hf download` and curl, from one server on this machine."""

import atexit
import shutil
import subprocess
import sys
from pathlib import Path

from speed.frame import DFQS, Arm, Goal, Place, Row, command
from speed.inputs import total_bytes, warm, write_shards
from speed.machine import version_of

TENSORS, IN_FIRST = 24, 6


def row(place: Place) -> Row:
    """Four shards of 0.86 GB in all."""
    shards = write_shards(place.scratch / "served", TENSORS, IN_FIRST, rows=round(1000 * place.scale))
    warm(shards)
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent.parent / "hub.py"), str(shards[0].parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.kill)
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    target = place.scratch / "target"
    environment = {
        "HF_ENDPOINT": address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(place.scratch / "hf-home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }

    def fresh() -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(place.scratch / "hf-home", ignore_errors=True)
        target.mkdir()

    def arm(*words: str) -> Arm:
        name, role, *line = words
        run = command(line, before=fresh, sync=target, environment=environment)
        return Arm(name, "ours" if role == "ours" else "peer" if role == "peer" else "limit", run)

    pull = (*DFQS, "pull", "owner/model", "--no-cache", "-o", str(target / "model.gguf"))
    urls = [f"{address}/owner/model/resolve/main/{path.name}" for path in shards]
    fetch = " && ".join(f'curl -sf -o "{target}/{path.name}" "{url}"' for path, url in zip(shards, urls, strict=True))
    hash_ = f'openssl dgst -sha256 "{target}"/*.gguf'
    hf = str(Path(sys.executable).parent / "hf")
    arms = (
        arm("dfqs pull", "ours", *pull),
        arm("dfqs pull --no-manifest", "ours", *pull, "--no-manifest"),
        arm("hf download", "peer", hf, "download", "owner/model", "--local-dir", str(target)),
        arm("curl, then SHA-256", "limit", "sh", "-c", f"{fetch} && {hash_}"),
    )
    return Row(
        "pull",
        "Fetching",
        arms,
        base="hf download",
        goals=(
            Goal("dfqs pull", "hf download", "wall", 1 / 1.5),
            Goal("dfqs pull --no-manifest", "hf download", "wall", 1 / 1.5),
            Goal("dfqs pull", "curl, then SHA-256", "cpu", 1.1),
            Goal("dfqs pull --no-manifest", "curl, then SHA-256", "cpu", 1.1),
        ),
        work_bytes=total_bytes(shards),
        conditions=(
            f"Four shards from a server on this machine (`speed/hub.py`), {version_of('huggingface_hub')} over HTTP; "
            "dfqs hashes, merges and syncs; the others leave shards that nobody synced, and hf hashes nothing",
        ),
    )
