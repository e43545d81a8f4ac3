"""Finding the settings that make a model fastest here and now, within a budget of time.

Settings that belong together are tried together, one group after the other, each against what the groups before it
left: how threads wait and how many there are; how weights lie in memory; attention and its caches; batches of the
prompt. What was found is then measured against llama.cpp's defaults once more, side by side, and kept only where it is
faster. Only speed is tuned: what `eval` and `route` measure has numerics of its own, which nothing here changes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from dfqs.errors import RuntimeFailure
from dfqs.hardware import Machine, available_memory_bytes
from dfqs.model.files import ModelFiles
from dfqs.planning.candidates import (
    attention_candidates,
    batch_candidates,
    memory_candidates,
    stream_candidates,
    thread_candidates,
    ways_beside_others,
)
from dfqs.planning.halving import Challenge, Ratio, choose, compare
from dfqs.planning.numerics import OutputNoise, measure_noise
from dfqs.planning.search import Measure, Search, timing_of
from dfqs.planning.settings import RunSettings, default_settings
from dfqs.planning.trials import Trial, Workload, run_trials
from dfqs.planning.tuning import (
    Gain,
    TunedSpeed,
    Tuning,
    describe_settings,
    identify_model,
)
from dfqs.progress import Progress, no_progress
from dfqs.runtime.choice import runtime_name
from dfqs.runtime.loading import LoadOrder
from dfqs.runtime.omp_policy import BUSY_CPUS
from dfqs.streaming.budget import Streamed, least_cache_bytes
from dfqs.streaming.layout import plan_layout
from dfqs.units import format_duration

DEFAULT_BUDGET_S = 180.0
REQUEST, PILOT, SHORTEST = Workload(512, 64), Workload(64, 4), Workload(16, 4)
LONGEST_PART_S = 1.0
"""Of a request that is measured: neither prompt nor answer takes much longer, or few settings could be tried."""
LEAST_PROMPT, LEAST_ANSWER = 64, 16
LEAST_REQUESTS = 8
"""A budget must have room for: a few pairs of the defaults and one challenger."""
FINAL_SHARE, FINAL_PAIRS = 0.35, 12
CRAWLS, CRAWL_SHARE = 3.0, 1 / 60
"""Where the defaults are so many times slower than `adaptive`, beside others, and a short request takes them more than
this share of the budget, the search begins there."""
STEADY = 1.10
"""A machine whose default request varies by more is said to change its speed."""
_F16 = ("f16", "f16")

NoiseOf = Callable[[Sequence[tuple[str, str]]], OutputNoise]


@dataclass(frozen=True, slots=True)
class TuneJob:
    """What to tune, and for which request."""

    model: ModelFiles
    machine: Machine
    workload: Workload = REQUEST
    budget_s: float = DEFAULT_BUDGET_S
    threads: int | None = None
    """Of the defaults; None: one a physical core."""
    order: LoadOrder | None = None
    """How to load a model that streams, or lies in memory already."""


def tune(job: TuneJob, progress: Progress = no_progress) -> Tuning:
    """Find the fastest settings for a model on this machine as it is now; nothing is stored.

    Args:
        progress: in seconds of the budget.

    Raises:
        RuntimeFailure: not even the defaults can be measured, or not in the time that there is.
        WorkerCrash: llama.cpp died over them.
    """

    def measure(settings: Sequence[RunSettings], workload: Workload) -> list[Trial]:
        return run_trials(job.model.path, settings, workload, job.order)

    return tune_with(job, measure, lambda pairs: measure_noise(job.model.path, pairs), progress)


def tune_with(
    job: TuneJob,
    measure: Measure,
    noise_of: NoiseOf,
    progress: Progress = no_progress,
    clock: Callable[[], float] = time.monotonic,
) -> Tuning:
    """As `tune`, with whoever measures, and the clock, passed in."""
    defaults = default_settings(job.threads)
    started = clock()
    footing = _find_footing(job, measure, defaults, clock)
    workload = footing.workload
    search = Search(measure, job.budget_s, progress, clock, started, footing.cost_s)
    begun, ends = search.spent_s, job.budget_s * (1 - FINAL_SHARE)

    def run_group(
        name: str, holds: RunSettings, candidates: Sequence[RunSettings], until: float, request: Workload = workload
    ) -> RunSettings:
        deadline = begun + (ends - begun) * until
        results = search.try_all(name, holds, candidates, request, deadline)
        results = _without_changed_output(search, results, noise)
        chosen = choose(holds, results)
        search.keep(name, holds, results, chosen)
        return chosen

    noise = _LazyNoise(noise_of)
    holds = footing.base
    # Where the defaults crawl, so does all that spins.
    spins = footing.base == defaults
    holds = run_group("threads", holds, thread_candidates(holds, job.machine, busy=footing.busy, spins=spins), 0.35)
    if isinstance(job.order, Streamed):
        least = least_cache_bytes(plan_layout(job.model.headers), job.model.spec.experts_used)
        holds = run_group("streaming", holds, stream_candidates(holds, job.order, least), 0.7)
    elif job.order is None:
        ways = memory_candidates(holds, job.model.file_bytes, available_memory_bytes(), search.notes)
        holds = run_group("memory", holds, ways, 0.7)
    holds = run_group("attention", holds, attention_candidates(holds), 0.9)
    prompt_only = replace(workload, answer_tokens=1)
    holds = run_group("batches", holds, batch_candidates(holds, workload.prompt_tokens), 1.0, prompt_only)
    return _conclude(job, search, footing, holds, noise.found)


@dataclass(slots=True)
class _LazyNoise:
    """The model's noise floor, measured when other cache types turn out to be faster, and not before."""

    measure: NoiseOf
    found: OutputNoise | None = None


