"""How often routing will flip under a perturbation, forecast from margins and held against what happens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dfqs.errors import RuntimeFailure
from dfqs.model.files import ModelFiles, open_model
from dfqs.processors import default_threads
from dfqs.progress import Progress, no_progress
from dfqs.records import Document
from dfqs.routing.capture import open_model_once, processor_name
from dfqs.routing.determinism import Condition, run_condition
from dfqs.routing.fitting import fit_text
from dfqs.routing.identity import ModelIdentity, read_groups, read_identity
from dfqs.routing.load import tokenize, trained_context
from dfqs.routing.margins import (
    FlipForecast,
    Groups,
    MarginLayer,
    Rows,
    describe_margins,
    forecast_and_observe,
    histogram_of_margins,
    mask_groups,
    measure_margins,
    router_logits,
)
from dfqs.routing.numbers import require_choice
from dfqs.routing.prompts import packaged_prompt
from dfqs.routing.runs import RoutingRun
from dfqs.runtime import Worker
from dfqs.runtime.choice import runtime_and_release
from dfqs.runtime.loading import InMemory, LoadOrder

FIT_TEXT, TEST_TEXT = "first", "second"
FORECAST_TOKENS = 700
PERTURBATIONS = (
    Condition("token by token", steps=(1,)),
    Condition("beside another", kind="beside"),
    Condition("flash attention on", {"flash_attention": "on"}),
    Condition("K q8_0", {"type_k": "q8_0"}),
    Condition("K, V q8_0 (flash att.)", {"type_k": "q8_0", "type_v": "q8_0", "flash_attention": "on"}),
    Condition("K, V q5_1 (flash att.)", {"type_k": "q5_1", "type_v": "q5_1", "flash_attention": "on"}),
    Condition("K, V f32", {"type_k": "f32", "type_v": "f32"}),
)


class MarginReport(Document):
    """Router margins of a model and the flips that they forecast."""

    schema_: Literal["dfqs.route-margins/1"] = Field(default="dfqs.route-margins/1", alias="schema")
    earlier_keys = (("format", "schema"),)
    model: ModelIdentity
    runtime: str = Field(default_factory=runtime_and_release)
    processor: str | None
    threads: int
    tokens: int
    """Of each text, at most."""
    margins: tuple[MarginLayer, ...]
    """Of the reference run on the tested text; hash-routed layers left out."""
    histogram_edges: tuple[float, ...]
    histogram: tuple[int, ...]
    """Margins of all layers and tokens between those edges; 0 counts in the first."""
    forecasts: tuple[FlipForecast, ...]
    refused: dict[str, str]
    """Perturbations that the runtime refuses for this model, and what it said."""
    notices: tuple[str, ...] = ()
    """What was done otherwise than asked for, a sentence each."""


def forecast_routing(
    model: Path | ModelFiles,
    *,
    threads: int | None = None,
    tokens: int = FORECAST_TOKENS,
    order: LoadOrder | None = None,
    progress: Progress = no_progress,
) -> MarginReport:
    """Fit each perturbation's noise on one text, forecast the flips of another, and count those.

    Args:
        tokens: of each text.
        order: how the model's weights come into memory; see `dfqs.streaming.budget.choose_load`.
        progress: called with runs.

    Raises:
        UsageError: the model is dense, or its router has nothing to decide.
        RuntimeFailure: llama.cpp failed under the reference conditions, or computes what is no numbers.
    """
    opened = open_model(model)
    path = opened.path
    identity, hash_layers = read_identity(opened)
    require_choice(identity, hash_layers)
    groups = read_groups(opened)
    forecasts, refused = [], {}
    with Worker(threads=threads) as worker:
        worker.call(open_model_once, str(opened.path), order or InMemory())
        count = threads or default_threads()
        prompts = [packaged_prompt(FIT_TEXT), packaged_prompt(TEST_TEXT)]
        first, second = worker.call(tokenize, str(path), prompts)
        trained = worker.call(trained_context, str(path))
        fitted = [fit_text(*pair, tokens, trained) for pair in ((first, second), (second, first))]
        total, done = 2 * (len(PERTURBATIONS) + 1), 0

        def run(condition: Condition) -> list[RoutingRun]:
            nonlocal done
            pair = []
            for text, other, _ in fitted:
                pair.append(run_condition(worker, path, text, other, condition, threads=count, scores=True))
                done += 1
                progress(done, total, condition.name)
            return pair

        first_run, second_run = run(Condition("reference"))
        require_choice(identity, hash_layers, first_run.layers)
        learned = [row for row, layer in enumerate(first_run.layers) if layer not in hash_layers]
        reference = [_rows(result, learned, groups) for result in (first_run, second_run)]
        for condition in PERTURBATIONS:
            try:
                perturbed = [_rows(result, learned, groups) for result in run(condition)]
            except RuntimeFailure as error:
                refused[condition.name] = str(error)
                continue
            fit, test = (FIT_TEXT, reference[0], perturbed[0]), (TEST_TEXT, reference[1], perturbed[1])
            forecasts.append(forecast_and_observe(condition.name, fit, test, identity.experts_used, groups))
    margins = measure_margins(mask_groups(reference[1], groups), identity.experts_used)
    layers = describe_margins(margins, [first_run.layers[row] for row in learned])
    return _report(identity, count, fitted, margins, layers, forecasts, refused)


def _report(
    identity: ModelIdentity,
    threads: int,
    fitted: Sequence[tuple[Sequence[int], Sequence[int], str | None]],
    margins: NDArray[np.float64],
    layers: tuple[MarginLayer, ...],
    forecasts: Sequence[FlipForecast],
    refused: dict[str, str],
) -> MarginReport:
    counts, edges = histogram_of_margins(margins)
    return MarginReport(
        model=identity,
        processor=processor_name(),
        threads=threads,
        tokens=max(len(text) for text, _, _ in fitted),
        histogram_edges=tuple(float(edge) for edge in edges),
        histogram=tuple(int(count) for count in counts),
        margins=layers,
        forecasts=tuple(forecasts),
        refused=refused,
        notices=tuple(dict.fromkeys(notice for _, _, notice in fitted if notice is not None)),
    )


def _rows(run: RoutingRun, learned: list[int], groups: Groups) -> Rows:
    assert run.scores is not None
    scores = run.scores[learned]
    return router_logits(scores) if groups is None else scores.astype(np.float64)
