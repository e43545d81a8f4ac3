"""Given answers by likelihood: near misses are wrong, controls get what they must, a resumed run the same numbers."""

import math
import random
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfqs.evaluate.conditions import Numerics
from dfqs.evaluate.local import LocalAnswerer
from dfqs.evaluate.near_misses import COUNT, near_misses, set_hash
from dfqs.evaluate.preference import measure_preferences, preference_items
from dfqs.evaluate.prompts import ReasoningItem
from dfqs.evaluate.reasoning import score_reasoning
from dfqs.evaluate.run import Request, evaluate
from dfqs.evaluate.scores import CHOSEN, Completion, LikelihoodScore, Verdict
from dfqs.evaluate.stages import FLOOR, LIKELIHOOD
from dfqs.evaluate.store import RunRecord, Subject, open_run
from dfqs.evaluate.suites import STANDARD, Suite
from dfqs.evaluate.thoughts import closing_mark
from dfqs.progress import Progress, no_progress
from dfqs.quantize.noise_floor import NoiseFloor
from dfqs.records import sha256_of
from dfqs.report.compare import compare
from dfqs.report.markdown import render_markdown
from dfqs.report.page import render_page
from dfqs.report.preference import likelihood_detail
from dfqs.report.reading import read_reported
from dfqs.report.schema import LikelihoodDetail
from evaluate_runs import CONDITIONS, SUBJECT

ALL = preference_items(96)
PUBLISHED = "8e7f94b2ecf8db71ca427b9a76ec00c04f8383bbf6c14e3d03478c35854841da"
"""Of all near misses together: other ones need another version."""


def test_every_item_has_near_misses_that_the_scorer_calls_wrong_beside_an_answer_that_it_calls_right() -> None:
    assert len(ALL) == 160
    for set_, item, (answer, *others) in ALL:
        assert len(others) == min(COUNT, max(len(item.choices) - 1, 0) or COUNT), item.id
        assert len({answer, *others}) == 1 + len(others)
        for given_, verdict in [(answer, Verdict.RIGHT), *((other, Verdict.WRONG) for other in others)]:
            scored = score_reasoning(item, Completion(text=f"Answer: {given_}", finish_reason="stop"))
            assert scored.verdict is verdict, (item.id, given_)
        assert ANSWER_LINE in set_.set_.entry.instruction


ANSWER_LINE = "Answer: <answer>"


def test_near_misses_are_those_that_were_published() -> None:
    assert sha256_of([[item.id, *answers] for _, item, answers in ALL]) == PUBLISHED
    assert set_hash() == sha256_of(["dfqs near misses", 1, 3])


def made_up(answer: str, kind: str, choices: tuple[str, ...] = ()) -> ReasoningItem:
    return ReasoningItem.model_validate(
        {"id": "x", "family": "f", "level": 1, "question": "?", "answer": answer, "kind": kind, "choices": choices}
    )


@given(st.integers(-(10**6), 10**6))
def test_near_misses_of_a_number_are_other_numbers_of_its_length(number: int) -> None:
    others = near_misses(made_up(str(number), "number"))

    assert len(others) == COUNT
    assert all(int(other) != number and len(other) == len(str(number)) for other in others)


@given(st.text(max_size=12), st.sampled_from(["number", "time", "word", "text"]))
def test_no_near_miss_equals_any_answer_however_odd(answer: str, kind: str) -> None:
    item = made_up(answer, kind)

    others = near_misses(item)

    assert others == near_misses(item)
    assert answer.strip().casefold() not in {other.strip().casefold() for other in others}
    assert len(set(others)) == len(others) <= COUNT


class Control:
    """Answers by a rule, where a model would by its likelihoods."""

    def __init__(self, rule: str) -> None:
        self.rule, self.random = rule, random.Random(7)

    def prefer(
        self, prompt: str, answers: Sequence[str], numerics: Numerics | None = None
    ) -> tuple[Completion, LikelihoodScore | None]:
        rules = {
            "oracle": [0.0] + [-5.0] * (len(answers) - 1),
            "silence": [-3.0] * len(answers),
            "guessing": [self.random.random() for _ in answers],
        }
        if self.rule == "broken":
            return Completion(text="NaN", finish_reason="error"), None
        logprobs = rules[self.rule]
        first, *others = logprobs
        score = LikelihoodScore(
            right=all(first > other for other in others),
            chance=1 / len(answers),
            logprobs=tuple(logprobs),
            greedy=self.rule == "oracle",
            computed_tokens=1,
        )
        return Completion(text=answers[0], finish_reason=CHOSEN), score

    def hold_against_itself(self, tokens: int, progress: Progress = no_progress) -> NoiseFloor:
        raise AssertionError("not asked for")


def measured(rule: str, directory: Path) -> tuple[LikelihoodDetail | None, dict[str, str]]:
    record = RunRecord(subject=SUBJECT, conditions=CONDITIONS, threads=1, curve_lengths=(1024,), decode_repeats=1)
    store, missing = open_run(directory, record), dict[str, str]()
    measure_preferences(Control(rule), store, STANDARD, no_progress)
    found = likelihood_detail({LIKELIHOOD: store.stage(LIKELIHOOD)}, len(ALL), missing)
    store.close()
    return found, missing


