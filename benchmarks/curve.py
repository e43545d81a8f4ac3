"""Bytes a token from disk and tokens a second, predicted from choices that were traced in memory, and what they were.

Run: python benchmarks/curve.py MODEL [--shares 0.25,0.4,0.6,0.8] [--warm 40] [--tokens 60]

Traces the routing of a fixed sequence in memory, and times it; then decodes the same sequence streamed, with the cache
that each share of the file leaves, and paged by the kernel in a control group of that size. The disk is measured before
each share, with `read_ahead_kb` at 128. Of random models `benchmarks/forecast.py make` and
`benchmarks/streaming.py --keep` write, any with experts will do.
"""

import argparse
import importlib
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from dfqs.model.files import open_model
from dfqs.planning.calibration import WAIT_POLICY
from dfqs.planning.curve import Choices, CurveModel, draw_curve
from dfqs.planning.disk_probe import measure_disk
from dfqs.planning.speed import Rate
from dfqs.progress import no_progress
from dfqs.routing.tap import BatchToken, RouterTap, decode_batch
from dfqs.runtime import Worker
from dfqs.runtime.context import Context, Model
from dfqs.runtime.timing import spread_tokens, time_decode
from dfqs.runtime.worker_context import WorkerContext
from dfqs.streaming.budget import Streamed
from dfqs.streaming.layout import plan_layout
from dfqs.streaming.lookahead import plan_guess_room
from dfqs.streaming.policy import Pass
from dfqs.streaming.settings import StreamSettings
from streaming import READ_AHEAD_KB, read_ahead

ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parent)}
TIMED_TOKENS = 96
"""Some seconds: a shared processor is fast or slow for shorter than that."""
OTHER_BYTES = 100_000_000
"""Of a paged run in its group beside pages of the file: two processes of Python and the context (libraries' pages that
others have read are not charged)."""


def trace(worker: WorkerContext, path: Path, tokens: int) -> tuple[list[list[list[int]]], float]:
    """In the worker: [tokens][layers][used], and seconds of a token."""
    found = []
    tap = RouterTap()
    with (
        Model(worker.library, path, repack=False) as model,
        Context(model, tokens + 8, flash_attention="off", eval_callback=tap.callback) as context,
        Context(model, tokens + 8, flash_attention="off") as unwatched,
    ):
        for place, token in enumerate(spread_tokens(model.vocab_size, 0, tokens)):
            batch = [BatchToken(token, place, 0, True)]
            decode_batch(context, batch, tap)
            found.append(tap.take_batch(batch).ids[:, 0].tolist())
        seconds = statistics.fmean(time_decode(unwatched, 0, min(TIMED_TOKENS, tokens)))
    return found, seconds


def stream(worker: WorkerContext, path: Path, cache_bytes: int, warm: int, tokens: int) -> dict[str, float]:
    """In the worker: bytes read a token, after `warm` of them, and tokens a second."""
    loaded = Streamed((path,), StreamSettings(cache_bytes)).load(worker.library, path, no_progress)
    assert loaded.figures is not None
    before, started = loaded.figures(), 0.0
    with Context(loaded.model, warm + tokens + 8, flash_attention="off") as context:
        for place, token in enumerate(spread_tokens(loaded.model.vocab_size, 0, warm + tokens)):
            if place == warm:
                before = loaded.figures()
                started = time.perf_counter()
            context.decode([token], place)
        seconds = time.perf_counter() - started
    after = loaded.figures()
    loaded.close()
    read, used = after.read_bytes - before.read_bytes, (after.ahead_bytes or 0) - (before.ahead_bytes or 0)
    unused = (after.unused_bytes or 0) - (before.unused_bytes or 0)
    return {"bytes": read / tokens, "rate": tokens / seconds, "ahead": used / tokens, "unused": unused / tokens}


def page(worker: WorkerContext, path: Path, warm: int, tokens: int) -> dict[str, float]:
    """In the worker, in a control group: bytes that the disk gave for a token, and tokens a second."""
    before, started = 0, 0.0
    with (
        Model(worker.library, path, load_mode="mmap", repack=False) as model,
        Context(model, warm + tokens + 8, flash_attention="off") as context,
    ):
        for place, token in enumerate(spread_tokens(model.vocab_size, 0, warm + tokens)):
            if place == warm:
                before, started = read_bytes(), time.perf_counter()
            context.decode([token], place)
        seconds = time.perf_counter() - started
    return {"bytes": (read_bytes() - before) / tokens, "rate": tokens / seconds}


