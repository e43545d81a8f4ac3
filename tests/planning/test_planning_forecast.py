"""Forecasts of speed: what a token touches is counted right, and a forecast is made of that and of a calibration."""

import json
from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.gguf import GGMLType, read_header
from dfqs.model.files import open_model
from dfqs.model.spec import bytes_per_token
from dfqs.planning import calibration as calibrating
from dfqs.planning import disk_probe
from dfqs.planning import forecast as forecasting
from dfqs.planning.calibration import Calibration, TypeSpeed, measure_probe
from dfqs.planning.probe_models import EXPERTS, ProbeShape
from dfqs.planning.speed import GraphSize, forecast_speed, nearest, wanted_types
from dfqs.planning.work import Work, count_work
from dfqs.records import read_json
from dfqs.runtime import Worker
from planning_jobs import make_probe

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = ProbeShape("qwen3moe", 2, 256, 256, 2, 1, 64, experts=4, used=2, context=512)


@pytest.fixture
def known() -> Calibration:
    speeds = (
        TypeSpeed(type="Q8_0", kind="dense", decode_ns_per_byte=0.1, prefill_ns_per_weight=0.02),
        TypeSpeed(type="IQ1_S", kind="experts", decode_ns_per_byte=0.5, prefill_ns_per_weight=0.04),
    )
    changes = {"node_ns": 2000.0, "batch_node_ns": 100.0, "attention_ns": 0.5, "types": speeds}
    return read_json(GOLDEN / "calibration-1.json", Calibration).model_copy(update=changes)


def test_a_tokens_time_is_its_weights_its_graph_and_its_attention(known: Calibration) -> None:
    work = {(GGMLType.Q8_0, "dense"): Work(10**8, 10**8), (GGMLType.IQ1_S, "experts"): Work(2 * 10**7, 10**8)}
    graph = GraphSize(nodes=1000, cells=4096.0, heads=8, head_length=64)

    found = forecast_speed(work, graph, 512, known)  # type: ignore[arg-type]

    assert found.weights_s == pytest.approx(0.01 + 0.01)
    assert found.graph_s == pytest.approx(0.002)
    assert found.attention_s == pytest.approx(4096 * 8 * 64 * 0.5e-9)
    assert found.decode.tokens_per_s == pytest.approx(1 / (0.022 + found.attention_s))
    assert found.prefill.tokens_per_s == pytest.approx(1 / (0.002 + 0.004 + 0.0001 + found.attention_s / 2))
    assert found.decode.high / found.decode.low <= 1.6


def test_a_type_that_was_not_measured_is_taken_for_the_slowest_of_its_kind(known: Calibration) -> None:
    assert nearest(known, GGMLType.IQ1_M, "experts").type == "IQ1_S"
    assert nearest(known, GGMLType.F32, "dense").type == "Q8_0"


def test_what_a_token_touches_is_what_the_model_says(embedded_model: Path) -> None:
    model = open_model(embedded_model)
    work = count_work(model.tensors, model.spec.experts, model.spec.experts_used, model.spec.layers)

    # Vectors (norms) are not multiplied with.
    assert sum(one.bytes for one in work.values()) == pytest.approx(bytes_per_token(model.spec), rel=0.002)
    assert {kind for _, kind in work} == {"dense", "experts"}
    assert wanted_types(work) <= set(work)


def test_random_models_load_decode_and_are_measured(tmp_path: Path) -> None:
    with Worker(1) as worker:
        found = worker.call(measure_probe, tmp_path / "p.gguf", TINY, GGMLType.Q4_K, GGMLType.Q8_0, 0)
    make_probe(tmp_path / "tiny.gguf", TINY, GGMLType.Q8_0)

    assert found.decode_s > 0
    assert found.prefill_s > 0
    assert found.nodes > 50
    assert not (tmp_path / "p.gguf").exists()
    spec = open_model(tmp_path / "tiny.gguf").spec
    assert (spec.experts, spec.experts_used, spec.attention_heads, spec.attention_head_length) == (4, 2, 2, 64)


def test_a_probe_is_as_large_as_it_should_be_in_any_type() -> None:
    for type_ in (GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_K):
        shape = EXPERTS.with_bytes(type_, 256 << 20)
        assert 2 <= shape.layers <= 48


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch, known: Calibration) -> None:
    monkeypatch.setattr(forecasting, "calibrate", lambda *_: known)
    monkeypatch.setattr(disk_probe, "LONGEST_S", 0.05)


@pytest.mark.usefixtures("probed")
def test_the_document_has_contexts_and_a_curve_and_a_picture_can_be_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_probe(tmp_path / "model.gguf", TINY, GGMLType.Q8_0)
    arguments = ["forecast", str(path), "--ctx", "256,512", "--ram", "400MB", "--plot", str(tmp_path / "curve.svg")]

    assert run([*arguments, "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert [one["context_tokens"] for one in found["contexts"]] == [256, 512]
    first, second = found["contexts"]
    assert first["decode"]["tokens_per_s"] > second["decode"]["tokens_per_s"] > 0
    assert found["curve"]["choices"].startswith("synthetic")
    assert found["curve"]["points"][0]["memory_bytes"] == 400_000_000
    assert found["curve"]["disk"]["direct"][0] > 0
    assert b"tokens a second" in (tmp_path / "curve.svg").read_bytes()
    assert run(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.usefixtures("probed")
def test_a_trace_of_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dfqs.routing.tracefile import write_trace
    from routing_traces import make_header

    path = make_probe(tmp_path / "model.gguf", TINY, GGMLType.Q8_0)
    write_trace(tmp_path / "t.route", make_header(), [])

    assert run(["forecast", str(path), "--trace", str(tmp_path / "t.route")]) == 2
    assert "is of a model with" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--ctx", "0"], ["--ctx", "512,"], ["--ram", "x"], ["--plot", "p.bmp"]])
@pytest.mark.usefixtures("probed")
def test_words_that_make_no_sense_are_usage_errors(smollm2_gguf: Path, wrong: list[str]) -> None:
    assert run(["forecast", str(smollm2_gguf), *wrong]) == 2


def test_a_busy_machines_calibration_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path))
    monkeypatch.setattr(calibrating, "DENSE", ProbeShape("llama", 1, 256, 256, 2, 1))
    monkeypatch.setattr(calibrating, "NODES", TINY)
    monkeypatch.setattr(calibrating, "ATTENTION", ProbeShape("llama", 1, 256, 256, 2, 1))
    monkeypatch.setattr(calibrating, "PROBE_BYTES", 1 << 20)
    monkeypatch.setattr(calibrating, "measure_read_bandwidth", lambda _: 1e10)
    monkeypatch.setattr(calibrating, "BUSY_CPUS", 0.0)

    calibrating.calibrate([(GGMLType.Q8_0, "dense")], 1)
    assert not list(tmp_path.glob("calibrations/*"))

    monkeypatch.setattr(calibrating, "BUSY_CPUS", 100.0)
    first = calibrating.calibrate([(GGMLType.Q8_0, "dense")], 1)
    assert calibrating.calibrate([(GGMLType.Q8_0, "dense")], 1) == first
    assert first.find("Q8_0", "dense") is not None


def test_a_disk_is_measured_with_pieces_of_the_model_itself(embedded_model: Path) -> None:
    found = disk_probe.measure_disk(embedded_model, 100_000, 1, 0.1)

    assert found.piece_bytes == 98_304
    assert found.direct.low <= found.direct.bytes_per_s <= found.direct.high
    assert found.paged.read_per_wanted >= 1
    assert read_header(embedded_model).file_size > 0
