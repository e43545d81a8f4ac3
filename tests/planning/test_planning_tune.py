"""Tuning on machines of known speed: it finds what is faster, keeps what is not worse, and ends in time."""

from dataclasses import replace
from pathlib import Path

import pytest

from dfqs.errors import RuntimeFailure
from dfqs.hardware import Machine, read_machine
from dfqs.model.files import ModelFiles, open_model
from dfqs.planning.candidates import (
    batch_candidates,
    memory_candidates,
    stream_candidates,
    thread_candidates,
    thread_counts,
)
from dfqs.planning.halving import Timing, challenge, choose, mean_ratio
from dfqs.planning.settings import RunSettings, default_settings
from dfqs.planning.tune import TuneJob, tune_with
from dfqs.planning.tuning import Tuning
from dfqs.runtime.loading import Mapped
from dfqs.streaming.budget import Streamed
from dfqs.streaming.settings import StreamSettings
from planning_machine import PretendMachine, noise_of


@pytest.fixture(scope="module")
def model(smollm2_gguf: Path) -> ModelFiles:
    return open_model(smollm2_gguf)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return read_machine().model_copy(update={"allowed_cpus": 8, "physical_cores": 8, "cpu_quota": None})


def job_of(model: ModelFiles, machine: Machine, budget_s: float = 400.0) -> TuneJob:
    return TuneJob(model, machine, budget_s=budget_s, threads=8)


def tune_on(pretend: PretendMachine, job: TuneJob, floor: float = 0.05) -> Tuning:
    return tune_with(job, pretend.measure, noise_of(floor, f16=0.01, q8_0=0.02), clock=pretend.clock)


def usual(settings: RunSettings) -> tuple[float, float]:
    """Six threads are best for the answer; flash attention costs; small batches cost."""
    prompt = 400.0 * settings.threads_batch / 8 * (1.0 if settings.n_ubatch >= 256 else 0.6)
    answer = 40.0 - 2 * abs(settings.threads - 6)
    if settings.flash_attention == "off":
        prompt, answer = prompt * 1.1, answer * 1.1
    if settings.omp_wait_policy == "passive":
        answer /= 2
    if settings.type_v == "q8_0":
        answer *= 1.4
    return prompt, answer


@pytest.mark.parametrize("seed", range(6))
def test_it_finds_what_is_fastest_on_a_noisy_machine(model: ModelFiles, machine: Machine, seed: int) -> None:
    pretend = PretendMachine(usual, noise=0.03, seed=seed)

    found = tune_on(pretend, job_of(model, machine))

    assert found.settings.threads == 6
    assert found.settings.threads_batch == 8, "the prompt wants all of them"
    assert found.settings.type_v == "q8_0"
    assert found.gain.mean > 1.1
    assert found.gain.low is not None
    assert found.gain.low > 1
    prompt, answer = usual(found.settings)
    assert found.answer_gain.mean == pytest.approx(answer / usual(found.defaults)[1], rel=0.06)
    assert prompt >= usual(found.defaults)[0]


def test_caches_that_change_the_output_beyond_the_noise_floor_are_not_offered(
    model: ModelFiles, machine: Machine
) -> None:
    found = tune_on(PretendMachine(usual), job_of(model, machine), floor=0.015)

    assert found.settings.type_v == "f16"
    assert found.noise is not None
    assert any("beyond this model's noise floor of 0.0150" in note for note in found.notes)


def test_where_nothing_is_faster_the_defaults_stay(model: ModelFiles, machine: Machine) -> None:
    found = tune_on(PretendMachine(lambda _: (300.0, 30.0), noise=0.05), job_of(model, machine))

    assert found.settings == found.defaults == default_settings(8)
    assert found.gain.mean == 1.0


def test_what_is_faster_for_prompts_and_slower_for_answers_is_not_taken(model: ModelFiles, machine: Machine) -> None:
    def speeds(settings: RunSettings) -> tuple[float, float]:
        return (900.0, 27.0) if settings.flash_attention == "off" else (300.0, 30.0)

    assert tune_on(PretendMachine(speeds), job_of(model, machine)).settings.flash_attention == "auto"


def test_settings_that_llama_cpp_refuses_or_dies_of_are_no_candidates(model: ModelFiles, machine: Machine) -> None:
    def speeds(settings: RunSettings) -> tuple[float, float]:
        if settings.load_mode == "none" or settings.type_k == "q8_0":
            return 0.0, 0.0
        return usual(settings)

    found = tune_on(PretendMachine(speeds), job_of(model, machine))

    assert (found.settings.load_mode, found.settings.type_k) == ("auto", "f16")
    assert found.settings.flash_attention == "off"


@pytest.mark.parametrize("budget_s", [30.0, 60.0, 200.0, 1000.0])
def test_it_ends_within_its_budget(model: ModelFiles, machine: Machine, budget_s: float) -> None:
    pretend = PretendMachine(usual, noise=0.02)

    found = tune_on(pretend, job_of(model, machine, budget_s))

    assert pretend.now <= budget_s + 5
    assert found.spent_s <= budget_s + 5