def _without_changed_output(
    search: Search, results: Sequence[Challenge[RunSettings]], noise: _LazyNoise
) -> list[Challenge[RunSettings]]:
    """Results whose caches leave the model's output within its noise floor."""

    def caches(result: Challenge[RunSettings]) -> tuple[str, str]:
        return result.settings.type_k, result.settings.type_v

    faster = sorted({caches(result) for result in results if result.is_promising} - {_F16})
    if noise.found is None and faster:
        noise.found = noise.measure(faster)
        for cache in noise.found.caches:
            if not cache.offered and cache.divergence_nats is not None:
                search.notes.append(
                    f"caches of type {cache.type_k}/{cache.type_v} are faster and not offered: they change the output "
                    f"by {cache.divergence_nats:.4f} nats a token, beyond this model's noise floor of "
                    f"{noise.found.floor_nats:.4f}"
                )
    known = noise.found.caches if noise.found is not None else ()
    offered = {_F16} | {(cache.type_k, cache.type_v) for cache in known if cache.offered}
    return [result for result in results if caches(result) in offered or not result.is_promising]


@dataclass(frozen=True, slots=True)
class _Footing:
    """What the search stands on."""

    base: RunSettings
    """Where it begins."""
    workload: Workload
    """The request, as long as asked for or as the budget allows."""
    final: Workload
    """With which the result is held against the defaults."""
    busy: bool
    """Others keep CPUs busy."""
    cost_s: float
    """To measure one request."""
    default_cost_s: float
    """Of the last one, under the defaults."""
    crawling: tuple[Trial, Trial] | None = None
    """Where the defaults crawl: the short request under `base`, and under them. That they lose is settled then."""


