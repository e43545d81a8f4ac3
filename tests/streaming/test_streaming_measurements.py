"""What is measured with a streamed model is what is measured with the same model in memory, to the last bit."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dfqs.evaluate.answerer import Asking
from dfqs.evaluate.context import GrowingDocument, plan_questions
from dfqs.evaluate.local import LocalAnswerer
from dfqs.evaluate.prompts import read_context_set
from dfqs.evaluate.scores import Completion, LikelihoodScore
from dfqs.gguf import read_header
from dfqs.quantize.calibration import read_corpus
from dfqs.quantize.imatrix import ImatrixJob, measure_imatrix
from dfqs.quantize.perplexity import NOT_REPACKED, PerplexityJob, measure_losses, whole_order
from dfqs.routing import load
from dfqs.routing.capture import REFERENCE, capture_trace, open_model_once
from dfqs.routing.determinism import PROFILES
from dfqs.routing.prompts import LOAD_TEXTS, packaged_prompt
from dfqs.routing.runs import compare_runs
from dfqs.runtime import Worker
from dfqs.runtime.loading import InMemory, LoadOrder
from dfqs.streaming.budget import Streamed
from dfqs.streaming.layout import plan_layout
from dfqs.streaming.settings import StreamSettings
from fixtures_moe import write_tiny_moe
from runtime_functions import WORKER_ENV

IN_MEMORY = InMemory(repack=False)
TEXT = "The grey heron stands in the shallow water and waits. " * 60


def new_worker() -> Worker:
    return Worker(threads=2, omp_wait_policy="passive", env=WORKER_ENV)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with new_worker() as running:
        yield running


@pytest.fixture(scope="module", params=["qwen3moe", "deepseek4"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path, tiny_deepseek4: Path
) -> Path:
    if request.param == "deepseek4":
        # Its first layers are routed by a table of tokens.
        return tiny_deepseek4
    path = tmp_path_factory.mktemp("measured") / "model.gguf"
    return write_tiny_moe(path, smollm2_gguf, request.param, alignment=4096)


def streamed(model: Path) -> Streamed:
    """With room for a few experts: every layer throws out what another brought."""
    experts = plan_layout([read_header(model)]).experts
    return Streamed((model,), StreamSettings(3 * max(pages.length for pages in experts.values())))


def test_an_importance_matrix_of_a_streamed_model_is_the_same_file(worker: Worker, model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)

    def measure(name: str, order: LoadOrder) -> bytes:
        out = tmp_path / name
        job = ImatrixJob(model, out, read_corpus([text]), 64, 1, 64, 256, (), 2, order=order)
        outcome = worker.call(measure_imatrix, job)
        assert (outcome.streaming is not None) == order.is_streamed
        assert outcome.streaming is None or outcome.streaming.read_bytes > 0
        return out.read_bytes()

    assert measure("memory.gguf", IN_MEMORY) == measure("streamed.gguf", streamed(model))


def test_a_routing_trace_of_a_streamed_model_is_the_same_file(model: Path, tmp_path: Path) -> None:
    digests = []
    for name, order in (("memory", IN_MEMORY), ("streamed", streamed(model))):
        with new_worker() as own:
            summary = capture_trace(own, model, [packaged_prompt("load-1")], tmp_path / name, scores=True, order=order)
        assert (summary.streaming is not None) == order.is_streamed
        assert summary.header.conditions.repack is False
        digests.append(summary.trace_sha256)

    assert digests[0] == digests[1]
    assert (tmp_path / "memory").read_bytes() == (tmp_path / "streamed").read_bytes()


def test_sequences_side_by_side_and_branches_route_the_same_when_streamed(model: Path) -> None:
    runs = []
    for order in (IN_MEMORY, streamed(model)):
        with new_worker() as own:
            own.call(open_model_once, str(model), order)
            requests = own.call(load.tokenize, str(model), [packaged_prompt(name) for name in LOAD_TEXTS])
            requests = [request[:40] for request in requests]
            settings, slots = PROFILES["standard"]
            together = own.call(load.run_load, str(model), requests, 4, settings, 512, slots)
            # Another context of the same model, with flash attention off and a branch that is dropped again.
            cached = own.call(load.run_cached, str(model), requests[0], 16, {**REFERENCE, "threads": 2}, True)
            runs.append([*together, cached])

    for one, other in zip(*runs, strict=True):
        found = compare_runs(one, other)
        assert found.logits_identical
        assert found.routing_identical
    memory, disk = (run[-1].scores for run in runs)
    assert memory is not None
    assert disk is not None
    assert np.array_equal(memory, disk)


def test_losses_of_a_streamed_model_are_those_in_memory_and_say_how_they_came_about(
    worker: Worker, model: Path
) -> None:
    def measure(order: LoadOrder) -> PerplexityJob:
        return PerplexityJob(model, TEXT, 64, 32, 160, order=order)

    memory, disk = (worker.call(measure_losses, measure(order)) for order in (IN_MEMORY, streamed(model)))

    assert np.array_equal(memory.losses.nll, disk.losses.nll)
    assert memory.losses.conditions == disk.losses.conditions
    assert disk.losses.conditions.numerics.endswith(NOT_REPACKED)
    assert disk.streaming is not None
    assert disk.streaming.choices > 0
    # A reference that was streamed asks the model that fits to be loaded as it was.
    assert whole_order(disk.losses) == IN_MEMORY
    assert whole_order(None) == InMemory()


def test_a_document_with_questions_on_branches_is_answered_the_same_when_streamed(model: Path) -> None:
    document = GrowingDocument(read_context_set().items[0], 0)
    answers: list[dict[int, Completion]] = []
    likely: list[list[LikelihoodScore | None]] = []
    for order in (IN_MEMORY, streamed(model)):
        with LocalAnswerer(model, threads=2, max_context=640, order=order) as target:
            assert target.info.numerics is not None
            assert target.info.numerics.repack is False
            size = target.size(document, 480)
            questions = plan_questions([document], [size.lines], 3)
            found: dict[int, Completion] = {-1: target.complete("Name three colours.", 8)}
            scores: list[LikelihoodScore | None] = []

            def take(index: int, answer: Completion, score: LikelihoodScore | None) -> None:
                found[index] = answer  # noqa: B023
                scores.append(score)  # noqa: B023

            target.ask(Asking(480, document, size.lines, (), questions, 6), take)
            likely.append(scores)
            answers.append(found)

    assert answers[0] == answers[1]
    assert likely[0] == likely[1]
    assert len(answers[0]) == 4
