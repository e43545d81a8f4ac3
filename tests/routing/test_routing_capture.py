"""Routing captured from llama.cpp, against the model's own tables and numpy's top-k: on two architectures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dfqs.errors import RuntimeFailure, UsageError
from dfqs.gguf.file import GGUFFile
from dfqs.routing import load
from dfqs.routing.capture import REFERENCE, capture_trace
from dfqs.routing.coherence import diff_traces
from dfqs.routing.determinism import Condition, check_routing, matrix_conditions, run_condition
from dfqs.routing.identity import read_identity
from dfqs.routing.margins import choose_experts
from dfqs.routing.prompts import LOAD_TEXTS, Prompt, packaged_prompt
from dfqs.routing.runs import compare_runs
from dfqs.routing.stats import measure_stats
from dfqs.routing.tracefile import read_trace
from dfqs.runtime import Worker
from fixtures_moe import write_tiny_moe


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=2, omp_wait_policy="passive") as running:
        yield running


@pytest.fixture(params=["tiny_deepseek4", "tiny_moe"])
def model(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def tokens_of(worker: Worker, model: Path, name: str, count: int) -> list[int]:
    tokens: list[int] = worker.call(load.tokenize, str(model), [packaged_prompt(name)])[0]
    return tokens[:count]


def test_hash_routed_layers_choose_what_their_table_says_for_every_token(
    tiny_deepseek4: Path, worker: Worker, tmp_path: Path
) -> None:
    out = tmp_path / "t.route"
    summary = capture_trace(worker, tiny_deepseek4, [packaged_prompt("first"), packaged_prompt("load-2")], out)

    trace = read_trace(out)
    assert trace.header.hash_layers == (0, 1)
    assert summary.tokens == trace.tokens > 800
    with GGUFFile(tiny_deepseek4) as file:
        for row, layer in enumerate(trace.header.hash_layers):
            table = file.array(f"blk.{layer}.ffn_gate_tid2eid.weight")
            for chunk in trace.chunks:
                assert np.array_equal(chunk.ids[row], table[chunk.tokens])


def test_ids_are_the_top_k_of_the_captured_scores_in_every_layer_the_last_included(
    model: Path, worker: Worker, tmp_path: Path
) -> None:
    out = tmp_path / "t.route"
    capture_trace(worker, model, [packaged_prompt("load-3")], out, scores=True)

    trace = read_trace(out)
    header = trace.header
    assert header.layers[-1] == header.model.layers - 1
    assert header.scores == (("probabilities", "selection") if header.hash_layers else ("probabilities",))
    for chunk in trace.chunks:
        assert chunk.deciding is not None
        for row in header.learned_rows:
            # llama.cpp's sort keeps the order of equal scores for up to 16 experts, as a stable argsort does.
            expected = choose_experts(chunk.deciding[row].astype(np.float64), header.model.experts_used)
            assert np.array_equal(chunk.ids[row], expected), f"layer {header.layers[row]}"


def test_sequences_of_one_batch_are_told_apart_however_the_runtime_cuts_it(
    tiny_deepseek4: Path, worker: Worker
) -> None:
    requests = worker.call(load.tokenize, str(tiny_deepseek4), [packaged_prompt(name) for name in LOAD_TEXTS])
    settings = {**REFERENCE, "n_batch": 2048, "n_ubatch": 64}

    runs = worker.call(load.run_load, str(tiny_deepseek4), requests, 4, settings, 2048, 4)

    with GGUFFile(tiny_deepseek4) as file:
        table = file.array("blk.0.ffn_gate_tid2eid.weight")
    for request, run in zip(requests, runs, strict=True):
        assert run.tokens[: len(request)].tolist() == request
        assert len(run.tokens) == len(request) + 3
        assert np.array_equal(run.ids[0], table[run.tokens])


def test_where_the_last_layer_skips_tokens_they_are_not_given_experts(tiny_moe: Path, worker: Worker) -> None:
    request = tokens_of(worker, tiny_moe, "load-1", 20)

    run = worker.call(load.run_load, str(tiny_moe), [request], 3, REFERENCE, 64, 1)[0]

    # The server asks for logits at the last token of a prompt; layers before the last one serve the others too.
    assert (run.ids[:-1] >= 0).all()
    assert (run.ids[-1, :19] == -1).all()
    assert (run.ids[-1, 19:] >= 0).all()
    assert (run.argmax >= 0).tolist() == [False] * 19 + [True] * 3


def test_repetition_threads_and_chunks_of_a_prompt_change_nothing_as_measured(model: Path, worker: Worker) -> None:
    tokens, other = tokens_of(worker, model, "first", 96), tokens_of(worker, model, "second", 20)
    reference = run_condition(worker, model, tokens, other, Condition("reference"))
    unchanging = {"repeat", "2 threads", "ubatch 8", "split 1/3 + 2/3", "cached prefix"}
    tried = [c for c in matrix_conditions(len(tokens), 2) if c.name in unchanging]

    assert len(tried) == len(unchanging)
    for condition in tried:
        found = compare_runs(reference, run_condition(worker, model, tokens, other, condition))
        assert found.logits_identical, condition.name
        assert found.routing_identical, condition.name
        assert found.argmax_share == found.same_set_share == 1.0


def test_a_run_token_by_token_sees_every_token_once(model: Path, worker: Worker) -> None:
    tokens = tokens_of(worker, model, "load-1", 24)

    found = compare_runs(
        run_condition(worker, model, tokens, [], Condition("reference")),
        run_condition(worker, model, tokens, [], Condition("token by token", steps=(1,))),
    )

    assert found.tokens == len(tokens)
    assert found.same_set_share is not None
    assert found.same_set_share > 0.8, "routing token by token differs a little, not altogether"


@pytest.mark.parametrize(
    "name", ["tiny_deepseek4", pytest.param("embedded_model", marks=pytest.mark.slow, id="embedded_model")]
)
def test_the_deterministic_profile_holds_and_says_so(name: str, request: pytest.FixtureRequest) -> None:
    check = check_routing(request.getfixturevalue(name), profile="deterministic", threads=2, matrix=False)

    assert check.holds
    assert [row.request for row in check.load.requests] == list(LOAD_TEXTS)
    assert all(row.logits_identical and row.same_answer for row in check.load.requests)
    assert all(row.compared_tokens == row.prompt_tokens + 31 for row in check.load.requests)


def test_a_trace_travels_and_is_compared_without_its_model(model: Path, worker: Worker, tmp_path: Path) -> None:
    prompts = [packaged_prompt("load-2"), Prompt("tokens", tokens=(1, 2, 3, 4))]
    for name, settings in (("a", {}), ("b", {}), ("c", {"flash_attention": "on", "n_ubatch": 32})):
        capture_trace(worker, model, prompts, tmp_path / name, settings=settings, scores=True)

    same, other = (diff_traces(tmp_path / "a", tmp_path / name) for name in ("b", "c"))

    assert (same.overall.jaccard, same.overall.weight_overlap, same.overall.kl_nats) == (1.0, 1.0, 0.0)
    assert same.differing_conditions == ()
    assert other.differing_conditions == ("ubatch_tokens: 512 / 32", "flash_attention: off / on")
    assert 0.8 < other.overall.jaccard <= 1
    stats = measure_stats(tmp_path / "a")
    assert stats.prompts == 2
    assert all(sum(layer.counts) == stats.tokens * stats.model.experts_used for layer in stats.layers)


def test_long_prompts_are_cut_and_it_is_said(tiny_deepseek4: Path, worker: Worker, tmp_path: Path) -> None:
    summary = capture_trace(
        worker, tiny_deepseek4, [Prompt("p", tokens=tuple(range(100)))], tmp_path / "t", context_tokens=64
    )

    assert summary.prompts == 2
    assert "prompts longer than 64 tokens were cut: 1 became 2" in summary.notices
    assert [(c.prompt, c.position, len(c)) for c in read_trace(tmp_path / "t").chunks] == [(0, 0, 64), (1, 0, 36)]


def test_dense_models_are_refused_in_a_sentence(smollm2_gguf: Path) -> None:
    with pytest.raises(UsageError, match="is a dense model \\(llama\\): it has no experts"):
        read_identity(smollm2_gguf)


def test_a_capture_that_fails_leaves_no_file(tiny_deepseek4: Path, worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure):
        capture_trace(worker, tiny_deepseek4, [packaged_prompt("load-1")], tmp_path / "t", settings={"type_k": "q8_0"})

    assert list(tmp_path.iterdir()) == []


def test_identity_survives_quantization_of_experts_and_tells_models_apart(
    tiny_deepseek4: Path, tiny_moe: Path, smollm2_gguf: Path, tmp_path: Path
) -> None:
    tiny, hash_layers = read_identity(tiny_deepseek4)
    one, none = read_identity(tiny_moe)
    other, _ = read_identity(write_tiny_moe(tmp_path / "other.gguf", smollm2_gguf, "olmoe", seed=1))

    assert (hash_layers, none) == ((0, 1), ())
    assert len({tiny.router_sha256, one.router_sha256, other.router_sha256} - {None}) == 3
    assert one.tokenizer_sha256 == other.tokenizer_sha256, "both borrow the same"
    assert one.tokenizer_sha256 != tiny.tokenizer_sha256
    assert len({tiny.header_sha256, one.header_sha256, other.header_sha256}) == 3
