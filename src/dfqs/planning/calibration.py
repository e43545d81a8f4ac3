"""`dfqs.calibration/1`: how fast this machine does each kind of work of a graph, measured on random models.

Kinds: reading a weight (for each type, in plain matrices and in experts' stacks; for one token and in batches),
getting from node to node of the graph, and attention behind a context. None is measured on the model that a forecast is
for.
"""

import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from math import exp, hypot, isfinite
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import Field

from dfqs.errors import DfqsError, SpaceError
from dfqs.gguf import GGMLType
from dfqs.hardware import measure_read_bandwidth, read_machine
from dfqs.planning.probe_models import ATTENTION, DENSE, EXPERTS, NODES, PULSE, ProbeShape, probe_bytes
from dfqs.planning.probing import Measured, Probe, Timed, measure_probes
from dfqs.planning.rates import seconds_of, solve_rates
from dfqs.planning.work import Kind, WorkKey, weights_term
from dfqs.processors import default_threads
from dfqs.progress import Progress, in_stages, no_progress
from dfqs.records import Amount, AtLeastOne, Document, Record, Text, read_json, sha256_of, write_json
from dfqs.runtime.choice import runtime_name
from dfqs.runtime.omp_policy import BUSY_CPUS
from dfqs.runtime.worker import Worker
from dfqs.storage.cache import NoHome, cache_directory
from dfqs.storage.space import require_space
from dfqs.units import format_bytes

PROBE_WEIGHTS, PROBE_BYTES = 160_000_000, 160 << 20
SHORT_TOKENS, BATCH_TOKENS, DEEP_TOKENS = 64, 256, 1536
BUDGET_S, PULSE_S = 240.0, 6.0
"""For everything, or for what a record does not have yet; and to see whether the machine is as fast as it was."""
WAIT_POLICY = "bounded"
"""Of the threads: what a quiet machine is run with."""
OTHER_MACHINE = 1.15
"""By so much slower or faster, a machine is not the one that was calibrated."""
ALWAYS: tuple[WorkKey, ...] = ((GGMLType.F32, "dense"), (GGMLType.Q8_0, "dense"))
"""Types that every probe has something of."""
_METHOD = "middles of rounds; of a prompt's last layer only what is computed"
"""Records that were made in another way are not used."""
_PULSE = "pulse"
_CHANCE = 2.0
"""Standard errors within which two times do not differ."""
_FAR_OFF = 100.0
"""By so much a record's rates do not miss its own times, unless somebody wrote into it."""


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
    """Of one token; the middle of several looks with all else in between."""
    spread: Amount
    """Of those looks: the slowest as a multiple of the fastest."""
    standard_error: Amount | None = None
    """Of `seconds`, as a share of it. Null: not known."""


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
    other_cpus_now: Amount | None = None
    """The same when a record was used again: rates are of a machine without them. Null: it was made just now."""
    read_bytes_per_s: Amount
    """Memory read by as many threads from arrays far larger than caches."""
    observations: tuple[Observation, ...]
    decode_ns: dict[str, Amount]
    """Nanoseconds: of a byte of weights by type and kind, of a node of the graph, of an entry attended to, and of each
    element of it. The sums that come nearest to all observations."""
    prompt_ns: dict[str, Amount]
    """The same for a token of a batch; of weights by the weight."""
    pulse_s: Amount
    """A token of the probe that is measured again at every forecast."""
    change: Amount
    """How much slower or faster the machine became, above 1: from the first half of the measurement to the second, and
    of that probe since, as far as it is more than chance."""
    spread: Amount
    """Of looks, the median of all observations."""

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
        progress: in seconds of the budget; often it needs fewer.
        again: measure everything, whatever there is.

    Raises:
        RuntimeFailure: llama.cpp failed on a probe.
        SpaceError: there is no room for the probes' files.
    """
    count, progress = threads or default_threads(), in_stages(progress)
    machine, runtime = read_machine().speed_conditions(), runtime_name()
    found, change = None, 1.0
    with contextlib.suppress(NoHome):
        found = None if again else _read_record(calibration_path(machine, runtime, count))
    with tempfile.TemporaryDirectory(prefix="dfqs-probe-") as directory, Worker(count, WAIT_POLICY) as worker:
        place = Path(directory)
        if found is not None:
            pulse = _measure(worker, place, [_pulse()], (PULSE_S, PULSE_S), progress)
            # What it does beside others says nothing of the machine itself.
            change = 1.0 if pulse.other_cpus >= BUSY_CPUS else _change_since(found, pulse)
            if all(found.has(key) for key in wanted):
                return found.model_copy(
                    update={"change": max(change, found.change), "other_cpus_now": pulse.other_cpus}
                )
            if change >= OTHER_MACHINE:
                # What was measured on another machine does not go together with what is measured now.
                found, change = None, 1.0
        missing = [key for key in sorted({*wanted, *ALWAYS}) if found is None or not found.has(key)]
        probes = [*((_pulse(), *_base_probes()) if found is None else ()), *map(_type_probe, missing)]
        measured = _measure(worker, place, probes, (0.0, BUDGET_S), progress)
    observations = (*(() if found is None else found.observations), *map(_observation, measured.times))
    calibration = Calibration(
        machine=machine,
        runtime=runtime,
        threads=count,
        omp_wait_policy=WAIT_POLICY,
        other_cpus=measured.other_cpus,
        read_bytes_per_s=measure_read_bandwidth(count),
        observations=observations,
        decode_ns=_solve(observations, "decode"),
        prompt_ns=_solve(observations, "prompt"),
        pulse_s=next(one.seconds for one in observations if _is_pulse(one)),
        change=max(measured.drift, change, 1.0 if found is None else found.change),
        spread=median(one.spread for one in observations),
    )
    if calibration.other_cpus < BUSY_CPUS and calibration.change < OTHER_MACHINE:
        _keep(calibration)
    return calibration


def _read_record(path: Path) -> Calibration | None:
    """What is known of this machine; None where that is nothing, or cannot have been measured here."""
    with contextlib.suppress(DfqsError, OSError):
        record = read_json(path, Calibration)
        if calibration_path(record.machine, record.runtime, record.threads) == path and _is_whole(record):
            return record
    return None


def _is_whole(record: Calibration) -> bool:
    """Whether it has the small probe, and rates that make about its own times."""

    def is_near(one: Observation) -> bool:
        rates = record.decode_ns if one.what == "decode" else record.prompt_ns
        told = seconds_of(one.terms, defaultdict(float, rates))
        return one.seconds / _FAR_OFF < told < one.seconds * _FAR_OFF

    return any(map(_is_pulse, record.observations)) and all(map(is_near, record.observations))


def _measure(
    worker: Worker, directory: Path, probes: Sequence[Probe], seconds: tuple[float, float], progress: Progress
) -> Measured:
    """In rounds, for so many seconds at least and at most; `progress` counts them.

    Raises:
        SpaceError: there is no room for all their files; names TMPDIR.
    """
    most = int(seconds[1])

    def tell(event: tuple[float, str]) -> None:
        progress(min(int(event[0]), most), most, event[1])

    needed = sum(probe_bytes(probe.shape, probe.type_, probe.dense) for probe in probes)
    advice = "this machine is measured with random models that lie there meanwhile; set TMPDIR to a directory with room"
    require_space(directory.parent, needed, advice)
    try:
        return worker.reporting(tell, doing="calibrating").call(measure_probes, directory, probes, *seconds)
    except SpaceError:
        # A quota, or somebody else who writes there.
        raise SpaceError(f"{directory.parent} has no room for {format_bytes(needed)}; {advice}") from None


def _change_since(record: Calibration, measured: Measured) -> float:
    """How much slower or faster the small probe is than it was, as far as it is more than chance; above 1."""
    now = next(one for one in measured.times if _is_pulse(one))
    before = next(one for one in record.observations if _is_pulse(one))
    ratio = max(now.seconds / before.seconds, before.seconds / now.seconds)
    return max(1.0, ratio * exp(-_CHANCE * hypot(now.standard_error, before.standard_error or 0.0)))


def _is_pulse(one: Timed | Observation) -> bool:
    return one.probe == _PULSE and one.what == "decode"


def _keep(calibration: Calibration) -> None:
    """For the next time; a machine that keeps nothing is measured again."""
    with contextlib.suppress(DfqsError, OSError):
        path = calibration_path(calibration.machine, calibration.runtime, calibration.threads)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, calibration, overwrite=True)


def calibration_path(machine: dict[str, Any], runtime: str, threads: int) -> Path:
    """Where a machine's record lies."""
    return cache_directory() / "calibrations" / f"{sha256_of([machine, runtime, threads, _METHOD])[:32]}.json"


