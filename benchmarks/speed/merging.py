"""What the rows of merging share: shards that are copied before each turn, `cat`, and an fsync in every time."""

import functools
import shutil
from pathlib import Path

from speed.frame import DFQS, Arm, Goal, Place, Row, command, synced_s
from speed.inputs import total_bytes, warm, write_shards


def merging(place: Place, *, name: str, title: str, tensors: int, in_first: int, option: str, at_most: float) -> Row:
    """A merge that uses up its shards, beside `cat` of the same bytes and llama-gguf-split."""
    shards = write_shards(place.scratch / "shards", tensors, in_first, rows=round(1000 * place.scale))
    warm(shards)
    out, copies = place.scratch / "out.gguf", place.scratch / "copies"

    def copy() -> None:
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir()
        for shard in shards:
            shutil.copyfile(shard, copies / shard.name)
        synced_s(copies)
        warm(sorted(copies.iterdir()))

    cat: list[str | Path] = ["sh", "-c", 'out="$1"; shift; exec cat "$@" > "$out"', "cat", out, *shards]
    ours: list[str | Path] = [*DFQS, "merge", copies / shards[0].name, "-o", copies / "out.gguf", option]
    finished = functools.partial(shutil.rmtree, copies)
    arms = [
        Arm("cat", "limit", command(cat, after=out.unlink, sync=out, until_on_disk=True)),
        Arm(
            f"dfqs merge {option}",
            "ours",
            command(ours, before=copy, after=finished, sync=copies / "out.gguf", until_on_disk=True),
        ),
    ]
    if (peer := place.peer("llama-gguf-split")) is not None:
        run = command([peer, "--merge", shards[0], out], after=out.unlink, sync=out, until_on_disk=True)
        arms.append(Arm("llama-gguf-split --merge", "peer", run))
    sizes = " + ".join(f"{shard.stat().st_size / 1e9:.2f}" for shard in shards)
    condition = f"Shards of {sizes} GB in the page cache, output synced in every time"
    goals = (Goal(f"dfqs merge {option}", "cat", "wall", at_most),)
    return Row(name, title, tuple(arms), "cat", goals, total_bytes(shards), (condition,))
