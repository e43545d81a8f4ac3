"""What capturing routing costs, how large traces are and how fast they compare, and coherence along a ladder.

Run: python benchmarks/routing.py capture MODEL [--tokens 512] [--rounds 5]
     python benchmarks/routing.py files
     python benchmarks/routing.py ladder REFERENCE RUNG...       (models from best to worst)

`capture` counts CPU seconds of the worker's process (one thread, so that waiting threads count nothing) over the same
prefill; rounds are interleaved, with a second run of the control. `files` writes 10,000 tokens x 43 layers x 6 of 256
experts, routed at random, and compares the file with itself.
"""

import argparse
import importlib
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfqs.routing import load
from dfqs.routing.capture import REFERENCE, capture_trace, load_model, processor_name
from dfqs.routing.coherence import diff_traces, uniform_chance_jaccard
from dfqs.routing.identity import ModelIdentity
from dfqs.routing.prompts import packaged_prompt
from dfqs.routing.stats import measure_stats
from dfqs.routing.tap import BatchToken, RouterTap, decode_batch
from dfqs.routing.trace import RouteConditions, TraceChunk, TraceHeader
from dfqs.routing.tracefile import TraceReader, write_trace
from dfqs.runtime import Worker
from dfqs.runtime.context import Context
from dfqs.runtime.worker_context import WorkerContext

BASELINE, CONTROL = "no callback, all logits", "again (control)"
WAYS = {
    "no callback, last logits": (None, False),
    BASELINE: (None, True),
    CONTROL: (None, True),
    "ids": (False, True),
    "ids and scores": (True, True),
}
"""Scores wanted (None: no callback at all), and logits of every token."""


def prefill_cpu_seconds(
    worker: WorkerContext, path: str, tokens: Sequence[int], scores: bool | None, all_logits: bool
) -> float:
    """In the worker: CPU seconds of one prefill, routing taken out of it where wanted."""
    model = load_model(worker, path)
    tap = None if scores is None else RouterTap(scores=scores)
    with Context(model, len(tokens), **REFERENCE, threads=1, eval_callback=tap.callback if tap else None) as context:
        batch = [BatchToken(t, i, 0, all_logits or i == len(tokens) - 1) for i, t in enumerate(tokens)]
        started = time.process_time()
        decode_batch(context, batch, tap)
        if tap is not None:
            tap.take_batch(batch)
        return time.process_time() - started


def measure_capture(path: Path, tokens: int, rounds: int) -> None:
    # As a module: a worker cannot import what is only the script that runs.
    own = importlib.import_module(Path(__file__).stem)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with Worker(threads=1, env={"PYTHONPATH": str(Path(__file__).parent)}) as worker:
        prompt = worker.call(load.tokenize, str(path), [packaged_prompt("first")])[0][:tokens]
        for number in range(rounds + 1):
            for way, (scores, all_logits) in WAYS.items():
                cpu = worker.call(own.prefill_cpu_seconds, str(path), prompt, scores, all_logits)
                if number:  # The first round pages the model in.
                    seconds[way].append(cpu)
    base = statistics.median(seconds[BASELINE])
    print(f"{path.name}: prefill of {len(prompt)} tokens, 1 thread, {rounds} rounds, {processor_name()}\n")
    print("| prefill | CPU s, median (min-max) | against no callback, all logits |")
    print("|---|---|---|")
    for way, values in seconds.items():
        median = statistics.median(values)
        print(f"| {way} | {median:.2f} ({min(values):.2f}-{max(values):.2f}) | {100 * (median / base - 1):+.1f} % |")


def reference_sized(tokens: int = 10_000) -> tuple[TraceHeader, list[TraceChunk]]:
    rng = np.random.default_rng(0)
    model = ModelIdentity(
        name="random", architecture="deepseek4", layers=43, experts=256, experts_used=6, file_bytes=0,
        header_sha256="0" * 64, tokenizer_sha256=None, router_sha256=None, expert_types=("IQ1_S",),
    )  # fmt: skip
    header = TraceHeader(model=model, layers=tuple(range(43)), conditions=RouteConditions(runtime="none"))
    chunks = []
    for start in range(0, tokens, 500):
        scores = rng.random((43, 500, 256), np.float32)
        ids = np.argpartition(scores, -6, axis=-1)[..., -6:].astype(np.uint8)
        chunks.append(TraceChunk(0, start, rng.integers(0, 129_280, 500, dtype=np.int32), ids))
    return header, chunks


def measure_files() -> None:
    header, chunks = reference_sized()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "random.route"
        rows: list[tuple[str, Any]] = [("write", lambda: write_trace(path, header, chunks, overwrite=True))]
        rows += [("diff", lambda: diff_traces(path, path)), ("stats", lambda: measure_stats(path))]
        print("| step | wall s | CPU s | peak of Python's memory |")
        print("|---|---|---|---|")
        for name, step in rows:
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            tracemalloc.start()
            step()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            print(f"| {name} | {wall:.2f} | {cpu:.2f} | {peak / 1e6:.1f} MB |")
        print(f"\n{sum(len(chunk) for chunk in chunks):,} tokens, {path.stat().st_size:,} bytes")


def measure_ladder(models: Sequence[Path]) -> None:
    prompts = [packaged_prompt("first"), packaged_prompt("second")]
    with tempfile.TemporaryDirectory() as directory:
        traces = []
        for number, model in enumerate(models):
            trace = Path(directory) / f"{number}.route"
            with Worker() as worker:
                capture_trace(worker, model, prompts, trace, scores=True)
            traces.append(trace)
        with TraceReader(traces[0]) as reader:
            reference = reader.header.model
        chance = uniform_chance_jaccard(reference.experts, reference.experts_used)
        print(f"Against {models[0].name}; Jaccard of two random sets: {chance:.3f}\n")
        print("| experts | same set | Jaccard | Jaccard by chance | above chance | first expert | weight | KL, nats |")
        print("|---|---|---|---|---|---|---|---|")
        for trace in traces:
            found = diff_traces(traces[0], trace)
            mean = found.overall
            print(
                f"| {', '.join(found.other.model.expert_types)} | {mean.same_set:.3f} | {mean.jaccard:.3f} "
                f"| {mean.chance_jaccard:.3f} | {mean.above_chance:.3f} | {mean.top1:.3f} | {mean.weight_overlap:.3f} "
                f"| {mean.kl_nats:.2g} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    capture = verbs.add_parser("capture")
    capture.add_argument("model", type=Path)
    capture.add_argument("--tokens", type=int, default=512)
    capture.add_argument("--rounds", type=int, default=5)
    verbs.add_parser("files")
    ladder = verbs.add_parser("ladder")
    ladder.add_argument("models", type=Path, nargs="+")
    options = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} CPUs, load {os.getloadavg()[0]:.1f}\n", file=sys.stderr)
    if options.verb == "capture":
        measure_capture(options.model, options.tokens, options.rounds)
    elif options.verb == "files":
        measure_files()
    else:
        measure_ladder(options.models)


if __name__ == "__main__":
    main()