def test_a_budget_that_compares_nothing_is_refused_with_one_that_does(model: ModelFiles, machine: Machine) -> None:
    with pytest.raises(RuntimeFailure, match=r"one request takes .* give it --budget \d+m"):
        tune_on(PretendMachine(lambda _: (2.0, 0.5)), job_of(model, machine, 60.0))


def test_a_model_that_cannot_run_at_all_is_said_to_be_so(model: ModelFiles, machine: Machine) -> None:
    with pytest.raises(RuntimeFailure, match="nothing to tune"):
        tune_on(PretendMachine(lambda _: (0.0, 0.0)), job_of(model, machine))


def test_a_machine_that_changes_its_speed_is_told(model: ModelFiles, machine: Machine) -> None:
    found = tune_on(PretendMachine(usual, noise=0.2), job_of(model, machine))

    assert found.drift > 1.1
    assert any("changed its speed" in note for note in found.notes)


def test_a_busy_machine_is_recorded_as_one(model: ModelFiles, machine: Machine) -> None:
    assert tune_on(PretendMachine(usual, other_cpus=1.0), job_of(model, machine)).busy
    assert not tune_on(PretendMachine(usual, other_cpus=0.1), job_of(model, machine)).busy


def test_beside_others_it_ends_in_time_though_the_defaults_crawl(model: ModelFiles, machine: Machine) -> None:
    """Threads that spin for each other on a shared machine: 0.4 tokens a second were seen where 30 are possible."""

    def speeds(settings: RunSettings) -> tuple[float, float]:
        prompt, answer = usual(settings)
        return (prompt, answer) if settings.omp_wait_policy in ("adaptive", "passive") else (3.0, 1.0)

    pretend = PretendMachine(speeds, noise=0.03, other_cpus=1.0)
    found = tune_on(pretend, job_of(model, machine, 180.0))

    assert found.settings.omp_wait_policy == "adaptive"
    assert found.settings.threads == 6
    assert found.gain.mean > 10
    assert found.gain.low is not None and found.gain.low > 5
    assert pretend.now <= 185
    assert any("x the time over a short request" in note for note in found.notes)


def test_beside_a_core_that_is_busy_all_the_time_it_begins_with_the_threads_that_have_cores(
    model: ModelFiles, machine: Machine
) -> None:
    """Sleeping threads were no faster there than spinning ones, and 90 s were said to be too few."""

    def speeds(settings: RunSettings) -> tuple[float, float]:
        crowded = settings.threads == 8
        return (8.0, 0.8) if crowded else (300.0, 30.0)

    found = tune_on(PretendMachine(speeds, other_cpus=0.7), job_of(model, machine, 90.0))

    assert found.settings.threads < found.defaults.threads
    assert found.gain.mean > 5


def test_defaults_that_take_all_the_time_lose_by_the_first_look(model: ModelFiles, machine: Machine) -> None:
    def speeds(settings: RunSettings) -> tuple[float, float]:
        return (400.0, 40.0) if settings.omp_wait_policy in ("adaptive", "passive") else (2.0, 0.2)

    found = tune_on(PretendMachine(speeds, other_cpus=1.0), job_of(model, machine, 90.0))

    assert found.settings.omp_wait_policy == "adaptive"
    assert (found.gain.pairs, found.gain.low) == (1, None)
    assert found.gain.mean > 20


def test_a_short_look_at_a_fast_model_settles_nothing(model: ModelFiles, machine: Machine) -> None:
    """Milliseconds beside others differ by any factor: it was taken for a crawl, and 0.10 x for a gain."""

    def speeds(settings: RunSettings) -> tuple[float, float]:
        slow = settings.omp_wait_policy == "default" and len(pretend.measured) < 2
        return (300.0, 30.0) if slow else (3000.0, 300.0)

    pretend = PretendMachine(speeds, noise=0.05, other_cpus=1.0)
    found = tune_on(pretend, job_of(model, machine))

    assert found.settings == found.defaults
    assert not any("short request" in note for note in found.notes)


def test_how_experts_come_from_disk_is_tuned_where_they_do(model: ModelFiles, machine: Machine) -> None:
    order = Streamed((model.path,), StreamSettings(100_000_000))

    def speeds(settings: RunSettings) -> tuple[float, float]:
        prompt, answer = usual(settings)
        return prompt, answer * (1.3 if settings.streaming == "hints" else 1.0) * settings.cache_share

    pretend = PretendMachine(speeds, noise=0.02)
    job = replace(job_of(model, machine), order=order)
    found = tune_with(job, pretend.measure, noise_of(0.05, q8_0=0.9), clock=pretend.clock)

    assert found.streamed
    assert (found.settings.streaming, found.settings.cache_share) == ("hints", 1.0)
    assert {one.stage for one in found.tried} >= {"threads", "streaming", "attention"}
    assert "memory" not in {one.stage for one in found.tried}
    assert found.settings.order_within(order) == replace(order, settings=replace(order.settings, hints=True))


