"""docs/speed.md shows what was measured, and the frame of the benchmarks counts as it says."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from speed import page, results  # noqa: E402
from speed.frame import Arm, Curve, Goal, Row, Sample, command, exponent, measure  # noqa: E402


def row(seconds: dict[str, list[float]]) -> Row:
    turns = {name: iter(found) for name, found in seconds.items()}
    arms = tuple(Arm(name, "ours", lambda name=name: Sample(next(turns[name]), 1.0)) for name in seconds)  # type: ignore[misc]
    return Row("job", "A job", arms, "peer", (Goal("ours", "peer", "wall", 0.5), Goal("ours", "peer", "cpu", 0.9)))


def measured() -> results.Result:
    made = row({"ours": [1.0, 3.0, 2.0], "peer": [4.0, 4.0, 5.0, 6.0, 5.0, 5.0]})
    samples = measure(made, 3, lambda _: None)
    curve = Curve("merge", "shards", ((1, Sample(0, 0.1)), (10, Sample(0, 1.1)), (100, Sample(0, 10.1))))
    return results.Result.of(
        made, samples, (curve,), rounds=3, machine="a machine", load_before=0.1, load_after=0.2, commit=None
    )


def test_the_page_shows_the_results_that_are_kept() -> None:
    assert page.START + page.render(results.read()) + page.END in page.PAGE.read_text(encoding="utf-8")


def test_a_goal_is_judged_by_medians_and_the_control_is_the_base_against_itself() -> None:
    result = measured()
    wall, cpu = result.goals

    assert len(result.samples("peer")) == len(result.samples("peer (control)")) == 3
    assert page.ratio(result, wall) == pytest.approx(2.0 / 5.0)
    assert (page.is_met(result, wall), page.is_met(result, cpu)) == (True, False)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    result = measured()
    results.write(result, tmp_path)

    assert results.read(tmp_path) == [result]


def test_costs_that_double_with_the_size_have_the_exponent_one_whatever_the_start_costs() -> None:
    assert exponent([(1, 5.0), (1000, 5.0 + 1.0), (2000, 5.0 + 2.0)]) == pytest.approx(1.0)
    assert exponent([(1, 5.0), (1000, 6.0), (2000, 9.0)]) == pytest.approx(2.0)
    assert exponent([(1, 5.0), (2, 5.0), (3, 5.0)]) is None


def test_an_arm_that_fails_is_not_a_fast_arm() -> None:
    with pytest.raises(RuntimeError, match=r"exited with 3: .*why"):
        command([sys.executable, "-c", "import sys; sys.stderr.write('why'); sys.exit(3)"])()
    found = command([sys.executable, "-c", "sum(range(3_000_000))"])()
    assert found.cpu_s > 0 and (found.peak_bytes or 0) > 1 << 20
