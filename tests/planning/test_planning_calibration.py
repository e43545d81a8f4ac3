"""The calibration of a machine: random models measured in turn, how well their times are known, and what is kept."""

from pathlib import Path

import pytest

from dfqs.gguf import GGMLType
from dfqs.planning import calibration as calibrating
from dfqs.planning.calibration import Calibration
from dfqs.planning.probe_models import ProbeShape
from dfqs.planning.probing import LEAST_DEEP, Measured, Probe, Timed, drift_of, is_settled, measure_probes
from dfqs.records import read_json
from dfqs.runtime import Worker

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = ProbeShape("qwen3moe", 2, 256, 256, 2, 1, 64, experts=4, used=2, context=512)


def test_random_models_load_decode_and_are_measured_in_turn(tmp_path: Path) -> None:
    probes = [Probe(name, TINY, GGMLType.Q4_K, GGMLType.Q8_0, (8, 32)) for name in ("first", "second")]
    told: list[str] = []
    with Worker(1) as worker:
        found = worker.reporting(lambda event: told.append(event[1])).call(measure_probes, tmp_path, probes, 0.0, 0.0)

    kinds = [("prompt", 8), ("decode", 8), ("prompt", 32), ("decode", 32)]
    assert [(one.probe, one.what, one.tokens) for one in found.times] == [
        (name, *kind) for name in ("first", "second") for kind in kinds
    ]
    # Both are loaded first; then one after the other, long prompts in every third round.
    assert told == ["first", "second"] * (1 + 3)
    assert [len(one.looks) for one in found.times[:4]] == [3, 3, 1, 1]
    assert all(one.seconds > 0 and one.spread >= 1 for one in found.times)
    assert all(one.terms["Q4_K experts"] > 0 and one.terms["node"] > 0 for one in found.times)
    assert found.drift >= 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path))
    dense = ProbeShape("llama", 1, 256, 256, 4, 1, context=512)
    for name in ("DENSE", "PULSE"):
        monkeypatch.setattr(calibrating, name, dense)
    monkeypatch.setattr(calibrating, "NODES", TINY)
    monkeypatch.setattr(calibrating, "ATTENTION", (dense,))
    monkeypatch.setattr(calibrating, "PROBE_WEIGHTS", 1 << 16)
    for name, tokens in (("SHORT", 8), ("BATCH", 16), ("DEEP", 64)):
        monkeypatch.setattr(calibrating, f"{name}_TOKENS", tokens)
    monkeypatch.setattr(calibrating, "BUDGET_S", 0.0)
    monkeypatch.setattr(calibrating, "PULSE_S", 0.0)
    monkeypatch.setattr(calibrating, "measure_read_bandwidth", lambda _: 1e10)
    # Such small probes say nothing of a machine's speed.
    monkeypatch.setattr(calibrating, "OTHER_MACHINE", 1e9)
    monkeypatch.setattr(calibrating, "BUSY_CPUS", 1e9)
    return tmp_path / "calibrations"


def timed(*looks: float, probe: str = "a") -> Timed:
    return Timed(probe, "decode", 8, {"node": 1.0}, list(looks))


def test_of_several_looks_the_middle_counts_and_not_the_luckiest() -> None:
    found = timed(1.0, 4.0, 2.0, 2.0, 3.0)

    assert (found.seconds, found.spread) == (2.0, 4.0)
    # Deviation 1.1402 of a mean of 2.4; a median's error is a quarter larger than a mean's.
    assert found.standard_error == pytest.approx(1.25 * 1.14018 / 2.4 / 5**0.5, rel=1e-4)


def test_a_measurement_goes_on_until_nearly_all_times_are_known() -> None:
    steady = [timed(1.0, 1.01, 0.99) for _ in range(19)]

    assert is_settled([*steady, timed(1.0, 2.0, 3.0)])
    assert not is_settled([steady[0], timed(1.0, 2.0, 3.0)])
    assert not is_settled([*steady[:10], *[timed(1.0, 2.0, 3.0)] * 10])
    # Two looks that agree may do so by chance.
    assert LEAST_DEEP == 3
    assert not is_settled([*steady, timed(1.0, 1.0)])


def test_a_machine_that_slows_down_on_the_way_is_noticed_and_chance_is_not() -> None:
    assert drift_of([timed(1.0, 1.0, 1.5, 1.5), timed(2.0, 3.0), timed(4.0, 6.0)]) == pytest.approx(1.5)
    assert drift_of([timed(1.5, 1.0), timed(3.0, 2.0)]) == pytest.approx(1.5)
    assert drift_of([timed(1.0, 2.0, 2.0, 1.0), timed(3.0, 3.0)]) == 1
    assert drift_of([timed(1.0)]) == 1


@pytest.mark.parametrize(("seconds", "change"), [(2.0, 2.0), (0.5, 2.0), (1.0, 1.0)])
def test_the_small_probe_tells_how_much_the_machine_changed_since(seconds: float, change: float) -> None:
    known = read_json(GOLDEN / "calibration-1.json", Calibration)
    before = known.observations[0].model_copy(update={"probe": "pulse", "seconds": 1.0, "standard_error": 0.0})
    record = known.model_copy(update={"observations": (before,)})
    exact = Measured((timed(seconds, seconds, probe="pulse"),), 0.0, 1.0)
    vague = Measured((timed(0.7 * seconds, seconds, 1.3 * seconds, probe="pulse"),), 0.0, 1.0)

    assert calibrating._change_since(record, exact) == pytest.approx(change)
    assert 1 <= calibrating._change_since(record, vague) <= 1 + 0.5 * (change - 1)


def test_a_busy_machines_calibration_is_not_kept(small_probes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "BUSY_CPUS", 0.0)

    calibrating.calibrate([(GGMLType.Q8_0, "dense")], 1)

    assert not list(small_probes.glob("*"))


def test_what_is_known_of_a_machine_is_not_measured_again_until_it_is_another(
    small_probes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = calibrating.calibrate([(GGMLType.Q8_0, "dense")], 1)
    assert len(list(small_probes.glob("*"))) == 1
    again = calibrating.calibrate([(GGMLType.Q8_0, "dense")], 1)
    assert again.observations == first.observations
    more = calibrating.calibrate([(GGMLType.Q4_0, "dense")], 1)
    assert more.observations[: len(first.observations)] == first.observations
    assert more.pulse_s == first.pulse_s
    assert more.has((GGMLType.Q4_0, "dense"))

    monkeypatch.setattr(calibrating, "OTHER_MACHINE", 0.0)
    other = calibrating.calibrate([(GGMLType.Q5_0, "dense")], 1)

    assert other.observations[0] not in more.observations
    assert not other.has((GGMLType.Q4_0, "dense"))
    # What is all known stays in use, with a word about it and a wider interval.
    kept = calibrating.calibrate([(GGMLType.Q4_0, "dense")], 1)
    assert kept.observations == more.observations
    assert kept.change >= more.change
