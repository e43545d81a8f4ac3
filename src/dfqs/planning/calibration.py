"""`dfqs.calibration/1`: how fast this machine does each kind of work of a graph, measured on random models.

Kinds: reading a weight (for each type, in plain matrices and in experts' stacks; for one token and in batches),
getting from node to node of the graph, and attention behind a context. None is measured on the model that a forecast is
for.
"""

import contextlib
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import Field

from dfqs.errors import DfqsError
from dfqs.gguf import GGMLType
from dfqs.hardware import measure_read_bandwidth, read_machine
from dfqs.planning.probe_models import ATTENTION, DENSE, EXPERTS, NODES, PULSE, ProbeShape
from dfqs.planning.probing import Measured, Probe, run_probe
from dfqs.planning.rates import solve_rates
from dfqs.planning.work import Kind, WorkKey, weights_term
from dfqs.processors import default_threads
from dfqs.progress import Progress, no_progress
from dfqs.records import Amount, AtLeastOne, Document, Record, Text, read_json, sha256_of, write_json
from dfqs.runtime.choice import runtime_name
from dfqs.runtime.omp_policy import BUSY_CPUS
from dfqs.runtime.worker import Worker
from dfqs.storage.cache import cache_directory

PROBE_WEIGHTS, PROBE_BYTES = 160_000_000, 320 << 20
ROUNDS = 2
"""Everything is measured so often, with all else in between: a machine that others use is slow for seconds on end."""
SHORT_TOKENS, BATCH_TOKENS, DEEP_TOKENS = 64, 512, 1536
WAIT_POLICY = "bounded"
"""Of the threads: what a quiet machine is run with."""
OTHER_MACHINE = 1.15
"""By so much slower or faster, a machine is not the one that was calibrated."""
ALWAYS: tuple[WorkKey, ...] = ((GGMLType.F32, "dense"), (GGMLType.Q8_0, "dense"))
"""Types that every probe has something of."""


class Observation(Record):
    """One time that a probe took."""

    probe: Text
    """Which random model: the type and kind that it is mostly made of, or what else it is for."""
    what: Literal["decode", "prompt"]
    tokens: AtLeastOne
    """Before the token that is decoded, or of the prompt."""
    terms: dict[str, Amount]
    """Work of one token."""
    seconds: Amount
    """Of one token; the best of repeats."""
    spread: Amount
    """Of repeats: the slowest as a multiple of the fastest."""


class Calibration(Document):
    """A machine's speeds."""

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
    observations: tuple[Observation, ...]
    decode_ns: dict[str, Amount]
    """Nanoseconds: of a byte of weights by type and kind, of a node of the graph, of an entry attended to, and of each
    element of it. The sums that come nearest to all observations."""
    prompt_ns: dict[str, Amount]
    """The same for a token of a batch; of weights by the weight."""
    pulse_s: Amount
    """A token of the probe that is measured again and again."""
    change: Amount
    """Of that probe while the others were measured, and since: the slowest as a multiple of the fastest."""
    spread: Amount
    """Of repeats, the median of all observations."""

    def has(self, key: WorkKey) -> bool:
        return weights_term(*key) in self.decode_ns


def calibrate(
    wanted: Collection[WorkKey],
    threads: int | None = None,
    progress: Progress = no_progress,
    *,
    again: bool = False,
) -> Calibration:
    """Measure what of `wanted` this machine's record does not have yet; keeps the record.

    Args:
        progress: in probes.
        again: measure everything, whatever there is.

    Raises:
        RuntimeFailure: llama.cpp failed on a probe.
        SpaceError: there is no room for a probe's file.
    """
    count = threads or default_threads()
    machine, runtime = read_machine().speed_conditions(), runtime_name()
    path = calibration_path(machine, runtime, count)
    found: Calibration | None = None
    with contextlib.suppress(DfqsError, OSError):
        found = None if again else read_json(path, Calibration)
    with tempfile.TemporaryDirectory(prefix="dfqs-probe-") as directory, Worker(count, WAIT_POLICY) as worker:
        place = Path(directory) / "probe.gguf"
        before = run_probe(worker, place, _pulse())
        if found is not None and _change((found.pulse_s, _seconds(before))) > OTHER_MACHINE:
            # What was measured then does not go together with what is measured now.
            found = None if not all(found.has(key) for key in wanted) else found
        kept = () if found is None else found.observations
        missing = [key for key in sorted({*wanted, *ALWAYS}) if found is None or not found.has(key)]
        probes = [*(_base_probes() if found is None else ()), *map(_type_probe, missing)]
        if found is not None and not probes:
            return found.model_copy(update={"change": _change((found.pulse_s, _seconds(before)), found.change)})
        measured = [before, *_measure_rounds(worker, place, probes, progress)]
    observed = [*kept, *(one for result in measured for one in _observations(result))]
    pulses = [one.seconds for one in observed if one.probe == _pulse().name and one.what == "decode"]
    observations = _best(observed)
    calibration = Calibration(
        machine=machine,
        runtime=runtime,
        threads=count,
        omp_wait_policy=WAIT_POLICY,
        other_cpus=median(result.other_cpus for result in measured),
        read_bytes_per_s=measure_read_bandwidth(count),
        observations=observations,
        decode_ns=_solve(observations, "decode"),
        prompt_ns=_solve(observations, "prompt"),
        pulse_s=median(pulses),
        change=_change(pulses),
        spread=median(one.spread for one in observations),
    )
    if calibration.other_cpus < BUSY_CPUS and calibration.change < OTHER_MACHINE:
        _keep(path, calibration)
    return calibration


