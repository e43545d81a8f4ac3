"""Measuring a random model: in a worker, as any model is run."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from dfqs.errors import RuntimeFailure
from dfqs.gguf import GGMLType, read_header
from dfqs.planning.probe_models import ProbeShape, write_probe
from dfqs.planning.work import GraphSize, Terms, Work, WorkKey, count_work, decode_terms, prompt_terms
from dfqs.quantize.kernels import Kernels
from dfqs.runtime.context import Context, Model
from dfqs.runtime.omp_policy import LoadSample, other_cpus
from dfqs.runtime.timing import time_decode, time_prefill
from dfqs.runtime.worker import Worker
from dfqs.runtime.worker_context import WorkerContext

DECODE_TOKENS, REPEATS = 14, 3
_WARM_UP_TOKENS = 32
_SHORT_PROMPT_TOKENS = 100
"""Shorter ones are repeated."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A random model, and what is measured of it."""

    name: str
    shape: ProbeShape
    type_: GGMLType
    dense: GGMLType | None
    """Type of what are no experts; None: `type_`."""
    prompts: tuple[int, ...]
    """Lengths of prompts in tokens; behind the first and the last of them tokens are decoded."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One time."""

    what: Literal["decode", "prompt"]
    tokens: int
    terms: Terms
    seconds: float
    spread: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A probe's times."""

    probe: str
    times: tuple[Timed, ...]
    other_cpus: float


def run_probe(worker: Worker, path: Path, probe: Probe) -> Measured:
    """Write a random model to `path`, measure it, and remove it."""
    return worker.reporting(doing=f"calibrating with {probe.name}").call(measure_probe, path, probe)


def measure_probe(worker: WorkerContext, path: Path, probe: Probe) -> Measured:
    """In the worker."""
    shape = probe.shape
    try:
        write_probe(path, Kernels(worker.library), shape, probe.type_, probe.dense)
        work = count_work(read_header(path).tensors, shape.experts, shape.used)
        tokens = max(probe.prompts) + (REPEATS + 1) * DECODE_TOKENS
        with Model(worker.library, path) as model, Context(model, tokens, threads=worker.threads) as context:
            began = LoadSample()
            times = tuple(_times(context, probe, work))
            return Measured(probe.name, times, other_cpus(began))
    finally:
        path.unlink(missing_ok=True)


def _times(context: Context, probe: Probe, work: dict[WorkKey, Work]) -> Iterator[Timed]:
    nodes = context.graph_nodes
    if nodes is None:
        raise RuntimeFailure("llama.cpp does not say how many nodes its graph has")

    def graph(behind: float) -> GraphSize:
        attended = behind * probe.shape.layers * probe.shape.heads
        return GraphSize(nodes, attended, attended * probe.shape.head)

    time_prefill(context, _WARM_UP_TOKENS)
    for tokens in probe.prompts:
        repeats = REPEATS if tokens < _SHORT_PROMPT_TOKENS else 1
        prompts = [time_prefill(context, tokens) / tokens for _ in range(repeats)]
        # The best counts: others only ever slow it down.
        yield _timed("prompt", tokens, prompt_terms(work, graph(tokens / 2), tokens), prompts)
        if tokens in (probe.prompts[0], probe.prompts[-1]):
            places = range(tokens, tokens + REPEATS * DECODE_TOKENS, DECODE_TOKENS)
            decodes = [median(time_decode(context, place, DECODE_TOKENS)) for place in places]
            behind = tokens + REPEATS * DECODE_TOKENS // 2
            yield _timed("decode", tokens, decode_terms(work, graph(behind)), decodes)


def _timed(what: Literal["decode", "prompt"], tokens: int, terms: Terms, seconds: list[float]) -> Timed:
    return Timed(what, tokens, terms, min(seconds), max(seconds) / min(seconds))