def _find_footing(job: TuneJob, measure: Measure, defaults: RunSettings, clock: Callable[[], float]) -> _Footing:
    """Look at a short request first.

    Raises:
        RuntimeFailure: llama.cpp cannot run it, or the budget is too short.
    """
    trained = job.model.spec.context_tokens or PILOT.context_tokens
    pilot = Workload(max(1, min(PILOT.prompt_tokens, trained - PILOT.answer_tokens)), PILOT.answer_tokens)
    begun = clock()
    found = measure([defaults], pilot)
    if not found:
        raise RuntimeFailure(
            "llama.cpp cannot run this model with its default settings, so there is nothing to tune; "
            "'dfqs run' says what is wrong"
        )
    base, trial, pilot_cost_s = defaults, found[0], clock() - begun
    default_cost_s, busy, crawling = pilot_cost_s, trial.other_cpus >= BUSY_CPUS, None
    slow_s = timing_of(trial).total_s
    if busy and slow_s > CRAWL_SHARE * job.budget_s:
        for way in ways_beside_others(defaults):
            begun = clock()
            others = measure([way], pilot)
            if others and CRAWLS * timing_of(others[0]).total_s < slow_s:
                crawling = (others[0], found[0])
                base, trial, pilot_cost_s = way, others[0], clock() - begun
                break
    prompt_token_s, answer_token_s = trial.prompt_s / pilot.prompt_tokens, trial.answer_s / pilot.answer_tokens
    longest_s = min(LONGEST_PART_S, job.budget_s / 120)
    answer = min(job.workload.answer_tokens, max(int(longest_s / answer_token_s), LEAST_ANSWER), max(trained // 2, 1))
    prompt = max(int(longest_s / prompt_token_s) // 64 * 64, LEAST_PROMPT)
    prompt = max(1, min(job.workload.prompt_tokens, prompt, trained - answer))
    request_s = prompt_token_s * prompt + answer_token_s * answer
    cost_s = pilot_cost_s - trial.prompt_s - trial.answer_s + request_s
    if LEAST_REQUESTS * cost_s > job.budget_s:
        raise RuntimeFailure(
            f"one request takes {format_duration(cost_s)} to measure here, so that "
            f"{format_duration(job.budget_s)} are too short to compare anything; give it "
            f"--budget {int(LEAST_REQUESTS * 4 * cost_s) // 60 + 1}m"
        )
    workload = Workload(prompt, answer, 2 * answer_token_s * answer)
    final, default_cost_s = (workload, cost_s) if base == defaults else (SHORTEST, default_cost_s)
    return _Footing(base, workload, final, busy, cost_s, default_cost_s, crawling)


def _conclude(job: TuneJob, search: Search, footing: _Footing, found: RunSettings, noise: OutputNoise | None) -> Tuning:
    """Measure what was found against the defaults once more, and keep it only where it is faster."""
    defaults, workload = default_settings(job.threads), footing.final
    if footing.crawling is not None:
        search.expect((footing.default_cost_s + footing.cost_s) / 2)
    pairs: list[tuple[Trial, Trial]] = []
    while len(pairs) < (FINAL_PAIRS if found != defaults else 3):
        # Whether the one or the other comes first alternates.
        order = dict.fromkeys([found, defaults] if len(pairs) % 2 else [defaults, found])
        trials = search.measure_once(list(order), workload, job.budget_s, "against the defaults")
        if trials is None:
            break
        if found in trials and defaults in trials:
            pairs.append((trials[found], trials[defaults]))
    if not pairs and footing.crawling is not None:
        # It did no worse than where the search began, and that was held against the defaults at the start.
        pairs = [footing.crawling]
    if not pairs:
        raise RuntimeFailure("the budget ended before anything could be compared; give it more (--budget)")
    result = compare(found, [(timing_of(mine), timing_of(theirs)) for mine, theirs in pairs])
    # Few pairs can be measured of what crawls, and few are needed.
    is_better = result.is_better or (footing.crawling is not None and result.total.mean * CRAWLS < 1)
    if footing.crawling is not None:
        search.notes.append(
            f"beside others llama.cpp's defaults take {result.total.inverse.mean:.0f} x the time over a short request; "
            "what spins was not tried"
        )
    if found != defaults and not is_better:
        search.notes.append(f"{describe_settings(found, defaults)}: no faster in the end, so the defaults stay")
    if found == defaults or not is_better:
        pairs = [(theirs, theirs) for _, theirs in pairs]
        same = Ratio(1.0, None, None, len(pairs))
        result = Challenge(defaults, same, same, same)
    return _record(job, search, workload, pairs, result, noise)


def _record(
    job: TuneJob,
    search: Search,
    workload: Workload,
    pairs: Sequence[tuple[Trial, Trial]],
    result: Challenge[RunSettings],
    noise: OutputNoise | None,
) -> Tuning:
    final_s = [timing_of(theirs).total_s for _, theirs in pairs]
    drift = max(final_s) / min(final_s)
    if drift > STEADY:
        search.notes.append(
            f"the machine changed its speed while it was measured (the same request took {min(final_s):.2f} to "
            f"{max(final_s):.2f} s): tune again when it is quiet to be surer"
        )
    looked = [trial for pair in pairs for trial in pair]
    others = median([trial.other_cpus for trials in (looked, *search.trials.values()) for trial in trials])
    return Tuning(
        model=identify_model(job.model),
        machine=job.machine.speed_conditions(),
        runtime=runtime_name(),
        busy=others >= BUSY_CPUS,
        other_cpus=others,
        streamed=job.order is not None and job.order.is_streamed,
        prompt_tokens=workload.prompt_tokens,
        answer_tokens=workload.answer_tokens,
        budget_s=job.budget_s,
        spent_s=search.spent_s,
        settings=result.settings,
        defaults=default_settings(job.threads),
        speed=_speed([mine for mine, _ in pairs], workload),
        default_speed=_speed([theirs for _, theirs in pairs], workload),
        gain=Gain.of(result.total),
        prompt_gain=Gain.of(result.prompt),
        answer_gain=Gain.of(result.answer),
        drift=drift,
        noise=noise,
        tried=tuple(search.tried),
        notes=tuple(dict.fromkeys(search.notes)),
    )


def _speed(trials: Sequence[Trial], workload: Workload) -> TunedSpeed:
    """Medians."""
    return TunedSpeed(
        prompt_tokens_per_s=workload.prompt_tokens / median([trial.prompt_s for trial in trials]),
        answer_tokens_per_s=workload.answer_tokens / median([trial.answer_s for trial in trials]),
        load_s=median([trial.load_s for trial in trials]),
    )
