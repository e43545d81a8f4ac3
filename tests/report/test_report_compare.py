"""Comparisons: what was measured otherwise is refused by name, and a difference is shown only where there is one."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dfqs.cli.main import run
from dfqs.evaluate.scores import Completion, ScoredItem, Verdict
from dfqs.records import parse_record
from dfqs.report.compare import compare, compare_likelihoods, right_logprob
from dfqs.report.comparison import ComparisonDocument, Outcome
from dfqs.report.reading import read_reported
from report_documents import run_documents
from report_pages import EVIL, assert_harmless

QUESTIONS = 40


def wrong_from(number: int) -> Any:
    return lambda index: "right" if index < number else "wrong"


MOSTLY_RIGHT = wrong_from(30)


def write_run(directory: Path, verdict: Any = MOSTLY_RIGHT, **changes: Any) -> Path:
    """An evaluation of 40 reasoning questions and 40 at each of two lengths, with five repeats of its speed."""
    record, lines = copy.deepcopy(run_documents())
    record["conditions"]["items"] = {"reasoning": QUESTIONS, "code": 2, "context": QUESTIONS}
    record["decode_repeats"] = 5
    for key, value in changes.get("conditions", {}).items():
        record["conditions"][key] = value
    record["subject"]["name"] = changes.get("name", "a model")
    record["subject"]["content_sha256"] = changes.get("content", "d" * 64)
    kept = [line for line in lines if line["stage"] in ("notes", "code", "boundary")]
    kept = [line for line in kept if line["stage"] not in changes.get("without", ())]
    answer = next(line for line in lines if line["stage"] == "reasoning")
    repeat = next(line for line in lines if line["stage"] == "speed")
    for index in range(QUESTIONS):
        kept.append(_answer(answer, "reasoning", f"r{index}", verdict(index), {"family": "arithmetic", "level": 1}))
    for length in (1024, 2048):
        plan = {"notes": list(range(QUESTIONS)), "depths": [k / (QUESTIONS - 1) for k in range(QUESTIONS)]}
        kept.append({"stage": "context", "key": f"{length}/plan", "data": plan})
        for index in range(QUESTIONS):
            place = {"length_tokens": length, "depth": index / (QUESTIONS - 1)}
            kept.append(_answer(answer, "context", f"{length}/{index}", verdict(index), place))
    for number, seconds in enumerate(changes.get("seconds", (0.100, 0.101, 0.102, 0.103, 0.104)), start=1):
        data = {**repeat["data"], "decode_s": [seconds] * 8, "other_cpus": changes.get("other_cpus", 0.0)}
        data["threads"] = changes.get("threads", 2)
        kept.append({"stage": "speed", "key": f"repeat-{number}", "data": data})
    run_directory = directory / "run-1"
    run_directory.mkdir(parents=True)
    (run_directory / "run.json").write_text(json.dumps(record))
    (run_directory / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    return directory


def _answer(line: Any, stage: str, key: str, verdict: str, place: Any) -> Any:
    data = {**line["data"], "stage": stage, "item": key, "verdict": verdict, "place": place}
    return {"stage": stage, "key": key, "data": data}


def compared(*directories: Path, **options: Any) -> ComparisonDocument:
    first, *others = (read_reported(directory) for directory in directories)
    return compare(first, others, **options)


def measures(document: ComparisonDocument) -> dict[str, Any]:
    return {measure.name: measure for measure in document.others[0].measures}


def test_two_runs_of_one_model_show_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", seconds=(0.101, 0.100, 0.103, 0.102, 0.105))

    document = compared(a, b)

    assert document.outcome == Outcome.NO_DIFFERENCE
    assert document.others[0].same_content
    assert measures(document)["reasoning_score"].p_value == 1.0
    assert run(["compare", str(a), str(b)]) == 0
    assert "no difference shown" in capsys.readouterr().out


def test_a_model_that_loses_answers_is_worse_with_an_interval_around_what_it_lost(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", wrong_from(10), content="e" * 64)

    document = compared(a, b)

    reasoning = measures(document)["reasoning_score"]
    assert (reasoning.reference, reasoning.value, reasoning.difference) == (0.75, 0.25, -0.5)
    assert (reasoning.both_right, reasoning.reference_alone_right, reasoning.other_alone_right) == (10, 20, 0)
    assert reasoning.p_value == pytest.approx(2 / 2**20)
    low, high = reasoning.interval
    assert -0.7 < low < -0.5 < high < -0.3
    assert reasoning.outcome == document.outcome == Outcome.WORSE
    assert measures(document)["context_stability_curve"].n == 80
    assert measures(document)["context at 1,024 tokens"].outcome == Outcome.TOLD
    assert run(["compare", str(a), str(b)]) == 1
    assert compared(b, a).outcome == Outcome.BETTER
    assert run(["compare", str(b), str(a)]) == 0


def test_other_threads_are_allowed_for_scores_and_refused_for_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", threads=1)

    document = compared(a, b)

    assert measures(document)["reasoning_score"].outcome == Outcome.NO_DIFFERENCE
    assert measures(document)["cpu_tokens_per_sec"].outcome == Outcome.REFUSED
    assert document.others[0].score_differences == ()
    assert document.others[0].speed_differences == ("threads: 2 -> 1",)
    assert run(["compare", str(a), str(b)]) == 1
    assert "threads: 2 -> 1" in capsys.readouterr().err
    assert run(["compare", str(a), str(b), "--only", "scores"]) == 0
    assert "threads" not in capsys.readouterr().err
    assert run(["compare", str(a), str(b), "--anyway"]) == 0
    assert "--anyway" in capsys.readouterr().err


def test_another_prompt_set_is_refused_for_everything_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", conditions={"prompt_sets": {"reasoning": "f" * 64}})

    document = compared(a, b)

    assert {m.outcome for m in document.others[0].measures} == {Outcome.REFUSED}
    assert document.outcome == Outcome.REFUSED
    assert run(["compare", str(a), str(b), "--json"]) == 1
    told = capsys.readouterr().out
    assert parse_record(told, ComparisonDocument) == document
    assert f"prompt_sets.reasoning: {'a' * 57}..." in told
    assert compared(a, b, anyway=True).outcome == Outcome.NO_DIFFERENCE


@pytest.mark.thorough
def test_a_fingerprint_that_was_written_by_hand_does_not_make_conditions_equal(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", conditions={"sampling": "hot"})
    for directory in (a, b):
        assert run(["report", str(directory), "-o", str(directory)]) == 0
    document = json.loads((b / "report.json").read_text())
    document["conditions"]["score_fingerprint"] = json.loads((a / "report.json").read_text())["conditions"][
        "score_fingerprint"
    ]
    (b / "report.json").write_text(json.dumps(document))

    found = compare(read_reported(a / "report.json"), [read_reported(b / "report.json")])

    assert found.outcome == Outcome.REFUSED
    assert found.others[0].score_differences == ("sampling: greedy -> hot",)


def test_what_one_side_lacks_is_not_taken_for_no_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", without=("code",))

    assert measures(compared(a, b))["code_score"].outcome == Outcome.NOT_MEASURED
    assert run(["compare", str(a), str(b)]) == 4
    assert "code_score: " in capsys.readouterr().out
    # Missing from both, nobody waits for it.
    c = write_run(tmp_path / "c", without=("code",))
    assert run(["compare", str(b), str(c)]) == 0


@pytest.mark.thorough
def test_reports_without_their_answers_are_compared_by_their_counts_and_say_so(tmp_path: Path) -> None:
    paths = []
    for name, number in (("a", 30), ("b", 5)):
        directory = write_run(tmp_path / name, wrong_from(number))
        assert run(["report", str(directory), "-o", str(tmp_path / f"{name}-alone")]) == 0
        paths.append(tmp_path / f"{name}-alone" / "report.json")

    reasoning = measures(compared(*paths))["reasoning_score"]

    assert reasoning.outcome == Outcome.WORSE and reasoning.p_value is None
    assert "answers are not here" in reasoning.reason


@pytest.mark.parametrize(
    ("seconds", "other_cpus", "outcome"),
    [
        ((0.200, 0.201, 0.202, 0.203, 0.204), 0.0, Outcome.WORSE),
        ((0.050, 0.051, 0.052, 0.053, 0.054), 0.0, Outcome.BETTER),
        ((0.200, 0.201, 0.202, 0.203, 0.204), 1.0, Outcome.NO_DIFFERENCE),
        ((0.105, 0.106, 0.107, 0.107, 0.106), 0.0, Outcome.NO_DIFFERENCE),
    ],
)
def test_a_speed_differs_when_its_repeats_lie_apart_on_a_quiet_machine(
    seconds: Any, other_cpus: float, outcome: Outcome, tmp_path: Path
) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", seconds=seconds, other_cpus=other_cpus)

    speed = measures(compared(a, b))["cpu_tokens_per_sec"]

    assert speed.outcome == outcome
    low, high = speed.interval
    assert low <= speed.difference <= high


@pytest.mark.thorough
def test_a_comparison_is_a_page_that_obeys_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_run(tmp_path / "a", name=EVIL)
    b = write_run(tmp_path / "b", wrong_from(10), name=EVIL, conditions={"sampling": EVIL})

    assert run(["compare", str(a), str(b), "--html", str(tmp_path / "c.html")]) == 1

    page = (tmp_path / "c.html").read_text()
    assert_harmless(page)
    assert "sampling: greedy" in page
    told = capsys.readouterr()
    assert (told.out + told.err).replace("\n", "").isprintable()
    assert run(["compare", str(a), str(b), "--anyway", "--html", str(tmp_path / "c.html")]) == 1
    assert "<svg" in (tmp_path / "c.html").read_text()
    (tmp_path / "c.html").write_text("a thesis")
    assert run(["compare", str(a), str(b), "--html", str(tmp_path / "c.html")]) == 2


def test_one_evaluation_alone_is_no_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(write_run(tmp_path / "a"))]) == 2
    assert run(["compare", str(tmp_path / "a"), str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err


class Scored(ScoredItem):
    """An answer beside which the right one's probability was measured."""

    likelihood: Any = None


