"""`dfqs.calibration/1`: how fast this machine does each kind of work of a graph, measured on random models.

Four kinds: reading a weight (for each type, in plain matrices and in experts' stacks; for one token and in batches),
getting from node to node of the graph, and attention behind a context. None is measured on the model that a forecast is
for.
"""

import contextlib
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import Field

from dfqs.errors import DfqsError, RuntimeFailure
from dfqs.gguf import GGMLType, read_header
from dfqs.hardware import default_threads, measure_read_bandwidth, read_machine
from dfqs.planning.probe_models import ATTENTION, DENSE, EXPERTS, NODES, ProbeShape, write_probe
from dfqs.planning.work import Kind, Work, WorkKey, count_work
from dfqs.progress import Progress, no_progress
from dfqs.quantize.kernels import Kernels
from dfqs.records import Amount, AtLeastOne, Document, Record, read_json, sha256_of, write_json
from dfqs.runtime import Worker
from dfqs.runtime.choice import runtime_name
from dfqs.runtime.context import Context, Model
from dfqs.runtime.omp_policy import BUSY_CPUS, LoadSample, other_cpus
from dfqs.runtime.timing import time_decode, time_prefill
from dfqs.runtime.worker_context import WorkerContext
from dfqs.storage.cache import cache_directory

PROBE_BYTES = 256 << 20
DECODE_TOKENS, PREFILL_TOKENS, DEPTH_TOKENS = 24, 256, 2048
REPEATS = 3
WAIT_POLICY = "bounded"
"""Of the threads: what a quiet machine is run with."""
_LEAST_SHARE = 0.2
"""Of a probe's time is its weights', however long its graph is said to take."""


class TypeSpeed(Record):
    """One type of weights in one kind of matrix."""

    type: str
    kind: Kind
    decode_ns_per_byte: Amount
    """Of weights, for one token."""
    prefill_ns_per_weight: Amount
    """For each token of a batch."""


class Calibration(Document):
    """A machine's speeds. Nanoseconds, the best of repeats."""

    schema_: Literal["dfqs.calibration/1"] = Field(default="dfqs.calibration/1", alias="schema")
    machine: dict[str, Any]
    """What of it a speed depends on."""
    runtime: str
    threads: AtLeastOne
    omp_wait_policy: str
    other_cpus: Amount
    """CPUs that others kept busy meanwhile: near 0, or the rest is what a busy machine does, and is not kept."""
    read_bytes_per_s: Amount
    """Memory read by as many threads from arrays far larger than caches."""
    node_ns: Amount
    """From one node of a graph to the next, its small arithmetic included."""
    batch_node_ns: Amount
    """The same of a batch, for each token."""
    attention_ns: Amount
    """For each cached token, layer, head and element of a head."""
    types: tuple[TypeSpeed, ...]
    spread: Amount
    """Of repeats: the slowest as a multiple of the fastest, the median of all probes."""

    def find(self, type_: str, kind: Kind) -> TypeSpeed | None:
        return next((speed for speed in self.types if (speed.type, speed.kind) == (type_, kind)), None)


@dataclass(frozen=True, slots=True)
class ProbeTimes:
    """What one random model took. Seconds a token."""

    decode_s: float
    prefill_s: float
    deep_s: float
    """Behind `DEPTH_TOKENS` of context; 0 where that was not asked for."""
    nodes: int
    spread: float
    work: Work
    """Of the probe's own kind."""
    other_cpus: float


def calibrate(wanted: Collection[WorkKey], threads: int | None = None, progress: Progress = no_progress) -> Calibration:
    """Measure what of `wanted` this machine's record does not have yet; keeps the record.

    Args:
        progress: in probes.

    Raises:
        RuntimeFailure: llama.cpp failed on a probe.
        SpaceError: there is no room for a probe's file.
    """
    count = threads or default_threads()
    machine, runtime = read_machine().speed_conditions(), runtime_name()
    path = calibration_path(machine, runtime, count)
    found: Calibration | None = None
    with contextlib.suppress(DfqsError, OSError):
        found = read_json(path, Calibration)
    missing = [pair for pair in sorted(wanted) if found is None or found.find(pair[0].name, pair[1]) is None]
    if found is not None and not missing:
        return found
    with tempfile.TemporaryDirectory(prefix="dfqs-probe-") as directory, Worker(count, WAIT_POLICY) as worker:
        measured = _measure_all(worker, Path(directory), missing, progress)
    others = median(times.other_cpus for times in measured.values())
    nodes = measured[None, "nodes"]
    node_s, batch_node_s = nodes.decode_s / nodes.nodes, nodes.prefill_s / nodes.nodes
    deep = measured[None, "attention"]
    attention_ns = max(0.0, deep.deep_s - deep.decode_s) * 1e9
    attention_ns /= DEPTH_TOKENS * ATTENTION.layers * ATTENTION.heads * ATTENTION.head
    fresh = tuple(_type_speed(type_, kind, measured[type_, kind], node_s, batch_node_s) for type_, kind in missing)
    calibration = Calibration(
        machine=machine,
        runtime=runtime,
        threads=count,
        omp_wait_policy=WAIT_POLICY,
        other_cpus=others,
        read_bytes_per_s=measure_read_bandwidth(count),
        node_ns=node_s * 1e9,
        batch_node_ns=batch_node_s * 1e9,
        attention_ns=attention_ns,
        types=(*(found.types if found is not None else ()), *fresh),
        spread=median(times.spread for times in measured.values()),
    )
    if others >= BUSY_CPUS:
        return calibration
    with contextlib.suppress(DfqsError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, calibration, overwrite=True)
    return calibration


