"""How fast a local model decodes, in a worker of its own, so that nothing measured before is in its way.

`cpu_tokens_per_sec` is the decode rate of llama.cpp's default settings on the CPU: batch 1, after an empty context.
Tokens are drawn by a fixed rule and not sampled, as llama-bench does: the rate does not depend on what is said.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from dfqs.energy import joules_between, read_energy
from dfqs.evaluate.statistics import percentile
from dfqs.evaluate.suites import Suite
from dfqs.progress import no_progress
from dfqs.records import Amount, AtLeastOne, Record, Whole, is_null
from dfqs.runtime import Worker
from dfqs.runtime.context import Context
from dfqs.runtime.loading import InMemory, LoadOrder
from dfqs.runtime.omp_policy import LoadSample, other_cpus
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.timing import time_decode, time_prefill
from dfqs.runtime.worker_context import WorkerContext

# llama.cpp's own defaults.
LOAD_MODE = "auto"
FLASH_ATTENTION = "auto"
BATCH = 2048
UBATCH = 512

CPU_ONLY = InMemory(LOAD_MODE, gpu_layers=0)
"""The baseline of every metric, of a model that fits into memory."""

WARM_UP_TOKENS = 16
DEPTH_DECODE_TOKENS = 32


@dataclass(frozen=True, slots=True)
class DecodeRun:
    """One repeat."""

    prefill_tokens: int
    prefill_s: float
    decode_s: tuple[float, ...]
    """Wall time of each token."""
    depth_tokens: int
    depth_decode_s: tuple[float, ...]
    """The same, behind `depth_tokens` of context; empty when the model's context is shorter."""
    threads: int
    omp_wait_policy: str
    other_cpus: float
    """CPUs that others (processes, or the host of a virtual machine) kept busy meanwhile, on average."""
    disk_bytes: int | None = None
    """Read for the tokens of `decode_s`; None where all weights were in memory, as in the next."""
    disk_wait_s: float | None = None
    energy_joules: float | None = None
    """Taken by the machine's processors for the tokens of `decode_s`; None where they do not tell."""


class SpeedSummary(Record):
    """What the repeats add up to. Rates in tokens a second, latencies in seconds."""

    decode_tokens_per_s: Amount
    """Median of the repeats."""
    decode_spread: tuple[Amount, Amount]
    """Slowest and fastest repeat."""
    repeats: AtLeastOne
    decode_tokens: AtLeastOne
    prefill_tokens_per_s: Amount
    prefill_tokens: Whole
    depth_tokens: AtLeastOne | None
    depth_tokens_per_s: Amount | None
    latency_p50_s: Amount
    latency_p95_s: Amount
    latency_p99_s: Amount
    threads: AtLeastOne
    omp_wait_policy: str
    other_cpus: Amount | None
    """CPUs that others kept busy meanwhile, in the worst repeat; near 0 on a quiet machine. Null in the oldest
    reports."""
    copy_bandwidth_bytes_per_s: Amount | None
    """Measured: read plus written, all threads."""
    bytes_per_token: Whole | None
    """Weights that one token reads."""
    bandwidth_fraction: Amount | None
    """`bytes_per_token * decode_tokens_per_s` of the copy bandwidth. Reading is faster than copying: may be above 1."""
    disk_bytes_per_token: Amount | None = None
    """Of experts, read from disk while decoding; None where all weights were in memory, as in the next."""
    disk_wait_share: Amount | None = None
    """Of the time of decoding, that computing stood still for the disk."""
    energy_joules_per_token: Amount | None = Field(default=None, exclude_if=is_null)
    """Of the processors and whatever else ran on them, by their own counters; median of the repeats."""


def used_memory(load_mode: str, memory_bytes: int | None) -> dict[str, Any]:
    """How much of a machine's memory a repeat used, as it is stored beside what the machine is.

    Args:
        load_mode: how weights came into memory.
        memory_bytes: that they were kept to.
    """
    # What every earlier run was measured with is not told.
    mode = {"load_mode": load_mode} if load_mode != LOAD_MODE else {}
    return {**mode, **({"used_memory_bytes": memory_bytes} if memory_bytes is not None else {})}


def speed_context(suite: Suite, trained_tokens: int) -> ContextSettings:
    """The context that repeats are measured in."""
    depth = _depth_tokens(suite, trained_tokens)
    longest = max(depth + DEPTH_DECODE_TOKENS, suite.prefill_tokens, 1 + suite.decode_tokens)
    return ContextSettings(
        min(longest, trained_tokens), n_batch=BATCH, n_ubatch=UBATCH, flash_attention=FLASH_ATTENTION
    )