def probe_shape(kind: Kind, type_: GGMLType) -> ProbeShape:
    """The random model that one type is measured on."""
    return (DENSE if kind == "dense" else EXPERTS).with_weights(type_, PROBE_WEIGHTS, PROBE_BYTES)


def _pulse() -> Probe:
    return Probe(_PULSE, PULSE, GGMLType.Q8_0, None, (SHORT_TOKENS,))


def _base_probes() -> list[Probe]:
    attention = [
        Probe(f"heads of {shape.head}", shape, GGMLType.Q8_0, None, (SHORT_TOKENS, DEEP_TOKENS)) for shape in ATTENTION
    ]
    return [Probe("nodes", NODES, GGMLType.Q8_0, None, (SHORT_TOKENS, BATCH_TOKENS)), *attention]


def _type_probe(key: WorkKey) -> Probe:
    type_, kind = key
    dense = GGMLType.Q8_0 if kind == "experts" else None
    return Probe(weights_term(type_, kind), probe_shape(kind, type_), type_, dense, (SHORT_TOKENS, BATCH_TOKENS))


def _observation(time: Timed) -> Observation:
    error = time.standard_error
    return Observation(
        probe=time.probe,
        what=time.what,
        tokens=time.tokens,
        terms=time.terms,
        seconds=time.seconds,
        spread=time.spread,
        standard_error=error if isfinite(error) else None,
    )


def _solve(observations: Iterable[Observation], what: str) -> dict[str, float]:
    return solve_rates([(one.terms, one.seconds) for one in observations if one.what == what])