def _measure_rounds(worker: Worker, place: Path, probes: list[Probe], progress: Progress) -> Iterator[Measured]:
    """Each probe `ROUNDS` times, and behind each round the small one."""
    for number, probe in enumerate(probes * ROUNDS):
        progress(number, len(probes) * ROUNDS, probe.name)
        yield run_probe(worker, place, probe)
        if (number + 1) % len(probes) == 0:
            yield run_probe(worker, place, _pulse())
    progress(len(probes) * ROUNDS, len(probes) * ROUNDS, "")


def _keep(path: Path, calibration: Calibration) -> None:
    """For the next time; a machine that keeps nothing is measured again."""
    with contextlib.suppress(DfqsError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, calibration, overwrite=True)


def calibration_path(machine: dict[str, Any], runtime: str, threads: int) -> Path:
    """Where a machine's record lies."""
    return cache_directory() / "calibrations" / f"{sha256_of([machine, runtime, threads])[:32]}.json"


def probe_shape(kind: Kind, type_: GGMLType) -> ProbeShape:
    """The random model that one type is measured on."""
    return (DENSE if kind == "dense" else EXPERTS).with_weights(type_, PROBE_WEIGHTS, PROBE_BYTES)


def _pulse() -> Probe:
    return Probe("pulse", PULSE, GGMLType.Q8_0, None, (SHORT_TOKENS,))


def pulse_seconds(worker: Worker, path: Path) -> float:
    """Of a token of the small model that is measured again and again; written to `path` and removed."""
    return _seconds(run_probe(worker, path, _pulse()))


def _base_probes() -> list[Probe]:
    attention = [
        Probe(f"heads of {shape.head}", shape, GGMLType.Q8_0, None, (SHORT_TOKENS, BATCH_TOKENS, DEEP_TOKENS))
        for shape in ATTENTION
    ]
    return [Probe("nodes", NODES, GGMLType.Q8_0, None, (SHORT_TOKENS, BATCH_TOKENS)), *attention]


def _type_probe(key: WorkKey) -> Probe:
    type_, kind = key
    dense = GGMLType.Q8_0 if kind == "experts" else None
    return Probe(weights_term(type_, kind), probe_shape(kind, type_), type_, dense, (SHORT_TOKENS, BATCH_TOKENS))


def _observations(result: Measured) -> Iterable[Observation]:
    for one in result.times:
        yield Observation(
            probe=result.probe,
            what=one.what,
            tokens=one.tokens,
            terms=one.terms,
            seconds=one.seconds,
            spread=one.spread,
        )


def _best(observed: Iterable[Observation]) -> tuple[Observation, ...]:
    """Of the rounds' observations of one thing the fastest, with the spread of all: others only ever slow it down."""
    found: dict[tuple[str, str, int], Observation] = {}
    for one in observed:
        key = (one.probe, one.what, one.tokens)
        before = found.get(key)
        if before is None:
            found[key] = one
            continue
        fastest = min(before, one, key=lambda each: each.seconds)
        slowest = max(before.seconds * before.spread, one.seconds * one.spread)
        found[key] = fastest.model_copy(update={"spread": slowest / fastest.seconds})
    return tuple(found.values())


def _solve(observations: Iterable[Observation], what: str) -> dict[str, float]:
    return solve_rates([(one.terms, one.seconds) for one in observations if one.what == what])


def _seconds(pulse: Measured) -> float:
    return next(one.seconds for one in pulse.times if one.what == "decode")


def _change(seconds: Collection[float], least: float = 1.0) -> float:
    return max(max(seconds) / min(seconds), least)