def calibration_path(machine: dict[str, Any], runtime: str, threads: int) -> Path:
    """Where a machine's record lies."""
    return cache_directory() / "calibrations" / f"{sha256_of([machine, runtime, threads])[:32]}.json"


def probe_shape(kind: Kind, type_: GGMLType) -> ProbeShape:
    """The random model that one type is measured on."""
    return (DENSE if kind == "dense" else EXPERTS).with_bytes(type_, PROBE_BYTES)


def _measure_all(worker: Worker, directory: Path, missing: list[WorkKey], progress: Progress) -> dict[Any, ProbeTimes]:
    jobs: dict[Any, Callable[[], ProbeTimes]] = {}

    def add(key: Any, shape: ProbeShape, type_: GGMLType, dense: GGMLType | None, depth: int) -> None:
        path = directory / "probe.gguf"
        doing = f"calibrating {type_.name}"
        jobs[key] = lambda: worker.reporting(doing=doing).call(measure_probe, path, shape, type_, dense, depth)

    add((None, "nodes"), NODES, GGMLType.Q8_0, None, 0)
    add((None, "attention"), ATTENTION, GGMLType.Q8_0, None, DEPTH_TOKENS)
    for type_, kind in missing:
        add((type_, kind), probe_shape(kind, type_), type_, GGMLType.Q8_0 if kind == "experts" else None, 0)
    found = {}
    for number, (key, job) in enumerate(jobs.items()):
        progress(number, len(jobs), str(key[0].name) if key[0] is not None else key[1])
        found[key] = job()
    return found


def measure_probe(
    worker: WorkerContext, path: Path, shape: ProbeShape, type_: GGMLType, dense: GGMLType | None, depth: int
) -> ProbeTimes:
    """In the worker: write a random model, measure it, and remove it."""
    try:
        write_probe(path, Kernels(worker.library), shape, type_, dense)
        counted = count_work(read_header(path).tensors, shape.experts, shape.used)
        # Beside its own kind a probe has little else, which is taken for as fast.
        work = Work(sum(one.bytes for one in counted.values()), sum(one.weights for one in counted.values()))
        tokens = max(PREFILL_TOKENS, depth) + REPEATS * DECODE_TOKENS + 8
        with Model(worker.library, path) as model, Context(model, tokens, threads=worker.threads) as context:
            return _time_probe(context, depth, work)
    finally:
        path.unlink(missing_ok=True)


def _time_probe(context: Context, depth: int, work: Work) -> ProbeTimes:
    if context.graph_nodes is None:
        raise RuntimeFailure("llama.cpp does not say how many nodes its graph has")
    time_prefill(context, 32)
    began = LoadSample()
    decodes, prefills = [], []
    # The best counts: others only ever slow it down.
    for _ in range(REPEATS):
        time_prefill(context, 1)
        decodes.append(median(time_decode(context, 1, DECODE_TOKENS)))
        prefills.append(time_prefill(context, PREFILL_TOKENS) / PREFILL_TOKENS)
    deep = 0.0
    if depth:
        time_prefill(context, depth)
        deep = min(median(time_decode(context, depth + i * DECODE_TOKENS, DECODE_TOKENS)) for i in range(REPEATS))
    spread = max(decodes) / min(decodes)
    return ProbeTimes(min(decodes), min(prefills), deep, context.graph_nodes, spread, work, other_cpus(began))


def _type_speed(type_: GGMLType, kind: Kind, times: ProbeTimes, node_s: float, batch_node_s: float) -> TypeSpeed:
    """What a probe's weights took: its time less that of its graph."""
    decode_s = max(times.decode_s - times.nodes * node_s, times.decode_s * _LEAST_SHARE)
    prefill_s = max(times.prefill_s - times.nodes * batch_node_s, times.prefill_s * _LEAST_SHARE)
    return TypeSpeed(
        type=type_.name,
        kind=kind,
        decode_ns_per_byte=decode_s * 1e9 / times.work.bytes,
        prefill_ns_per_weight=prefill_s * 1e9 / times.work.weights,
    )