def test_an_oracle_gets_all_silence_nothing_and_guessing_what_chance_gives(tmp_path: Path) -> None:
    details = {}
    for rule in ("oracle", "silence", "guessing"):
        (tmp_path / rule).mkdir()
        details[rule] = measured(rule, tmp_path / rule)[0]

    oracle, silence, guessing = details["oracle"], details["silence"], details["guessing"]
    assert oracle is not None and silence is not None and guessing is not None
    assert (oracle.right, oracle.n, oracle.above_chance, oracle.greedy) == (160, 160, True, 160)
    assert oracle.margin.mean == 5 and oracle.gold.mean == 0
    assert (silence.right, silence.margin.mean, silence.above_chance) == (0, 0, False)
    assert guessing.interval_95 is not None
    assert guessing.interval_95[0] < guessing.chance < guessing.interval_95[1]
    assert guessing.above_chance is False
    assert sum(total for name, (_, total) in oracle.groups.items() if name.startswith("level")) == 160


def test_a_model_without_numbers_has_no_preference_and_the_reason(tmp_path: Path) -> None:
    found, missing = measured("broken", tmp_path)

    assert found is None
    assert missing == {"likelihood of given answers": "none could be scored; the last: NaN"}


@pytest.mark.parametrize(
    ("prompt", "closed"),
    [
        ("<|im_start|>assistant\n<think>\n", "\n</think>\n\n"),
        ("<think>a</think>\n<seed:think>", "\n</seed:think>\n\n"),
        ("<|im_start|>assistant\n", ""),
    ],
)
def test_a_thought_that_the_template_opens_is_ended_before_an_answer_is_scored(prompt: str, closed: str) -> None:
    assert closing_mark(prompt) == closed


SMALL = Suite("small", 1, 1, (256,), 1, 8, 1, 32, 0, likelihood_items=3, floor_items=2, floor_tokens=80)


def run_of(model: Path, out: Path) -> Path:
    subject = Subject(kind="file", name=model.name, location=str(model), file_bytes=5, file_sha256="00")
    with LocalAnswerer(model, threads=1, max_context=1024) as answerer:
        request = Request(SMALL, (LIKELIHOOD, FLOOR), threads=1)
        return evaluate(answerer, subject, model, request, out, lambda _stage: nullcontext(no_progress))


@pytest.fixture(scope="module")
def run(tiny_deepseek4: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tiny_deepseek4, tmp_path_factory.mktemp("preference"))


def test_a_report_has_answers_floor_and_both_in_words(run: Path) -> None:
    reported = read_reported(run)
    detail, floor = reported.report.details.likelihood, reported.report.details.noise_floor

    assert detail is not None and floor is not None
    assert detail.n == 6 and 0.2 < detail.chance < 0.35
    assert [each.n for each in detail.floor] == [4, 4]
    assert floor.tokens == 79 and floor.kl_nats is not None
    assert {stage for stage, _ in reported.items} == {LIKELIHOOD}
    words = render_markdown(reported.report)
    assert "right answer preferred" in words and "Noise floor" in words
    assert "Given answers" in render_page(reported.report)
    assert reported.report.notices[-1:] != ["noise floor: not measured"]


def test_a_run_that_was_cut_anywhere_goes_on_to_the_same_results(
    run: Path, tiny_deepseek4: Path, tmp_path: Path
) -> None:
    whole = (run / "results.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    shutil.copytree(run.parent, tmp_path / "out")
    cut = tmp_path / "out" / run.name / "results.jsonl"
    cut.write_bytes(b"".join(lines[: len(lines) // 2]))

    again = run_of(tiny_deepseek4, tmp_path / "out")

    assert again.name == run.name
    assert len((again / "results.jsonl").read_bytes().splitlines()) == len(lines)
    ours, theirs = (read_reported(each).report.details for each in (run, again))
    assert ours == theirs


def test_the_likelihoods_of_an_answer_are_those_of_the_text_put_through_at_once(tiny_deepseek4: Path) -> None:
    set_, item, answers = ALL[0]
    with LocalAnswerer(tiny_deepseek4, threads=1, max_context=1024) as answerer:
        completion, first = answerer.prefer(set_.prompt(item), answers)
        answerer.prefer("Something else.", ("a", "b"))
        answerer.complete("Name three colours.", 4)
        again = answerer.prefer(set_.prompt(item), answers)[1]
        alone = [answerer.prefer(set_.prompt(item), (answer,))[1] for answer in answers]

    assert first is not None and first == again
    assert completion.text == answers[max(range(len(answers)), key=first.logprobs.__getitem__)]
    for ours, theirs in zip(first.logprobs, alone, strict=True):
        assert theirs is not None and math.isclose(ours, theirs.logprobs[0], abs_tol=1e-6)


def test_a_run_against_itself_shows_no_difference_of_likelihoods(run: Path) -> None:
    reported = read_reported(run)

    found = compare(reported, [reported])

    measures = {measure.name: measure for measure in found.others[0].measures}
    assert found.noise_floor_nats is not None
    for name in ("likelihood of right answers", "margin over near misses"):
        assert measures[name].difference == 0
        assert measures[name].noise_floor is not None
        assert measures[name].resolution == "not resolvable"
    assert measures["right answers preferred"].n == 6
