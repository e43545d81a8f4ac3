"""Times prefill or decode of a model as `dfqs eval` does, and prints it.

    python decoding.py MODEL TOKENS THREADS prefill|decode

Runs of their own in a worker process; the first warms up and does not count.
"""

import importlib
import json
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

from dfqs.progress import no_progress
from dfqs.runtime import Worker
from dfqs.runtime.context import Context
from dfqs.runtime.loading import InMemory
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.timing import time_decode, time_prefill
from dfqs.runtime.worker_context import WorkerContext

RUNS = 3


def time_runs(worker: WorkerContext, path: Path, tokens: int, what: str) -> list[tuple[float, float]]:
    """In the worker: (wall, CPU) seconds of each run."""
    settings = ContextSettings(max(tokens, 512) + 1, n_batch=2048, n_ubatch=512, flash_attention="auto")
    found = []
    with (
        InMemory("auto", gpu_layers=0).load(worker.library, path, no_progress) as loaded,
        Context(loaded.model, **asdict(settings)) as context,
    ):
        for _ in range(1 + RUNS):
            if what == "decode":
                time_prefill(context, 1)
            started, used = time.perf_counter(), time.process_time()
            if what == "decode":
                time_decode(context, 1, tokens)
            else:
                time_prefill(context, tokens)
            found.append((time.perf_counter() - started, time.process_time() - used))
    return found[1:]


def main(path: str, tokens: str, threads: str, what: str) -> None:
    # As a module: a worker cannot import what is only the script that runs.
    own, folder = importlib.import_module(Path(__file__).stem), str(Path(__file__).parent)
    with Worker(threads=int(threads), omp_wait_policy="default", env={"PYTHONPATH": folder}) as worker:
        runs = worker.call(own.time_runs, Path(path), int(tokens), what)
    wall, cpu = (statistics.median(run[k] for run in runs) for k in (0, 1))
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "tokens": int(tokens)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
