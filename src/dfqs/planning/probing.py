"""Measuring random models: in a worker, as any model is run, all of them in turn and often.

Processors that are shared with others change their speed within seconds (docs/forecast.md). So no time stands for
itself: all probes are open at once, each is looked at for a part of a second in every round, and of the rounds the
middle counts. It is done when the middles are known well enough, which on a machine of its own is soon.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import ceil, inf, sqrt
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Literal

from dfqs.errors import RuntimeFailure
from dfqs.gguf import GGMLType, read_header
from dfqs.planning.probe_models import ProbeShape, write_probe
from dfqs.planning.work import (
    GraphSize,
    Terms,
    Work,
    WorkKey,
    count_passed_work,
    count_work,
    decode_terms,
    prompt_terms,
)
from dfqs.quantize.kernels import Kernels
from dfqs.runtime.context import Context, Model
from dfqs.runtime.omp_policy import LoadSample, other_cpus
from dfqs.runtime.timing import time_decode, time_prefill
from dfqs.runtime.worker_context import WorkerContext

DECODE_TOKENS = 12
DEEP_EVERY = 3
"""Rounds: prompts other than the first, which take most of the time, are looked at in every third."""
LEAST_DEEP = 3
"""Looks at any time, before it can be known how much they differ."""
SETTLED = 0.03
"""Standard error of nearly all middles, as a share."""
_NEARLY_ALL = 0.9
_MIDDLE_ERROR = 1.25
"""Standard error of a median, in those of a mean (normal)."""
_WARM_UP_TOKENS = 32

What = Literal["decode", "prompt"]


@dataclass(frozen=True, slots=True)
class Probe:
    """A random model, and what is measured of it."""

    name: str
    shape: ProbeShape
    type_: GGMLType
    dense: GGMLType | None
    """Type of what are no experts; None: `type_`."""
    prompts: tuple[int, ...]
    """Lengths of prompts in tokens; behind each of them tokens are decoded."""


@dataclass(slots=True)
class Timed:
    """One time, looked at again and again."""

    probe: str
    what: What
    tokens: int
    terms: Terms
    looks: list[float] = field(default_factory=list)
    """Seconds of a token."""

    @property
    def seconds(self) -> float:
        return median(self.looks)

    @property
    def spread(self) -> float:
        """The slowest look as a multiple of the fastest."""
        return max(self.looks) / min(self.looks)

    @property
    def standard_error(self) -> float:
        """Of `seconds`, as a share of it; infinite for a single look."""
        if len(self.looks) < 2:
            return inf
        return _MIDDLE_ERROR * stdev(self.looks) / fmean(self.looks) / sqrt(len(self.looks))


@dataclass(frozen=True, slots=True)
class Measured:
    """All probes' times."""

    times: tuple[Timed, ...]
    other_cpus: float
    drift: float
    """The later half's times as a multiple of the earlier half's, or the other way round: above 1."""


def measure_probes(
    worker: WorkerContext, directory: Path, probes: Sequence[Probe], least_s: float, most_s: float
) -> Measured:
    """In the worker: rounds over all probes, from `least_s` on until times are settled, and no longer than `most_s` by
    much. Emits (seconds, name)."""
    started = time.monotonic()
    with ExitStack() as stack:
        opened = []
        for probe in probes:
            worker.emit((time.monotonic() - started, probe.name))
            opened.append(_open(worker, directory / "probe.gguf", probe, stack))
        began = LoadSample()
        times = _measure_rounds(
            opened, started + least_s, started + most_s, lambda name: worker.emit((time.monotonic() - started, name))
        )
        return Measured(times, other_cpus(began), drift_of(times))


class _Opened:
    """A probe that is loaded, and what its times are made of."""

    def __init__(self, probe: Probe, context: Context, once: dict[WorkKey, Work], passed: dict[WorkKey, Work]) -> None:
        self.probe = probe
        self._context = context
        nodes = context.graph_nodes
        if nodes is None:
            raise RuntimeFailure("llama.cpp does not say how many nodes its graph has")

        def graph(behind: float) -> GraphSize:
            attended = behind * probe.shape.layers * probe.shape.heads
            return GraphSize(nodes, attended, attended * probe.shape.head)

        self._times = {
            tokens: (
                Timed(probe.name, "prompt", tokens, prompt_terms(once, passed, graph(tokens / 2), tokens)),
                Timed(probe.name, "decode", tokens, decode_terms(once, graph(tokens + DECODE_TOKENS / 2))),
            )
            for tokens in probe.prompts
        }

    @property
    def times(self) -> Iterator[Timed]:
        for pair in self._times.values():
            yield from pair

    def look(self, *, deep: bool) -> None:
        """At the first prompt, or at all of them, and at the tokens behind."""
        for tokens in self.probe.prompts if deep else self.probe.prompts[:1]:
            prompt, decode = self._times[tokens]
            prompt.looks.append(time_prefill(self._context, tokens) / tokens)
            decode.looks.append(fmean(time_decode(self._context, tokens, DECODE_TOKENS)))


def _open(worker: WorkerContext, path: Path, probe: Probe, stack: ExitStack) -> _Opened:
    """Write a random model to `path` and load it; the file has no name from then on."""
    shape = probe.shape
    try:
        write_probe(path, Kernels(worker.library), shape, probe.type_, probe.dense)
        tensors = read_header(path).tensors
        model = stack.enter_context(Model(worker.library, path))
    finally:
        path.unlink(missing_ok=True)
    room = max(probe.prompts) + DECODE_TOKENS
    context = stack.enter_context(Context(model, room, threads=worker.threads))
    time_prefill(context, _WARM_UP_TOKENS)
    once = count_work(tensors, shape.experts, shape.used)
    return _Opened(probe, context, once, count_passed_work(tensors, shape.experts, shape.used))


def _measure_rounds(
    opened: Sequence[_Opened], least: float, most: float, tell: Callable[[str], None]
) -> tuple[Timed, ...]:
    times = [one for each in opened for one in each.times]
    number = 0
    while True:
        for each in opened:
            tell(each.probe.name)
            each.look(deep=number % DEEP_EVERY == 0)
        number += 1
        # Whole cycles: what is looked at seldom must not be so at the start alone.
        now = time.monotonic()
        if number % DEEP_EVERY == 0 and now > least and (now > most or is_settled(times)):
            return tuple(times)


def is_settled(times: Collection[Timed]) -> bool:
    """Whether nearly all times are known well enough."""
    if min(len(one.looks) for one in times) < LEAST_DEEP:
        return False
    errors = sorted(one.standard_error for one in times)
    return errors[ceil(_NEARLY_ALL * len(errors)) - 1] <= SETTLED


def drift_of(times: Collection[Timed]) -> float:
    """By how much the later half of all looks was slower or faster than the earlier, over all times; 1: not at all."""
    ratios = [
        fmean(one.looks[len(one.looks) // 2 :]) / fmean(one.looks[: len(one.looks) // 2])
        for one in times
        if len(one.looks) > 1
    ]
    if not ratios:
        return 1.0
    ratio = median(ratios)
    return max(ratio, 1 / ratio)
