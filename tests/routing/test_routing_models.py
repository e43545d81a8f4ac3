"""Claims about routing that need minutes of a real model: coherence along a ladder, and forecasts from margins."""

from pathlib import Path

import pytest

from dfqs.model.classes import CLASSES
from dfqs.quantize.quantize import quantize
from dfqs.routing.capture import capture_trace
from dfqs.routing.coherence import diff_traces
from dfqs.routing.forecast import forecast_routing
from dfqs.routing.pressure import measure_pressure
from dfqs.routing.prompts import packaged_prompt
from dfqs.runtime import Worker

pytestmark = pytest.mark.slow


def test_coherence_falls_in_order_along_the_quantization_ladder(embedded_model: Path, tmp_path: Path) -> None:
    models = [embedded_model]
    for name in ("Q4_K-XL", "Q2_K-XL"):
        quantize(embedded_model, tmp_path / f"{name}.gguf", CLASSES[name])
        models.append(tmp_path / f"{name}.gguf")
    traces = [tmp_path / f"{number}.route" for number in range(len(models))]
    for model, trace in zip(models, traces, strict=True):
        with Worker() as worker:
            capture_trace(worker, model, [packaged_prompt("first")], trace, scores=True)

    found = [diff_traces(traces[0], trace).overall for trace in traces]

    assert (found[0].jaccard, found[0].same_set, found[0].weight_overlap, found[0].kl_nats) == (1.0, 1.0, 1.0, 0.0)
    for name in ("jaccard", "same_set", "top1", "weight_overlap"):
        values = [getattr(row, name) for row in found]
        assert values[0] > values[1] > values[2], name
    assert all(row.above_chance is not None and row.above_chance > 0 for row in found)


def test_flips_forecast_from_another_text_are_within_a_quarter_for_three_perturbations(embedded_model: Path) -> None:
    report = forecast_routing(embedded_model)

    close = [row.perturbation for row in report.forecasts if row.ratio is not None and abs(row.ratio - 1) <= 0.25]
    assert len(close) >= 3, [(row.perturbation, row.ratio) for row in report.forecasts]
    assert all(row.observed_flips > 100 for row in report.forecasts)
    assert all(row.fitted_on != row.tested_on for row in report.forecasts)


@pytest.mark.parametrize("name", ["tiny_deepseek4", "embedded_model"])
def test_a_probe_behind_a_growing_document_is_measured_at_every_length(
    name: str, request: pytest.FixtureRequest
) -> None:
    report = measure_pressure(request.getfixturevalue(name), [16, 64, 256])

    first = report.points[0]
    assert [point.context_tokens for point in report.points] == [16, 64, 256]
    assert first.drift_same_set_share == 1.0
    assert all(0.5 < point.same_set_share <= 1 for point in report.points)
    assert all(point.decisions == first.decisions for point in report.points)
    same = measure_pressure(request.getfixturevalue(name), [16, 64], perturbed={})
    assert all(point.same_set_share == point.jaccard == 1.0 for point in same.points)