def _depth_tokens(suite: Suite, trained_tokens: int) -> int:
    return suite.depth_tokens if suite.depth_tokens + DEPTH_DECODE_TOKENS <= trained_tokens else 0


def measure_runs(
    path: Path,
    suite: Suite,
    threads: int,
    have: int,
    on_run: Callable[[DecodeRun], None],
    order: LoadOrder = CPU_ONLY,
) -> None:
    """Measure the repeats that are still missing (`have` are there)."""
    with Worker(threads=threads, omp_wait_policy="default") as worker:
        worker.reporting(on_run).call(run_repeats, path, suite, suite.decode_repeats - have, order)


def run_repeats(worker: WorkerContext, path: Path, suite: Suite, repeats: int, order: LoadOrder) -> None:
    """In the worker: warm up once, then emit one `DecodeRun` a repeat."""
    with order.load(worker.library, path, no_progress) as loaded:
        trained = loaded.model.trained_context_tokens
        depth = _depth_tokens(suite, trained)
        with Context(loaded.model, **asdict(speed_context(suite, trained))) as context:
            _decode_from_empty(context, WARM_UP_TOKENS)
            for _ in range(repeats):
                began = LoadSample()
                prefill = min(suite.prefill_tokens, context.n_ctx_sequence)
                prefill_s = time_prefill(context, prefill)
                before, energy = loaded.read_figures(), read_energy()
                decode_s = _decode_from_empty(context, suite.decode_tokens)
                after, joules = loaded.read_figures(), joules_between(energy, read_energy())
                depth_s: tuple[float, ...] = ()
                if depth:
                    time_prefill(context, depth)
                    depth_s = time_decode(context, depth, DEPTH_DECODE_TOKENS)
                worker.emit(
                    DecodeRun(
                        prefill,
                        prefill_s,
                        decode_s,
                        depth,
                        depth_s,
                        context.threads,
                        worker.library.omp_wait_policy,
                        other_cpus(began),
                        after.read_bytes - before.read_bytes if after is not None and before is not None else None,
                        after.wait_s - before.wait_s if after is not None and before is not None else None,
                        joules,
                    )
                )


def summarise(runs: list[DecodeRun], bandwidth: float | None, bytes_per_token: int | None) -> SpeedSummary:
    """Medians over repeats; percentiles over every token of all of them.

    Args:
        bandwidth: of copying, in bytes a second.
        bytes_per_token: of the weights that decoding one token reads.
    """
    rates = [len(run.decode_s) / sum(run.decode_s) for run in runs]
    deep = [run for run in runs if run.depth_decode_s and run.depth_tokens and run.depth_tokens == runs[0].depth_tokens]
    depth_rates = [len(run.depth_decode_s) / sum(run.depth_decode_s) for run in deep]
    latencies = [second for run in runs for second in run.decode_s]
    rate = statistics.median(rates)
    joules = [run.energy_joules / len(run.decode_s) for run in runs if run.energy_joules is not None]
    return SpeedSummary(
        decode_tokens_per_s=rate,
        decode_spread=(min(rates), max(rates)),
        repeats=len(runs),
        decode_tokens=len(runs[0].decode_s),
        prefill_tokens_per_s=statistics.median(run.prefill_tokens / run.prefill_s for run in runs),
        prefill_tokens=runs[0].prefill_tokens,
        depth_tokens=runs[0].depth_tokens if depth_rates else None,
        depth_tokens_per_s=statistics.median(depth_rates) if depth_rates else None,
        latency_p50_s=percentile(latencies, 50) or 0.0,
        latency_p95_s=percentile(latencies, 95) or 0.0,
        latency_p99_s=percentile(latencies, 99) or 0.0,
        threads=runs[0].threads,
        omp_wait_policy=runs[0].omp_wait_policy,
        other_cpus=max(run.other_cpus for run in runs),
        copy_bandwidth_bytes_per_s=bandwidth,
        bytes_per_token=bytes_per_token,
        disk_bytes_per_token=_share([run.disk_bytes for run in runs], sum(len(run.decode_s) for run in runs)),
        disk_wait_share=_share([run.disk_wait_s for run in runs], sum(latencies)),
        energy_joules_per_token=statistics.median(joules) if len(joules) == len(runs) else None,
        bandwidth_fraction=bytes_per_token * rate / bandwidth if bytes_per_token is not None and bandwidth else None,
    )


def _share(parts: Sequence[float | None], whole: float) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) / whole if len(known) == len(parts) else None


def _decode_from_empty(context: Context, tokens: int) -> tuple[float, ...]:
    """Decode one token at a time behind the one token that an empty context needs."""
    time_prefill(context, 1)
    return time_decode(context, 1, tokens)