def scored(logprobs: list[float]) -> Any:
    """An evaluation whose right answers have these probabilities."""
    completion = Completion(text="x", finish_reason="stop")
    items = {
        ("context", f"1024/{index}"): Scored(
            stage="context",
            item=f"1024/{index}",
            verdict=Verdict.RIGHT,
            completion=completion,
            likelihood=SimpleNamespace(logprobs=(value, -9.0), right=True),
        )
        for index, value in enumerate(logprobs)
    }
    return SimpleNamespace(items=items)


def test_likelihoods_are_compared_pair_by_pair() -> None:
    ours = [-1.0 - index / 10 for index in range(40)]

    (lower,) = compare_likelihoods(scored(ours), scored([value - 0.5 for value in ours]))
    assert lower.difference == pytest.approx(-0.5)
    assert lower.interval == pytest.approx((-0.5, -0.5))
    assert (lower.outcome, lower.n) == (Outcome.WORSE, 40)

    # Up and down by as much: the mean of pairs is 0, and lies inside.
    (none,) = compare_likelihoods(scored(ours), scored([v + (0.3 if i % 2 else -0.3) for i, v in enumerate(ours)]))
    assert none.outcome == Outcome.NO_DIFFERENCE
    assert none.interval is not None and none.interval[0] < 0 < none.interval[1]
    assert none.interval[1] - none.interval[0] == pytest.approx(4 * 0.3 / 40**0.5, rel=0.15)
    again = compare_likelihoods(scored(ours), scored([v + (0.3 if i % 2 else -0.3) for i, v in enumerate(ours)]))
    assert again == [none]


def test_answers_that_are_exactly_as_likely_do_not_say_that_anything_would_have_been_seen() -> None:
    ours = [-1.0 - index / 10 for index in range(40)]

    (same,) = compare_likelihoods(scored(ours), scored(ours))

    assert (same.outcome, same.difference) == (Outcome.NO_DIFFERENCE, 0)
    assert same.smallest_significant is None and "exactly as likely" in (same.reason or "")


def test_an_infinitely_improbable_answer_is_no_number_to_take_a_mean_of() -> None:
    (found,) = compare_likelihoods(scored([-1.0, -2.0, float("-inf")]), scored([-1.0, -2.0, -3.0]))

    assert found.n == 2


def test_the_probability_of_an_answer_is_known_only_where_it_was_scored() -> None:
    item = next(iter(read_items().values()))
    assert right_logprob(item) is None


def read_items() -> Any:
    from dfqs.report.reading import scored_items

    _, lines = run_documents()
    return scored_items({(line["stage"], line["key"]): line["data"] for line in lines})