def test_a_cache_below_a_tokens_experts_is_no_candidate() -> None:
    order = Streamed((Path("m.gguf"),), StreamSettings(1000))
    holds = default_settings(2)

    assert [one.cache_share for one in stream_candidates(holds, order, 600)] == [1.0, 0.75]
    hinted = stream_candidates(holds, replace(order, settings=replace(order.settings, hints=True)), 0)
    assert [(one.streaming, one.cache_share) for one in hinted] == [("auto", 0.75), ("auto", 0.5)]
    assert holds.but(cache_share=0.5).order_within(order) == replace(
        order, settings=replace(order.settings, cache_bytes=500)
    )
    assert holds.order_within(Mapped()) == Mapped()
    assert holds.order_within(None) == holds.order


def test_a_file_that_is_in_memory_already_is_not_taken_for_one_that_streams(
    model: ModelFiles, machine: Machine
) -> None:
    """Looked up as one that does not stream, it would never have been found."""
    pretend = PretendMachine(usual)
    job = replace(job_of(model, machine), order=Mapped())
    found = tune_with(job, pretend.measure, noise_of(0.05, q8_0=0.9), clock=pretend.clock)

    assert not found.streamed
    assert {"memory", "streaming"}.isdisjoint({one.stage for one in found.tried})


def test_a_round_in_which_everything_is_slow_decides_nothing() -> None:
    factors = iter([1.0, 5.0, 1.0, 1.0])
    own = iter([0.89, 0.9, 0.91, 0.9])

    def measure(keys: object) -> dict[str, Timing]:
        factor = next(factors)
        return {"holds": Timing(1.0 * factor, 1.0 * factor), "faster": Timing(*[next(own) * factor] * 2)}

    results = challenge("holds", ["faster"], measure)

    assert results[0].total.mean == pytest.approx(0.9, rel=0.01)
    assert choose("holds", results) == "faster"


def test_an_interval_needs_two_pairs_and_grows_with_their_spread() -> None:
    assert mean_ratio([0.9]).low is None
    narrow, wide = mean_ratio([0.9, 0.91, 0.9]), mean_ratio([0.8, 0.9, 1.01])
    assert narrow.high is not None and wide.high is not None
    assert narrow.high < 0.95 < wide.high
    # Student's t of two degrees of freedom is 4.303.
    assert mean_ratio([1.0, 1.0]).low == 1.0


def test_threads_that_are_tried_are_ones_that_the_machine_has(machine: Machine) -> None:
    assert thread_counts(8, machine) == (4, 6, 7, 8)
    assert thread_counts(1, replace_cpus(machine, 1)) == (1,)
    assert thread_counts(4, replace_cpus(machine, 8)) == (2, 3, 4, 8)
    limited = machine.model_copy(update={"cpu_quota": 2.5})
    assert 2 in thread_counts(8, limited)
    policies = {one.omp_wait_policy for one in thread_candidates(default_settings(8), machine, busy=False)}
    assert policies == {"adaptive", "active", "passive"}


def replace_cpus(machine: Machine, cpus: int) -> Machine:
    return machine.model_copy(update={"allowed_cpus": cpus})


def test_weights_are_not_copied_where_there_is_no_memory_for_it() -> None:
    notes: list[str] = []

    found = memory_candidates(default_settings(2), 60_000, 50_000, notes, "always [madvise] never")

    assert [one.load_mode for one in found] == ["auto"]
    assert notes == ["weights stay in the page cache: there is no memory to copy them to"]
    assert len(memory_candidates(default_settings(2), 60_000, 500_000, [], "always [madvise] never")) == 6
    assert not any(one.huge_pages for one in memory_candidates(default_settings(2), 1, 2, [], "[always] madvise"))


def test_batches_beyond_the_prompt_are_not_told_apart() -> None:
    holds = default_settings(2)

    assert [one.n_ubatch for one in batch_candidates(holds, 512)] == [64, 128, 256]
    assert [one.n_ubatch for one in batch_candidates(holds, 1024)] == [64, 128, 256, 1024]
    assert [one.n_ubatch for one in batch_candidates(holds.but(n_ubatch=64), 64)] == []


def test_loading_that_takes_long_must_be_won_back(model: ModelFiles, machine: Machine) -> None:
    pretend = PretendMachine(lambda s: (310.0, 31.0) if s.load_mode == "none" else (300.0, 30.0))

    def measure(settings, workload):  # type: ignore[no-untyped-def]
        return [
            replace(trial, load_s=60.0) if trial.settings.load_mode == "none" else trial
            for trial in pretend.measure(settings, workload)
        ]

    found = tune_with(job_of(model, machine), measure, noise_of(0.05), clock=pretend.clock)

    assert found.settings.load_mode == "auto"