def read_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def forget(path: Path) -> None:
    """Put a file out of the page cache: what is there already is charged to no group, and never read again.

    What was not written yet would stay there.
    """
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def in_group(limit: int, arguments: list[str]) -> str | None:
    """Run this script again with everything of it in a control group (version 1); None where none can be made."""
    group = Path("/sys/fs/cgroup/memory/dfqs-curve")
    try:
        group.mkdir(exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(str(limit))
    except OSError as error:
        print(
            f"paged is not measured: no control group can be made here ({error}); run it as root on a machine whose "
            "memory groups are of version 1",
            file=sys.stderr,
        )
        return None
    command = f"echo $$ > {group}/cgroup.procs; exec {shlex.join([sys.executable, *arguments])}"
    try:
        return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    finally:
        group.rmdir()


def compare(path: Path, shares: list[float], warm: int, tokens: int) -> None:
    own = importlib.import_module(Path(__file__).stem)
    model = open_model(path)
    layout = plan_layout(model.headers)
    sizes = {key: pages.length for key, pages in layout.experts.items()}
    layers = tuple(sorted({layer for layer, _ in sizes}))
    with Worker(2, WAIT_POLICY, env=ENVIRONMENT) as worker:
        ids, token_s = worker.call(own.trace, path, warm + tokens)
    passes: list[Pass] = [list(zip(layers, token, strict=True)) for token in ids]
    choices = Choices(tuple(passes), "traced", model.spec.experts, layers, model.spec.experts_used)
    room = partial(plan_guess_room, layout, model.spec.experts_used)
    curve = CurveModel(sizes, layout.resident_bytes, OTHER_BYTES, model.file_bytes, token_s, room)
    print(f"{1 / token_s:.1f} tokens/s in memory")
    print("| share | way | MB a token: forecast, read | error | tokens/s: forecast (interval), measured | inside |")
    print("|---|---|---|---|---|---|")
    for share in shares:
        limit = int(model.file_bytes * share) + OTHER_BYTES
        forget(path)
        disk = measure_disk(path, max(pages.ranges[0].length for pages in layout.experts.values()), 2)
        point = draw_curve(curve, choices, disk, [limit], warm=warm)[0]
        with Worker(2, WAIT_POLICY, env=ENVIRONMENT) as worker:
            streamed = worker.call(own.stream, path, point.cache_bytes or 0, warm, tokens)
        forget(path)
        arguments = [__file__, str(path), "--paged", "--warm", str(warm), "--tokens", str(tokens)]
        paged = in_group(limit, arguments)
        show(share, "streamed", point.streamed_bytes_per_token, point.streamed, streamed)
        if paged is not None:
            show(share, "paged", point.paged_bytes_per_token, point.paged, json.loads(paged))
        print(
            f"disk {disk.direct.bytes_per_s / 1e6:.0f} MB/s ({disk.direct.low / 1e6:.0f} to "
            f"{disk.direct.high / 1e6:.0f}), paged {disk.paged.bytes_per_s / 1e6:.0f}, "
            f"{disk.paged.read_per_wanted:.2f} bytes for each wanted; "
            f"read ahead: {streamed['ahead'] / 1e6:.1f} MB used, {streamed['unused'] / 1e6:.1f} not",
            file=sys.stderr,
        )


def show(share: float, way: str, told: float | None, rate: Rate | None, found: dict[str, float]) -> None:
    assert told is not None and rate is not None
    inside = "yes" if rate.low <= found["rate"] <= rate.high else "no"
    print(
        f"| {share:.0%} | {way} | {told / 1e6:.1f}, {found['bytes'] / 1e6:.1f} | {told / found['bytes'] - 1:+.1%} "
        f"| {rate.tokens_per_s:.2f} ({rate.low:.2f} to {rate.high:.2f}), {found['rate']:.2f} | {inside} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--shares", default="0.25,0.4,0.6,0.8")
    parser.add_argument("--warm", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--paged", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.paged:
        own = importlib.import_module(Path(__file__).stem)
        with Worker(2, WAIT_POLICY, env=ENVIRONMENT) as worker:
            print(json.dumps(worker.call(own.page, asked.model, asked.warm, asked.tokens)))
        return
    # Ended from outside, it still puts read_ahead_kb back.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    # As Linux has it by default: at some megabytes a paged token takes seconds.
    with read_ahead(asked.model, READ_AHEAD_KB):
        compare(asked.model, [float(word) for word in asked.shares.split(",")], asked.warm, asked.tokens)


if __name__ == "__main__":
    main()
