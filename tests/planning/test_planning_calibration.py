"""The calibration of a machine: random models measured in turn, how well their times are known, and what is kept."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from dfqs.errors import SpaceError
from dfqs.gguf import GGMLType
from dfqs.planning import calibration as calibrating
from dfqs.planning.calibration import Calibration
from dfqs.planning.probe_models import ProbeShape, probe_bytes
from dfqs.planning.probing import LEAST_DEEP, Measured, Probe, Timed, drift_of, is_settled, measure_probes
from dfqs.progress import in_stages
from dfqs.records import read_json, write_json
from dfqs.runtime import Worker
from planning_jobs import make_probe

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
    # Of two times both: the small probe's tokens are not known because its prompts are.
    assert not is_settled([steady[0], timed(1.0, 2.0, 3.0)])
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
    assert first.other_cpus_now is None and again.other_cpus_now is not None
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

    # Beside others it is as slow as they make it: intervals had reached from 8 to 267 tokens/s.
    monkeypatch.setattr(calibrating, "BUSY_CPUS", 0.0)
    monkeypatch.setattr(calibrating, "_change_since", lambda *_: pytest.fail("a busy machine is compared"))
    assert calibrating.calibrate([(GGMLType.Q4_0, "dense")], 1).change == more.change


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Calibration]:
    """A record of this machine, and where it lies."""
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "cache"))
    known = read_json(GOLDEN / "calibration-1.json", Calibration)
    pulse = known.observations[0].model_copy(
        update={"probe": "pulse", "terms": {"node": 1000.0}, "seconds": 1e-6, "standard_error": 0.0}
    )
    rates = {"node": 1.0, "F32 dense": 1.0, "Q8_0 dense": 1.0}
    record = known.model_copy(
        update={"observations": (pulse,), "decode_ns": rates, "prompt_ns": rates, "change": 1.0, "machine": {"a": 1}}
    )
    path = calibrating.calibration_path(record.machine, record.runtime, record.threads)
    calibrating._keep(record)
    return path, record


@pytest.mark.parametrize(
    "change",
    [
        {"observations": ()},
        {"decode_ns": {}},
        {"decode_ns": {"node": 0.0, "Q8_0 dense": 0.0}},
        {"decode_ns": {"node": 1e18}},
        {"machine": {"a": 2}},
        {"threads": 7},
    ],
    ids=str,
)
def test_a_record_that_somebody_wrote_into_is_no_record(kept: tuple[Path, Calibration], change: dict[str, Any]) -> None:
    path, record = kept
    assert calibrating._read_record(path) == record

    write_json(path, record.model_copy(update=change), overwrite=True)
    assert calibrating._read_record(path) is None
    # The small probe is looked for by its name: without it the next measurement had nothing to be held against.
    for wrong in ({"probe": "pulses"}, {"what": "prompt"}, {"seconds": 0.0}):
        one = record.observations[0].model_copy(update=wrong)
        write_json(path, record.model_copy(update={"observations": (one,)}), overwrite=True)
        assert calibrating._read_record(path) is None
    path.write_text("{")
    assert calibrating._read_record(path) is None


def test_a_type_that_is_added_on_a_machine_that_changed_a_little_says_so(
    kept: tuple[Path, Calibration], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = kept
    decode = Timed("Q4_0 dense", "decode", 8, {"Q4_0 dense": 1e6}, [1e-3] * 3)
    prompt = Timed("Q4_0 dense", "prompt", 8, {"Q4_0 dense": 1e6}, [1e-4] * 3)
    monkeypatch.setattr(calibrating, "calibration_path", lambda *_: path)
    monkeypatch.setattr(calibrating, "measure_read_bandwidth", lambda _: 1e10)
    monkeypatch.setattr(calibrating, "_measure", lambda *_: Measured((decode, prompt), 0.0, 1.02))
    monkeypatch.setattr(calibrating, "_change_since", lambda *_: 1.12)

    found = calibrating.calibrate([(GGMLType.Q4_0, "dense")], 2)

    assert found.change == 1.12
    assert [one.probe for one in found.observations] == ["pulse", "Q4_0 dense", "Q4_0 dense"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For temporary files."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def test_no_room_for_the_random_models_is_told_with_what_to_do_and_leaves_nothing(
    small_probes: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def refuse(*_: object, **__: object) -> None:
        raise SpaceError("a quota")

    with monkeypatch.context() as patch:
        patch.setattr("dfqs.storage.space.free_bytes", lambda _: 1000)
        with pytest.raises(SpaceError, match=f"{place} has .* free, .* are needed; .* set TMPDIR"):
            calibrating.calibrate([], 1)
    with monkeypatch.context() as patch:
        patch.setattr("dfqs.runtime.worker.ReportingCalls.call", refuse)
        with pytest.raises(SpaceError, match=f"{place} has no room for .*; .* set TMPDIR"):
            calibrating.calibrate([], 1)
    assert not list(place.iterdir())
    assert not small_probes.exists()


def test_ctrl_c_while_the_machine_is_measured_leaves_nothing(small_probes: Path, place: Path) -> None:
    told: list[str] = []

    def interrupt(done: int, total: int | None = None, note: str = "") -> None:
        told.append(note)
        assert len(told) < 9, "it goes on"
        if len(told) == 8:
            assert list(place.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrating.calibrate([], 1, interrupt)
    assert not list(place.iterdir())
    assert not small_probes.exists()


def test_the_room_that_is_asked_for_is_what_a_random_model_takes(tmp_path: Path) -> None:
    path = make_probe(tmp_path / "tiny.gguf", TINY, GGMLType.Q4_0)

    assert 0 <= path.stat().st_size - probe_bytes(TINY, GGMLType.Q4_0) < 20_000


def test_what_is_done_in_stages_never_goes_backwards() -> None:
    told: list[tuple[int, int | None]] = []
    progress = in_stages(lambda done, total=None, note="": told.append((done, total)))

    for stage in ([(0, 6), (5, 6)], [(0, 240), (0, 240), (100, 240)], [(0, 6), (6, 6)]):
        for done, total in stage:
            progress(done, total)

    assert told == [(0, 6), (5, 6), (5, 245), (5, 245), (105, 245), (105, 111), (111, 111)]
