"""Bytes a token from disk, predicted from choices that were traced in memory, and read in fact.

Run: python benchmarks/curve.py MODEL [--shares 0.4,0.6,0.8] [--warm 40] [--tokens 60]

Traces the routing of a fixed sequence in memory; then decodes the same sequence streamed, with the cache that each
share of the file leaves, and paged by the kernel in a control group of that size, and compares bytes. Of random models
`benchmarks/forecast.py make` writes, any with experts will do.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

from dfqs.model.files import open_model
from dfqs.planning.curve import Choices, CurveModel, draw_curve
from dfqs.planning.disk_probe import measure_disk
from dfqs.progress import no_progress
from dfqs.routing.tap import BatchToken, RouterTap, decode_batch
from dfqs.runtime import Worker
from dfqs.runtime.context import Context, Model
from dfqs.runtime.timing import spread_tokens
from dfqs.runtime.worker_context import WorkerContext
from dfqs.streaming.budget import Streamed
from dfqs.streaming.layout import plan_layout
from dfqs.streaming.policy import Pass
from dfqs.streaming.settings import StreamSettings

OTHER_BYTES = 300_000_000
"""Of a paged process in its group: Python, the library and the context."""


def trace(worker: WorkerContext, path: Path, tokens: int) -> list[list[list[int]]]:
    """In the worker: [tokens][layers][used]."""
    found = []
    tap = RouterTap()
    with (
        Model(worker.library, path) as model,
        Context(model, tokens + 8, flash_attention="off", eval_callback=tap.callback) as context,
    ):
        for place, token in enumerate(spread_tokens(model.vocab_size, 0, tokens)):
            batch = [BatchToken(token, place, 0, True)]
            decode_batch(context, batch, tap)
            found.append(tap.take_batch(batch).ids[:, 0].tolist())
    return found


def stream(worker: WorkerContext, path: Path, cache_bytes: int, warm: int, tokens: int) -> float:
    """In the worker: bytes read a token, after `warm` of them."""
    loaded = Streamed((path,), StreamSettings(cache_bytes)).load(worker.library, path, no_progress)
    assert loaded.figures is not None
    before = 0
    with Context(loaded.model, warm + tokens + 8, flash_attention="off") as context:
        for place, token in enumerate(spread_tokens(loaded.model.vocab_size, 0, warm + tokens)):
            if place == warm:
                before = loaded.figures().read_bytes
            context.decode([token], place)
    read = loaded.figures().read_bytes - before
    loaded.close()
    return read / tokens


def page(worker: WorkerContext, path: Path, warm: int, tokens: int) -> float:
    """In the worker, in a control group: bytes that the disk gave for a token."""
    before = 0
    with (
        Model(worker.library, path, load_mode="mmap", repack=False) as model,
        Context(model, warm + tokens + 8, flash_attention="off") as context,
    ):
        for place, token in enumerate(spread_tokens(model.vocab_size, 0, warm + tokens)):
            if place == warm:
                before = read_bytes()
            context.decode([token], place)
    return (read_bytes() - before) / tokens


def read_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def forget(path: Path) -> None:
    """Put a file out of the page cache: what is there already is charged to no group, and never read again."""
    handle = os.open(path, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def in_group(limit: int, arguments: list[str]) -> str:
    """Run this script again with everything of it in a control group (version 1)."""
    group = Path("/sys/fs/cgroup/memory/dfqs-curve")
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(str(limit))
    command = f"echo $$ > {group}/cgroup.procs; exec {sys.executable} {' '.join(arguments)}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    group.rmdir()
    return done.stdout


def compare(path: Path, shares: list[float], warm: int, tokens: int) -> None:
    own = importlib.import_module(Path(__file__).stem)
    model = open_model(path)
    layout = plan_layout(model.headers)
    sizes = {key: pages.length for key, pages in layout.experts.items()}
    layers = tuple(sorted({layer for layer, _ in sizes}))
    with Worker(2, env={"PYTHONPATH": str(Path(__file__).parent)}) as worker:
        ids = worker.call(own.trace, path, warm + tokens)
    passes: list[Pass] = [list(zip(layers, token, strict=True)) for token in ids]
    choices = Choices(tuple(passes), "traced", model.spec.experts, layers, model.spec.experts_used)
    disk = measure_disk(path, max(pages.ranges[0].length for pages in layout.experts.values()), 2)
    curve = CurveModel(sizes, layout.resident_bytes, OTHER_BYTES, model.file_bytes, 0.1)
    print("| share | streamed: forecast, read | error | paged: forecast, read | error |\n|---|---|---|---|---|")
    for share in shares:
        limit = int(model.file_bytes * share) + OTHER_BYTES
        point = draw_curve(curve, choices, disk, [limit], warm=warm)[0]
        with Worker(2, env={"PYTHONPATH": str(Path(__file__).parent)}) as worker:
            read = worker.call(own.stream, path, point.cache_bytes or 0, warm, tokens)
        forget(path)
        paged = json.loads(
            in_group(limit, [__file__, str(path), "--paged", "--warm", str(warm), "--tokens", str(tokens)])
        )
        told, told_paged = point.streamed_bytes_per_token or 0, point.paged_bytes_per_token or 0
        print(
            f"| {share:.0%} | {told / 1e6:.1f}, {read / 1e6:.1f} MB | {told / read - 1:+.1%} "
            f"| {told_paged / 1e6:.1f}, {paged / 1e6:.1f} MB | {told_paged / max(paged, 1) - 1:+.1%} |",
            flush=True,
        )
    print(f"read-ahead {disk.read_ahead_bytes}, {disk.paged.read_per_wanted:.2f} bytes read for each wanted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--shares", default="0.4,0.6,0.8")
    parser.add_argument("--warm", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--paged", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.paged:
        own = importlib.import_module(Path(__file__).stem)
        with Worker(2, env={"PYTHONPATH": str(Path(__file__).parent)}) as worker:
            print(json.dumps(worker.call(own.page, asked.model, asked.warm, asked.tokens)))
        return
    compare(asked.model, [float(word) for word in asked.shares.split(",")], asked.warm, asked.tokens)


if __name__ == "__main__":
    main()
