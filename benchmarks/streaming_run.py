"""One run of `benchmarks/streaming.py`, in a control group of its own: loads as `dfqs run` would, decodes, prints JSON.

Run by the benchmark; by hand: python benchmarks/streaming_run.py MODEL MODE RAM_BYTES WARM TOKENS
"""

import hashlib
import importlib
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dfqs.model.files import open_model
from dfqs.progress import no_progress
from dfqs.runtime import Worker
from dfqs.runtime.context import Context
from dfqs.runtime.loading import InMemory, LoadOrder, Mapped, StreamFigures
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.worker_context import WorkerContext
from dfqs.streaming.budget import Streamed, choose_load
from dfqs.streaming.settings import StreamSettings

CONTEXT = ContextSettings(n_ctx=256, n_batch=16, n_ubatch=16, flash_attention="off")
THREADS = 2
_SEED = 7


@dataclass(frozen=True, slots=True)
class Run:
    """What one run measured."""

    mode: str
    tokens: int
    seconds: float
    tokens_per_s: float
    read_bytes_per_token: float
    """From the disk, as the kernel counts it for the process."""
    cpu_s_per_token: float
    token_s: tuple[float, ...]
    logits_sha256: str
    load_s: float
    cache_bytes: int | None
    choices: int | None
    hit_rate: float | None
    wait_s_per_token: float | None
    worker_anonymous_bytes: int
    parent_anonymous_bytes: int = 0


def decode(
    worker: WorkerContext, path: Path, order: LoadOrder, mode: str, vocabulary: int, warm: int, tokens: int
) -> Run:
    """In the worker: load, decode `warm` tokens, then `tokens` that are measured."""
    started = time.perf_counter()
    loaded = order.load(worker.library, path, no_progress)
    load_s = time.perf_counter() - started
    chosen = (np.random.default_rng(_SEED).zipf(1.3, warm + tokens) % vocabulary).tolist()
    digest = hashlib.sha256()
    seconds = []
    with Context(
        loaded.model,
        CONTEXT.n_ctx,
        n_batch=CONTEXT.n_batch,
        n_ubatch=CONTEXT.n_ubatch,
        flash_attention=CONTEXT.flash_attention,
    ) as context:
        for position in range(warm):
            context.decode([chosen[position]], position)
        before = loaded.figures() if loaded.figures is not None else None
        read, cpu = _read_bytes(), time.process_time()
        for position in range(warm, warm + tokens):
            started = time.perf_counter()
            logits = context.decode([chosen[position]], position)
            seconds.append(time.perf_counter() - started)
            assert logits is not None
            digest.update(logits.tobytes())
        read, cpu = _read_bytes() - read, time.process_time() - cpu
        after = loaded.figures() if loaded.figures is not None else None
    choices, hit_rate, wait_s = _between(before, after)
    anonymous = anonymous_bytes()
    loaded.close()
    return Run(
        mode=mode,
        tokens=tokens,
        seconds=sum(seconds),
        tokens_per_s=tokens / sum(seconds),
        read_bytes_per_token=read / tokens,
        cpu_s_per_token=cpu / tokens,
        token_s=tuple(round(value, 4) for value in seconds),
        logits_sha256=digest.hexdigest(),
        load_s=load_s,
        cache_bytes=order.settings.cache_bytes if isinstance(order, Streamed) else None,
        choices=choices,
        hit_rate=hit_rate,
        wait_s_per_token=wait_s / tokens if wait_s is not None else None,
        worker_anonymous_bytes=anonymous,
    )


def _between(
    before: StreamFigures | None, after: StreamFigures | None
) -> tuple[int | None, float | None, float | None]:
    """Choices, share of them in memory, and seconds of waiting."""
    if before is None or after is None:
        return None, None, None
    choices = after.choices - before.choices
    hits = after.choices * (after.hit_rate or 0) - before.choices * (before.hit_rate or 0)
    return choices, hits / choices if choices else None, after.wait_s - before.wait_s


def _read_bytes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    raise RuntimeError("the kernel does not count what a process reads")


def anonymous_bytes() -> int:
    """Anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def choose_order(path: Path, mode: str, ram_bytes: int) -> LoadOrder:
    """How a mode loads the model."""
    if mode == "paged":
        # llama.cpp's own memory map at its best: repacking would copy the weights.
        return Mapped()
    if mode == "memory":
        return InMemory()
    order = choose_load(path, CONTEXT, str(ram_bytes)).order
    if not isinstance(order, Streamed):
        # It fits, and would be loaded whole; what streaming costs then is asked all the same.
        return Streamed((path,), StreamSettings(ram_bytes))
    settings = replace(order.settings, hints=mode == "hints", looks_ahead=mode != "chosen")
    return replace(order, settings=settings)


def main() -> None:
    model, mode, ram, warm, tokens = sys.argv[1:]
    own = importlib.import_module(Path(__file__).stem)
    path = Path(model)
    vocabulary = open_model(path).headers[0].tensor("token_embd.weight").shape[1]
    order: LoadOrder = own.choose_order(path, mode, int(ram))
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with Worker(THREADS, "bounded", env={"PYTHONPATH": os.pathsep.join(paths)}) as worker:
        run = worker.call(own.decode, path, order, mode, vocabulary, int(warm), int(tokens))
    run = replace(run, parent_anonymous_bytes=anonymous_bytes())
    print(json.dumps({name: getattr(run, name) for name in Run.__slots__}))


if __name__ == "__main__":
    main()
