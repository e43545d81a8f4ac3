"""Routing of one small random model for each way in which llama.cpp's architectures route."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import counted_logits
import routing_jobs
from dfqs.errors import RuntimeFailure, UsageError
from dfqs.gguf import GGMLType, boolean, read_header, string, u32, write_gguf
from dfqs.gguf.file import GGUFFile
from dfqs.model.spec import Role, read_model_spec
from dfqs.routing import load
from dfqs.routing.capture import PROBE_TOKENS, REFERENCE, capture_trace
from dfqs.routing.coherence import diff_traces
from dfqs.routing.determinism import Condition, check_routing, run_condition
from dfqs.routing.identity import read_groups, read_identity
from dfqs.routing.margins import choose_experts
from dfqs.routing.prompts import Prompt, packaged_prompt
from dfqs.routing.runs import compare_runs
from dfqs.routing.stats import measure_stats
from dfqs.routing.tap import BatchToken, RouterTap
from dfqs.routing.trace import Trace
from dfqs.routing.tracefile import read_trace
from dfqs.runtime import Worker
from fixtures_moe import write_tiny_moe
from moe_families import EXPERT_LENGTH, EXPERTS, FAMILIES, USED, WIDTH

PROMPTS = [packaged_prompt("load-2"), Prompt("tokens", tokens=(5, 17, 900, 3_100))]
SHARED = dict.fromkeys(("qwen2moe", "granitemoe", "llama4", "qwen35moe", "qwen3next"), 1)
SHARED |= {"deepseek2": 2, "glm4moe": 1, "hunyuan-moe": 1, "nemotron_h_moe": 1}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    path = str(Path(__file__).parents[1])
    with Worker(threads=2, omp_wait_policy="passive", env={"PYTHONPATH": path}) as running:
        yield running


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Iterator[dict[str, Path]]:
    """One file for each architecture, written when it is first asked for."""

    class Written(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            self[name] = write_tiny_moe(directory / f"{name}.gguf", smollm2_gguf, name)
            return self[name]

    directory = tmp_path_factory.mktemp("architectures")
    yield Written()
    for path in directory.iterdir():
        path.unlink()


def captured(worker: Worker, model: Path, out: Path) -> Trace:
    capture_trace(worker, model, PROMPTS, out, scores=True)
    return read_trace(out)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_token_and_routed_layer_is_captured_and_chosen_by_its_scores(
    name: str, models: dict[str, Path], worker: Worker, tmp_path: Path
) -> None:
    out = tmp_path / "t.route"
    trace = captured(worker, models[name], out)

    header = trace.header
    assert header.layers == FAMILIES[name].routed
    assert (header.model.architecture, header.model.experts, header.model.experts_used) == (name, EXPERTS, USED)
    assert trace.tokens == sum(len(chunk) for chunk in trace.chunks) > 90
    for chunk in trace.chunks:
        assert chunk.deciding is not None
        assert np.array_equal(chunk.ids, choose_experts(chunk.deciding.astype(np.float64), USED))
    assert np.ptp(trace.chunks[0].ids, axis=1).any(axis=-1).all(), "in every layer the choice depends on the token"

    same = diff_traces(out, out)
    assert (same.overall.jaccard, same.overall.weight_overlap, same.overall.kl_nats) == (1.0, 1.0, 0.0)
    assert {(row.jaccard, row.same_set, row.top1) for row in same.by_layer} == {(1.0, 1.0, 1.0)}
    assert [sum(layer.counts) for layer in measure_stats(out).layers] == [trace.tokens * USED] * len(header.layers)


QUICK = ("deepseek2", "gemma4", "grovemoe", "nemotron_h_moe", "qwen35moe", "smallthinker")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_graphs_that_end_behind_the_last_router_route_as_whole_ones_do(
    name: str, models: dict[str, Path], worker: Worker, tmp_path: Path
) -> None:
    """Also the batches after them, which read what they left in the caches. No logits but a few are computed."""
    tokens = worker.call(load.tokenize, str(models[name]), PROMPTS[:1])[0]
    settings = {**REFERENCE, "n_batch": 32, "n_ubatch": 32}
    whole = worker.call(load.run_steps, str(models[name]), tokens, {**settings, "threads": 2}, (), True)

    with Worker(threads=2, env={"PYTHONPATH": str(Path(__file__).parents[1])}) as own:
        out, counted = tmp_path / "t.route", counted_logits.Counted()
        capture_trace(own, models[name], PROMPTS[:1], out, settings=settings, scores=True, order=counted)
        assert own.call(counted_logits.take_counts) == [PROBE_TOKENS]
    trace = read_trace(out)

    assert len(trace.chunks) > 2
    assert np.array_equal(np.concatenate([chunk.ids for chunk in trace.chunks], axis=1), whole.ids)
    if trace.chunks[0].selection is None:
        scores = np.concatenate([chunk.probabilities for chunk in trace.chunks], axis=1)
        assert whole.scores is not None
        assert np.array_equal(scores, whole.scores)


def test_choice_in_groups_is_by_the_biased_scores_of_the_best_groups(
    models: dict[str, Path], worker: Worker, tmp_path: Path
) -> None:
    """deepseek2 as DeepSeek-V3 configures it: a group counts by its two best experts; the others cannot be chosen."""
    trace = captured(worker, models["deepseek2"], tmp_path / "t.route")
    groups, groups_used = 4, 2

    with GGUFFile(models["deepseek2"]) as file:
        bias = np.stack([file.array(f"blk.{layer}.exp_probs_b.bias") for layer in trace.header.layers])
    for chunk in trace.chunks:
        assert chunk.probabilities is not None
        assert chunk.selection is not None
        biased = chunk.probabilities + bias[:, None]
        grouped = biased.reshape(*biased.shape[:2], groups, -1)
        worth = np.sort(grouped, axis=-1)[..., -2:].sum(-1)
        best = worth >= np.sort(worth, axis=-1)[..., -groups_used, None]
        assert np.array_equal(chunk.selection, np.where(best[..., None], grouped, -np.inf).reshape(biased.shape))
        by_probability = choose_experts(chunk.probabilities.astype(np.float64), USED)
        assert not np.array_equal(np.sort(chunk.ids), np.sort(by_probability)), "bias and groups decide somewhere"


def test_groups_are_read_and_make_the_choice_that_llama_cpp_makes(models: dict[str, Path], worker: Worker) -> None:
    assert read_groups(models["deepseek2"]) == (4, 2)
    assert read_groups(models["lfm2moe"]) is None

    tokens = worker.call(load.tokenize, str(models["deepseek2"]), [packaged_prompt("load-1")])[0]
    run = run_condition(worker, models["deepseek2"], tokens, [], Condition("reference"), scores=True)

    assert run.scores is not None
    assert np.isfinite(run.scores).all(), "before groups are masked, so that a forecast sees them flip"
    assert np.array_equal(run.ids, choose_experts(run.scores.astype(np.float64), USED, (4, 2)))


def test_choice_by_biased_scores_without_groups(models: dict[str, Path], worker: Worker, tmp_path: Path) -> None:
    trace = captured(worker, models["lfm2moe"], tmp_path / "t.route")

    with GGUFFile(models["lfm2moe"]) as file:
        bias = np.stack([file.array(f"blk.{layer}.exp_probs_b.bias") for layer in trace.header.layers])
    for chunk in trace.chunks:
        assert chunk.probabilities is not None
        assert chunk.selection is not None
        assert np.array_equal(chunk.selection, chunk.probabilities + bias[:, None])


@pytest.mark.parametrize("name", ["deepseek2", "lfm2moe", "qwen35moe", "nemotron_h_moe"])
def test_latent_and_recurrent_caches_do_not_mix_sequences_up(
    name: str, models: dict[str, Path], worker: Worker
) -> None:
    requests = worker.call(load.tokenize, str(models[name]), [packaged_prompt(t) for t in ("load-1", "load-2")])
    settings = {**REFERENCE, "n_batch": 2048, "n_ubatch": 32}

    together = worker.call(load.run_load, str(models[name]), requests, 3, settings, 512, 2)

    for request, run in zip(requests, together, strict=True):
        alone = worker.call(load.run_load, str(models[name]), [request], 3, settings, 512, 1)[0]
        found = compare_runs(alone, run)
        assert found.tokens >= len(request)
        assert found.same_set_share is not None
        assert found.same_set_share > 0.95, "mixed up, sequences would agree as two random ones do"
    tokens = requests[0]
    stepped = run_condition(worker, models[name], tokens, [], Condition("token by token", steps=(1,)))
    reference = run_condition(worker, models[name], tokens, [], Condition("reference"))
    share = compare_runs(reference, stepped).same_set_share
    assert share is not None
    assert share > 0.95


@pytest.mark.parametrize("name, breaks", [("qwen3moe", ()), ("gpt-oss", (516, 4)), ("qwen35moe", (516, 4))])
def test_prompts_are_broken_where_the_server_keeps_a_checkpoint(
    name: str, breaks: tuple[int, ...], models: dict[str, Path]
) -> None:
    """Caches of sliding windows and of recurrent layers cannot be rolled back; the server's batches are other ones."""
    with Worker(env={"PYTHONPATH": str(Path(__file__).parents[1])}) as running:
        assert running.call(routing_jobs.prompt_breaks, str(models[name])) == breaks


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_and_experts_counted_by_hand(name: str, models: dict[str, Path]) -> None:
    header = read_header(models[name])
    spec = read_model_spec(header)

    matrices = 2 if name == "nemotron_h_moe" else 3
    one_layer = matrices * WIDTH * EXPERT_LENGTH * EXPERTS
    layers = len(FAMILIES[name].routed)
    unused = one_layer * layers * (EXPERTS - USED) // EXPERTS
    stacked = one_layer * layers
    if name == "glm4moe":
        # The whole layer that predicts a further token is idle, its experts among it.
        stacked += one_layer
        unused += sum(tensor.elements for tensor in header.tensors if tensor.name.startswith("blk.3."))
    routed = spec.role(Role.ROUTED_EXPERT)
    assert routed is not None
    assert routed.parameters == stacked
    assert routed.types == {GGMLType.F16: stacked}
    assert spec.parameters == sum(tensor.elements for tensor in header.tensors)
    assert (spec.experts, spec.experts_used, spec.experts_shared) == (EXPERTS, USED, SHARED.get(name, 0))
    if name == "gpt-oss":
        unused += (2 * EXPERT_LENGTH + WIDTH) * layers * (EXPERTS - USED)
    if name == "grovemoe":
        chunked = sum(tensor.elements for tensor in header.tensors if "chexps" in tensor.name)
        unused += chunked * (EXPERTS // 2 - USED) // (EXPERTS // 2)
    if name == "gemma4":
        unused += layers * (EXPERTS - USED)
    assert spec.parameters_active == spec.parameters - unused
    assert spec.role(Role.OTHER) is None


def test_layers_that_use_different_numbers_of_experts_are_refused_in_a_sentence() -> None:
    tap = RouterTap()
    tap._ubatches = [[7, 8]]
    tap._nodes = {("topk", layer): [np.zeros((2, layer + 1), np.int32)] for layer in (0, 1)}

    with pytest.raises(RuntimeFailure, match=r"different numbers of experts \(1 and 2\)"):
        tap.take_batch([BatchToken(7, 0), BatchToken(8, 1)])


def test_models_that_are_not_causal_are_refused_before_llama_cpp_dies_of_them(tmp_path: Path) -> None:
    keys = [
        string("general.architecture", "nomic-bert-moe"),
        u32("nomic-bert-moe.expert_count", 8),
        u32("nomic-bert-moe.expert_used_count", 2),
        boolean("nomic-bert-moe.attention.causal", False),
    ]
    write_gguf(tmp_path / "encoder.gguf", keys, [])

    with pytest.raises(UsageError, match="no causal model"):
        read_identity(tmp_path / "encoder.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_condition_runs_and_the_deterministic_profile_holds(name: str, models: dict[str, Path]) -> None:
    check = check_routing(models[name], profile="deterministic", threads=2)

    assert check.holds
    assert [row.condition for row in check.matrix if row.refused] == (["K q8_0"] if name == "deepseek2" else [])
    unchanged = {"repeat", "2 threads", "ubatch 64", "split 1/3 + 2/3", "cached prefix", "process restart"}
    for row in check.matrix:
        if row.condition in unchanged:
            assert (row.logits_identical, row.same_set_share) == (True, 1.0), row.condition
        elif row.refused is None and "q8_0" not in row.condition:
            assert row.same_set_share is not None
            assert row.same_set_share > 0.95, row.condition
