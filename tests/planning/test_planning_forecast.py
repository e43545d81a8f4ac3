"""Forecasts of speed: what a token touches is counted right, and a forecast is made of that and of a calibration."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfqs.cli.main import run
from dfqs.gguf import GGMLType, KeyValue, RawKeyValue, encode_header, read_header, string, u32
from dfqs.model.files import open_model
from dfqs.planning import disk_probe
from dfqs.planning import forecast as forecasting
from dfqs.planning.calibration import Calibration
from dfqs.planning.disk_probe import DiskRate, DiskSpeed
from dfqs.planning.forecast import ForecastRequest, graph_size
from dfqs.planning.probe_models import EXPERTS, ProbeShape
from dfqs.planning.rates import seconds_of, solve_rates
from dfqs.planning.speed import forecast_speed, slowest
from dfqs.planning.work import GraphSize, Work, WorkKey, count_work
from dfqs.records import read_json
from dfqs.runtime.memory import MemoryNeed, MemoryPart
from dfqs.shards.split import plan_split, split
from fixtures_moe import write_tiny_moe
from planning_jobs import make_probe

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = ProbeShape("qwen3moe", 2, 256, 256, 2, 1, 64, experts=4, used=2, context=512)


DECODE_NS = {"Q8_0 dense": 0.1, "IQ1_S experts": 0.5, "node": 700.0, "attended entry": 40.0, "attended element": 0.1}
PROMPT_NS = {
    "Q8_0 dense": 0.02,
    "IQ1_S experts": 0.03,
    "IQ1_S experts, a batch": 0.3,
    "node": 40_000.0,
    "attended entry": 3.0,
    "attended element": 0.08,
}


@pytest.fixture
def known() -> Calibration:
    record = read_json(GOLDEN / "calibration-1.json", Calibration)
    return record.model_copy(update={"decode_ns": DECODE_NS, "prompt_ns": PROMPT_NS})


def test_a_tokens_time_is_its_weights_its_graph_and_its_attention(known: Calibration) -> None:
    work: dict[WorkKey, Work] = {
        (GGMLType.Q8_0, "dense"): Work(10**8, 10**8, 10**8),
        (GGMLType.IQ1_S, "experts"): Work(2 * 10**7, 10**8, 8 * 10**8),
    }
    graph = GraphSize(nodes=1000, attended=4096 * 8, attended_elements=4096 * 8 * 64)
    middle = GraphSize(nodes=1000, attended=2048 * 8, attended_elements=2048 * 8 * 64)

    found = forecast_speed(work, work, graph, middle, 1024, known)

    assert found.weights_s == pytest.approx(0.01 + 0.01)
    assert found.graph_s == pytest.approx(1000 * 700e-9)
    assert found.attention_s == pytest.approx(4096 * 8 * (40 + 64 * 0.1) * 1e-9)
    assert found.decode.tokens_per_s == pytest.approx(1 / (0.02 + found.graph_s + found.attention_s))
    # One of eight experts each: of a batch of 512 nearly all are chosen, and got ready once for all of it.
    ready = 8e8 * (1 - (7 / 8) ** 512) / 512 * 0.3e-9
    attention = 2048 * 8 * (3 + 64 * 0.08) * 1e-9
    prompt = 1e8 * 0.02e-9 + 1e8 * 0.03e-9 + ready + 1000 / 512 * 40e-6 + attention
    assert found.prefill.tokens_per_s == pytest.approx(1 / prompt)
    assert found.decode.high / found.decode.low <= 1.6


def test_a_machine_whose_speed_changes_gets_wider_intervals(known: Calibration) -> None:
    work: dict[WorkKey, Work] = {(GGMLType.Q8_0, "dense"): Work(10**8, 10**8, 10**8)}
    graph = GraphSize(0, 0.0, 0.0)
    steady = forecast_speed(work, work, graph, graph, 512, known).decode
    changing = forecast_speed(work, work, graph, graph, 512, known.model_copy(update={"change": 1.4})).decode

    assert steady.tokens_per_s == changing.tokens_per_s
    assert changing.high / changing.low == pytest.approx(1.4**2 * steady.high / steady.low)


def test_a_type_that_was_not_measured_is_taken_for_the_slowest_of_its_kind() -> None:
    assert slowest("IQ1_M experts", DECODE_NS) == "IQ1_S experts"
    assert slowest("IQ1_M experts, a batch", PROMPT_NS) == "IQ1_S experts, a batch"
    assert slowest("F32 dense", DECODE_NS) == "Q8_0 dense"
    assert slowest("F32 dense", {"IQ1_S experts": 0.5}) == "IQ1_S experts"
    assert slowest("node", {"Q8_0 dense": 0.1}) is None


@given(st.lists(st.floats(0.01, 50), min_size=3, max_size=3), st.randoms(use_true_random=False))
def test_rates_are_found_again_from_times_that_are_sums_of_them(rates: list[float], random: Random) -> None:
    names = ("a", "b", "c")
    observed = []
    for one in range(6):
        # Each probe does mostly one kind of work, as those of a calibration do.
        terms = {name: random.uniform(1, 2) * (1e6 if one % 3 == i else 1e5) for i, name in enumerate(names)}
        observed.append((terms, sum(terms[name] * rate for name, rate in zip(names, rates, strict=True)) / 1e9))

    found = solve_rates(observed)

    assert [found[name] for name in names] == pytest.approx(rates, rel=1e-3)
    assert seconds_of({"a": 2e9, "c": 1e9}, found) == pytest.approx(2 * rates[0] + rates[2], rel=1e-3)


def test_no_rate_is_below_zero_where_times_contradict_each_other() -> None:
    found = solve_rates([({"a": 1e9}, 1.0), ({"a": 1e9, "b": 1e9}, 0.9)])

    assert found["b"] == 0
    assert 0.9 < found["a"] < 1


def test_a_random_model_is_what_its_header_says(tmp_path: Path) -> None:
    make_probe(tmp_path / "tiny.gguf", TINY, GGMLType.Q8_0)

    spec = open_model(tmp_path / "tiny.gguf").spec
    assert (spec.experts, spec.experts_used, spec.attention_heads, spec.attention_head_length) == (4, 2, 2, 64)


def test_no_two_tokens_and_no_two_experts_of_a_random_model_are_alike(tmp_path: Path) -> None:
    # Rows that repeat would make a prompt's tokens choose the same few experts.
    path = make_probe(tmp_path / "tiny.gguf", replace(TINY, vocabulary=300), GGMLType.Q8_0)
    header = read_header(path)
    for name in ("token_embd.weight", "blk.0.ffn_gate_inp.weight", "blk.1.ffn_gate_inp.weight"):
        tensor = header.tensor(name)
        values = np.fromfile(path, np.float32, tensor.elements, offset=header.data_offset + tensor.offset)
        rows = values.reshape(-1, tensor.shape[0])
        assert len(np.unique(rows, axis=0)) == len(rows), name


@pytest.mark.parametrize("type_", [GGMLType.F32, GGMLType.Q8_0, GGMLType.IQ1_S], ids=lambda type_: type_.name)
def test_a_probe_is_as_large_as_it_should_be_in_any_type(type_: GGMLType) -> None:
    shape = EXPERTS.with_weights(type_, 160_000_000, 320 << 20)
    weights = sum(prod(one) for layer in range(shape.layers) for one in shape.tensors(layer).values())
    assert 100_000_000 < weights <= 230_000_000 or (type_ is GGMLType.F32 and shape.layers == 2)


def test_what_a_graph_attends_to_follows_windows_and_latent_caches(smollm2_gguf: Path, tmp_path: Path) -> None:
    oss = open_model(write_tiny_moe(tmp_path / "oss.gguf", smollm2_gguf, "gpt-oss"))
    parts = (
        MemoryPart("kv", "full attention", 1, 1024, 2),
        MemoryPart("kv", "sliding window", 1, 768, 1),
        MemoryPart("compute", "compute", 1),
    )
    need = MemoryNeed(1024, 0, 0, 0, 0, parts=parts, graph_nodes=99)

    # The window is 32 tokens; its cache has room for a batch as well. Two heads of 32.
    assert graph_size(oss, need, 1000) == GraphSize(99, (2 * 1000 + 32) * 2, (2 * 1000 + 32) * 2 * 32)
    assert graph_size(oss, need, 10) == GraphSize(99, 3 * 10 * 2, 3 * 10 * 2 * 32)
    latent = open_model(write_tiny_moe(tmp_path / "ds.gguf", smollm2_gguf, "deepseek2"))
    one = MemoryNeed(512, 0, 0, 0, 0, parts=(MemoryPart("kv", "attention", 1, 512, 4),), graph_nodes=9)
    # Keys of 64 + 32, values of 64.
    assert graph_size(latent, one, 100) == GraphSize(9, 100 * 4 * 2, 100 * 4 * 2 * 80)


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch, known: Calibration) -> None:
    monkeypatch.setattr(forecasting, "calibrate", lambda *_, **__: known)
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


def test_a_machine_that_others_keep_busy_now_is_told_of(
    known: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_probe(tmp_path / "model.gguf", TINY, GGMLType.Q8_0)
    busy = known.model_copy(update={"other_cpus_now": 1.24})
    monkeypatch.setattr(forecasting, "calibrate", lambda *_, **__: busy)

    assert run(["forecast", str(path), "--ctx", "256", "--ram", "1MB"]) == 0

    said = " ".join(capsys.readouterr().err.split())
    assert "others keep 1.2 CPUs busy now: rates are of this machine without them" in said


@pytest.mark.usefixtures("probed")
def test_a_trace_of_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dfqs.routing.tracefile import write_trace
    from routing_traces import make_header

    path = make_probe(tmp_path / "model.gguf", TINY, GGMLType.Q8_0)
    write_trace(tmp_path / "t.route", make_header(), [])

    assert run(["forecast", str(path), "--trace", str(tmp_path / "t.route")]) == 2
    assert "is of a model with" in capsys.readouterr().err


def test_a_trace_that_is_none_is_told_before_the_machine_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_probe(tmp_path / "model.gguf", TINY, GGMLType.Q8_0)
    monkeypatch.setattr("dfqs.planning.forecast.calibrate", lambda *_: pytest.fail("it measures"))

    assert run(["forecast", str(path), "--trace", str(tmp_path / "nothing.route")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_model_that_the_runtime_does_not_know_is_named_with_what_can_still_be_said(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header = read_header(smollm2_gguf)
    own = [header.raw_entry(e) for e in header.entries if not e.name.startswith(("general.arch", "llama."))]
    keys: list[KeyValue | RawKeyValue] = [string("general.architecture", "gibberish"), *own]
    keys.append(u32("gibberish.block_count", 2))
    path = tmp_path / "odd.gguf"
    path.write_bytes(encode_header(keys, [(t.name, t.shape, t.type) for t in header.tensors]))
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + header.file_size - header.data_offset)
    monkeypatch.setattr(forecasting, "measure_read_bandwidth", lambda _: 2e10)
    monkeypatch.setattr(forecasting, "calibrate", None)

    assert run(["forecast", str(path), "--json"]) == 1

    found = json.loads(capsys.readouterr().out)
    assert "gibberish" in found["unknown"]
    assert (found["contexts"], found["curve"], found["calibration"]) == ([], None, None)
    assert found["at_most_tokens_per_s"] == pytest.approx(2e10 / found["decode_bytes_per_token"])
    assert "architecture gibberish" in found["notes"][0]
    assert "inspect --runtimes" in found["notes"][0]
    assert run(["forecast", str(path)]) == 1
    assert "at most" in capsys.readouterr().out


@pytest.mark.usefixtures("probed")
def test_contexts_are_written_as_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_probe(tmp_path / "model.gguf", replace(TINY, context=4096), GGMLType.Q8_0)

    assert run(["forecast", str(path), "--ctx", "1k,2k", "--ram", "400MB", "--json"]) == 0

    assert [one["context_tokens"] for one in json.loads(capsys.readouterr().out)["contexts"]] == [1024, 2048]


@pytest.mark.parametrize("wrong", [["--ctx", "0"], ["--ctx", "512,"], ["--ram", "x"], ["--plot", "p.bmp"]])
@pytest.mark.usefixtures("probed")
def test_words_that_make_no_sense_are_usage_errors(smollm2_gguf: Path, wrong: list[str]) -> None:
    assert run(["forecast", str(smollm2_gguf), *wrong]) == 2


def test_a_disk_is_measured_with_pieces_of_the_model_itself(embedded_model: Path) -> None:
    found = disk_probe.measure_disk(embedded_model, 100_000, 1, 0.1)

    assert found.piece_bytes == 98_304
    assert found.direct.low <= found.direct.bytes_per_s <= found.direct.high
    assert found.paged.read_per_wanted >= 1
    assert read_header(embedded_model).file_size > 0


@pytest.fixture
def further(tmp_path: Path, smollm2_gguf: Path) -> Path:
    """A model of four layers, the last of which predicts a further token; each expert's slice is a page of its own."""
    return write_tiny_moe(tmp_path / "glm.gguf", smollm2_gguf, "glm4moe", alignment=4096)


