"""A streamed model says what the model in memory says, bit for bit, whatever fits into the cache."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import streaming_jobs
from dfqs.errors import RuntimeFailure, UsageError, WorkerCrash
from dfqs.gguf import read_header
from dfqs.runtime import Worker
from dfqs.shards.split import plan_split, split
from dfqs.streaming.layout import plan_layout
from fixtures_moe import write_tiny_moe
from runtime_functions import WORKER_ENV

ARCHITECTURES = ("qwen3moe", "gpt-oss", "llama4", "deepseek2", "grovemoe", "gemma4", "nemotron_h_moe", "lfm2moe")
TOKENS = [(7 * i * i + 13 * i) % 4000 for i in range(120)]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=2, omp_wait_policy="passive", env=WORKER_ENV) as running:
        yield running


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    path = tmp_path_factory.mktemp("streaming") / "model.gguf"
    return write_tiny_moe(path, smollm2_gguf, request.param, alignment=4096)


def streamed(
    worker: Worker, paths: Sequence[Path], cache_bytes: int, hints: bool = False, tokens: Sequence[int] = TOKENS
) -> streaming_jobs.Outcome:
    result: streaming_jobs.Outcome = worker.call(streaming_jobs.run_streamed, paths, tokens, cache_bytes, hints)
    return result


def test_streamed_logits_are_those_in_memory_with_no_one_ten_and_all_experts_cached(worker: Worker, tiny: Path) -> None:
    experts = plan_layout([read_header(tiny)]).experts
    one = max(pages.length for pages in experts.values())
    wanted = worker.call(streaming_jobs.run_in_memory, [tiny], TOKENS)

    for cached in (0, 1, 10, len(experts)):
        outcome = streamed(worker, [tiny], cached * one)
        counts = outcome.counts
        assert outcome.logits_sha256 == wanted.logits_sha256, f"{cached} experts cached"
        assert counts is not None
        assert counts.hits + counts.misses > 0
        assert (counts.uncached == counts.misses) == (cached == 0)
        # The forecast makes the cache's own decisions.
        assert outcome.forecast is not None
        assert (outcome.forecast.passes, outcome.forecast.hits) == (counts.passes, counts.hits)
        assert (outcome.forecast.misses, outcome.forecast.uncached) == (counts.misses, counts.uncached)
    assert counts is not None
    # With room for all, each expert is read once.
    assert counts.read_bytes <= sum(pages.length for pages in experts.values())
    assert counts.uncached == 0


def test_reading_what_is_guessed_changes_no_bit_and_no_decision_of_the_cache(worker: Worker, tiny: Path) -> None:
    layout = plan_layout([read_header(tiny)])
    wanted = worker.call(streaming_jobs.run_in_memory, [tiny], TOKENS)

    outcome = streamed(worker, [tiny], layout.experts_bytes - layout.largest_expert_bytes)

    assert outcome.logits_sha256 == wanted.logits_sha256
    assert outcome.counts is not None
    assert outcome.forecast is not None
    assert (outcome.forecast.hits, outcome.forecast.misses) == (outcome.counts.hits, outcome.counts.misses)
    assert outcome.guessed_bytes is not None
    read, used = outcome.guessed_bytes
    assert 0 <= used <= read


def test_a_batch_reads_each_slice_once_however_many_of_its_tokens_chose_it(worker: Worker, tiny: Path) -> None:
    layout = plan_layout([read_header(tiny)])

    for n_ubatch, passes in ((128, 1), (60, 2)):
        counts, chosen = worker.call(streaming_jobs.read_prompt, [tiny], TOKENS, layout.largest_layer_bytes, n_ubatch)

        assert counts.passes == len(chosen) == passes
        # Room for one layer, and none over: what a pass reads is what its layers chose, all of it once.
        wanted = [{(layer, expert) for layer, experts in one for expert in experts} for one in chosen]
        assert counts.uncached == 0
        assert counts.read_bytes <= sum(layout.sizes[key] for keys in wanted for key in keys if key in layout.sizes)
        assert counts.read_bytes <= passes * layout.experts_bytes


def test_deepseek4_with_hash_routed_layers_streams_to_the_same_logits(worker: Worker, tiny_deepseek4: Path) -> None:
    layout = plan_layout([read_header(tiny_deepseek4)])
    wanted = worker.call(streaming_jobs.run_in_memory, [tiny_deepseek4], TOKENS)

    assert {layer for layer, _ in layout.experts} == set(range(6))
    assert streamed(worker, [tiny_deepseek4], layout.largest_layer_bytes).logits_sha256 == wanted.logits_sha256


def test_with_hints_alone_logits_are_those_in_memory_and_decisions_those_of_a_cache(
    worker: Worker, tiny_deepseek4: Path
) -> None:
    layout = plan_layout([read_header(tiny_deepseek4)])
    tokens = TOKENS[:60]
    wanted = worker.call(streaming_jobs.run_in_memory, [tiny_deepseek4], tokens)

    for cache_bytes in (0, layout.largest_layer_bytes):
        hinted = streamed(worker, [tiny_deepseek4], cache_bytes, hints=True, tokens=tokens)
        assert hinted.logits_sha256 == wanted.logits_sha256
        assert hinted.counts is not None
        cached = streamed(worker, [tiny_deepseek4], cache_bytes, tokens=tokens).counts
        assert cached is not None
        assert (hinted.counts.hits, hinted.counts.misses) == (cached.hits, cached.misses)


def test_the_demonstration_model_streams_from_one_file_and_from_shards(
    worker: Worker, embedded_model: Path, tmp_path: Path
) -> None:
    layout = plan_layout([read_header(embedded_model)])
    shards = split(plan_split(embedded_model, tmp_path / "m", max_bytes=80_000_000))
    # 40 of a prompt, few by themselves, and the second sequence: a model of this size takes long for more.
    tokens = TOKENS[:50]
    wanted = worker.call(streaming_jobs.run_in_memory, [embedded_model], tokens)

    whole = streamed(worker, [embedded_model], layout.largest_layer_bytes, tokens=tokens)
    assert whole.logits_sha256 == wanted.logits_sha256
    assert whole.counts is not None
    assert whole.counts.uncached == 0
    assert whole.counts.read_bytes > layout.largest_layer_bytes
    again = streamed(worker, shards, layout.largest_layer_bytes, tokens=tokens)
    assert again.logits_sha256 == wanted.logits_sha256


def test_a_file_written_to_while_it_runs_ends_in_a_sentence_and_not_in_other_words(
    worker: Worker, tmp_path: Path, smollm2_gguf: Path
) -> None:
    model = write_tiny_moe(tmp_path / "m.gguf", smollm2_gguf, "qwen3moe", alignment=4096)

    with pytest.raises(RuntimeFailure, match=r"m\.gguf is not what it was when it was loaded: it was written to"):
        worker.call(streaming_jobs.run_while_the_file_changes, model, TOKENS, "written")


def test_a_file_cut_while_it_runs_ends_in_a_sentence(tmp_path: Path, smollm2_gguf: Path) -> None:
    model = write_tiny_moe(tmp_path / "m.gguf", smollm2_gguf, "qwen3moe", alignment=4096)

    with (
        Worker(threads=2, env=WORKER_ENV) as own,
        pytest.raises((RuntimeFailure, WorkerCrash), match=r"became shorter"),
    ):
        own.watch([model])
        own.reporting(doing="computing").call(streaming_jobs.run_while_the_file_changes, model, TOKENS, "cut")


def test_a_dense_model_has_nothing_to_stream_and_is_told_so(worker: Worker, smollm2_gguf: Path) -> None:
    with pytest.raises(UsageError, match="nothing of it can be streamed"):
        streamed(worker, [smollm2_gguf], 0)
