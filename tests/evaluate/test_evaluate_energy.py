"""Energy: a counter that begins anew takes nothing back, nothing is counted twice, and what cannot be read is not 0."""

from pathlib import Path

import pytest

from dfqs.energy import EnergySample, joules_between, read_energy
from dfqs.evaluate.speed import DecodeRun, summarise


def zone(root: Path, name: str, what: str, microjoules: int, span: int = 1_000_000_000) -> None:
    place = root / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "name").write_text(f"{what}\n")
    (place / "energy_uj").write_text(f"{microjoules}\n")
    (place / "max_energy_range_uj").write_text(f"{span}\n")


def test_packages_and_their_memory_are_added_and_parts_of_them_are_not(tmp_path: Path) -> None:
    for offset in (0, 1):
        zone(tmp_path, "intel-rapl:0", "package-0", 10_000_000 + 3_000_000 * offset)
        zone(tmp_path, "intel-rapl:0:0", "core", 1_000_000 * offset)
        zone(tmp_path, "intel-rapl:0:1", "dram", 2_000_000 * offset)
        zone(tmp_path, "intel-rapl:1", "psys", 9_000_000 * offset)
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 3_000_000 * offset)
        (tmp_path / "dtpm").mkdir(exist_ok=True)
        if offset == 0:
            before = read_energy(tmp_path)

    assert joules_between(before, read_energy(tmp_path)) == 5.0


def test_a_counter_that_began_anew_took_what_it_took(tmp_path: Path) -> None:
    before, after = EnergySample({"a": (900, 1000)}), EnergySample({"a": (100, 1000)})

    assert joules_between(before, after) == pytest.approx(200e-6)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, EnergySample({"a": (1, 9)})),
        (EnergySample({"a": (1, 9)}), None),
        (EnergySample({"a": (1, 9)}), EnergySample({"b": (1, 9)})),
        (EnergySample({"a": (1, 9)}), EnergySample({"a": (1, 9)})),
    ],
)
def test_what_is_not_known_is_not_zero(before: EnergySample | None, after: EnergySample | None) -> None:
    assert joules_between(before, after) is None


def test_a_machine_that_does_not_tell_tells_nothing(tmp_path: Path) -> None:
    assert read_energy(tmp_path / "none") is None
    assert read_energy(tmp_path) is None
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (tmp_path / "intel-rapl:0/energy_uj").write_text("not a number")
    assert read_energy(tmp_path) is None


def test_energy_of_a_token_is_told_only_where_every_repeat_has_it() -> None:
    def repeat(joules: float | None) -> DecodeRun:
        return DecodeRun(1, 1.0, (0.1, 0.1), 0, (), 1, "default", 0.0, energy_joules=joules)

    told = summarise([repeat(2.0), repeat(4.0), repeat(8.0)], None, None)
    assert told.energy_joules_per_token == 2.0
    silent = summarise([repeat(2.0), repeat(None)], None, None)
    assert silent.energy_joules_per_token is None
    assert "energy_joules_per_token" not in silent.model_dump()