@pytest.mark.usefixtures("probed")
def test_layers_that_predict_further_tokens_are_in_no_sum_and_no_trace_has_to_have_them(
    further: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dfqs.routing.tracefile import write_trace
    from routing_traces import make_chunk, make_header

    spec = open_model(further).spec
    assert (spec.layers, spec.prediction_layers, spec.passed_layers) == (4, 1, 3)
    header = make_header(4, experts=8, used=2).model_copy(update={"layers": (1, 2)})
    write_trace(tmp_path / "t.route", header, [make_chunk(header, 6)])
    write_trace(tmp_path / "empty.route", header, [])

    assert run(["forecast", str(further), "--trace", str(tmp_path / "t.route"), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    last = [t for t in open_model(further).tensors if t.name.startswith("blk.3.")]
    assert any("_exps" in t.name for t in last)
    rest = [t for t in open_model(further).tensors if t not in last]
    assert found["decode_bytes_per_token"] == sum(one.bytes for one in count_work(rest, 8, 2).values())
    assert found["curve"]["tokens"] == 4
    # Rates against memory and what the context takes of it are of the same length.
    assert found["curve"]["context_tokens"] == found["contexts"][-1]["context_tokens"]
    assert run(["forecast", str(further), "--trace", str(tmp_path / "empty.route")]) == 2
    assert "no tokens" in capsys.readouterr().err


@pytest.mark.usefixtures("probed")
def test_the_disk_of_a_set_is_that_of_the_shard_with_the_experts_by_as_many_threads_as_compute(
    further: Path, tmp_path: Path, known: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A first shard without tensors had been too small, which was told after minutes of measuring.
    shards = split(plan_split(further, tmp_path / "set", max_tensors=20, no_tensor_first_split=True))
    asked: list[tuple[Path, int]] = []

    def measure(path: Path, piece_bytes: int, threads: int) -> DiskSpeed:
        asked.append((path, threads))
        return DiskSpeed(piece_bytes, DiskRate(1e9, 1e9, 1e9, 1.0), DiskRate(1e9, 1e9, 1e9, 1.0), None)

    monkeypatch.setattr(forecasting, "measure_disk", measure)
    steady, changing = (known.model_copy(update={"threads": 3, "change": change}) for change in (1.0, 1.4))
    requests = (ForecastRequest((64,), memory=(10**9,), calibration=one) for one in (steady, changing))
    one, other = (forecasting.forecast(open_model(shards[0]), request) for request in requests)

    assert len(shards) > 2
    assert [threads for _, threads in asked] == [3, 3]
    assert any("_exps" in tensor.name for tensor in read_header(asked[0][0]).tensors)
    # All is in memory, and the machine changes its speed: so does what is said of memory.
    assert one.curve is not None and other.curve is not None
    first, second = one.curve.points[0].streamed, other.curve.points[0].streamed
    assert first is not None and second is not None
    assert second.high / second.low == pytest.approx(1.4**2 * first.high / first.low)
    assert second == other.contexts[0].decode


@pytest.mark.usefixtures("probed")
def test_experts_smaller_than_a_page_take_the_curve_and_not_the_forecast(
    tmp_path: Path, smollm2_gguf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_moe(tmp_path / "tiny.gguf", smollm2_gguf, "qwen3moe")

    assert run(["forecast", str(path), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["curve"] is None and found["contexts"]
    assert "smaller than a page" in found["notes"][-1]
    monkeypatch.setattr(forecasting, "calibrate", lambda *_: pytest.fail("it measures"))
    assert run(["forecast", str(path), "--ram", "1GB"]) == 2
    for model in (path, smollm2_gguf):
        assert run(["forecast", str(model), "--plot", str(tmp_path / "p.svg")]) == 2
        assert "no curve to draw" in capsys.readouterr().err
    assert run(["forecast", str(path), "--plot", str(tmp_path / "p.bmp")]) == 2


@pytest.mark.usefixtures("probed")
def test_a_header_that_says_zero_tokens_of_context_has_a_forecast(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_probe(tmp_path / "model.gguf", replace(TINY, context=0), GGMLType.Q8_0)

    assert run(["forecast", str(path), "--ctx", "64", "--ram", "400MB", "--json"]) in (0, 1)

    found = json.loads(capsys.readouterr().out)
    assert found["unknown"] is not None or [one["context_tokens"] for one in found["contexts"]] == [64]
