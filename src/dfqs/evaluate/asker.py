"""Asks the questions of the context stages, one length after the other, and stores every answer before the next."""

from collections.abc import Sequence

from dfqs.evaluate.answerer import Answerer, LengthFailure
from dfqs.evaluate.boundary import LengthResult
from dfqs.evaluate.context import Question, is_right, note
from dfqs.evaluate.prompts import read_context_set
from dfqs.evaluate.scores import Completion, ScoredItem, Verdict, judged
from dfqs.evaluate.stages import CONTEXT
from dfqs.evaluate.statistics import Count
from dfqs.evaluate.store import Store
from dfqs.evaluate.suites import Suite
from dfqs.progress import Progress

ATTEMPTS = 2
"""Rounds of questions at one length; the second is for those without an answer."""


class Asker:
    """Measures one context length after the other, and remembers through the store."""

    def __init__(
        self, answerer: Answerer, store: Store, suite: Suite, progress: Progress, lengths: Sequence[int]
    ) -> None:
        self._answerer = answerer
        self._store = store
        self._suite = suite
        self._progress = progress
        self._set = read_context_set()
        stored = {key.partition("/")[0] for key in store.stage(CONTEXT) if key.endswith("/plan")}
        known = {*lengths, *(int(length) for length in stored if length.isascii() and length.isdigit())}
        # What was there before is reported at once: it tells nothing of the rate.
        self._counted = {length: self._closed(length) for length in sorted(known)}
        self._tell(next(iter(lengths), 0))

    def measure(self, length: int) -> LengthResult:
        """Ask what is still open at a length, and count."""
        failure = self._store.get(CONTEXT, f"{length}/failure")
        if failure is not None:
            return LengthResult(length, Count(0, 0), failure["reason"])
        questions, alive = self._ask_what_is_open(length)
        failure = self._store.get(CONTEXT, f"{length}/failure")
        if failure is not None:
            return LengthResult(length, Count(0, 0), failure["reason"])
        scored = [self._store.get(CONTEXT, _key(length, question)) or {} for question in questions]
        verdicts = [item.get("verdict") for item in scored]
        if verdicts and set(verdicts) == {Verdict.UNUSABLE}:
            why = f"no usable answer; the last: {scored[-1]['completion']['text']}"
            return LengthResult(length, Count(0, 0), why, answered=alive)
        right, unanswered = verdicts.count(Verdict.RIGHT), verdicts.count(Verdict.UNUSABLE)
        return LengthResult(length, Count(right, len(questions)), unanswered=unanswered)

    def _ask_what_is_open(self, length: int) -> tuple[Sequence[Question], bool]:
        """Ask, and once more what got no answer.

        Returns:
            The questions, and whether an answerer that answered none of them did answer a shorter one, each time.
        """
        questions: Sequence[Question] = ()
        alive = False
        for attempt in range(ATTEMPTS):
            last = attempt + 1 == ATTEMPTS
            try:
                questions = self._plan(length)
                still_open = [each for each in questions if is_open(self._store, CONTEXT, _key(length, each))]
                if still_open:
                    self._ask(length, still_open)
            except LengthFailure as error:
                if last or not error.may_pass:
                    self._store.append(CONTEXT, f"{length}/failure", {"reason": str(error)})
                    self._tell(length)
                    break
                continue
            missing = [each for each in questions if is_open(self._store, CONTEXT, _key(length, each))]
            if not missing:
                break
            alive = self._answers_shorter(length)
            if not alive:
                break
        return questions, alive

    def _answers_shorter(self, length: int) -> bool:
        """Whether a question at the shortest length gets an answer now: what fails is then the length."""
        shortest = self._suite.context_lengths[0]
        if length <= shortest:
            return False
        answers: list[Completion] = []
        try:
            question = self._plan(shortest)[:1]
            cap = self._set.entry.max_tokens
            self._answerer.ask(
                self._set.items[0], shortest, question, cap, lambda _index, answer: answers.append(answer)
            )
        except LengthFailure:
            return False
        return any(answer.refusal() is not Verdict.UNUSABLE for answer in answers)

    def _plan(self, length: int) -> Sequence[Question]:
        vocabulary = self._set.items[0]
        stored = self._store.get(CONTEXT, f"{length}/plan")
        if stored is not None:
            return [
                Question(note(vocabulary, index), depth)
                for index, depth in zip(stored["notes"], stored["depths"], strict=True)
            ]
        questions = self._answerer.plan_length(vocabulary, length, self._suite.context_questions)
        plan = {"notes": [q.note.index for q in questions], "depths": [q.depth for q in questions]}
        self._store.append(CONTEXT, f"{length}/plan", plan)
        return questions

    def _ask(self, length: int, questions: Sequence[Question]) -> None:
        def store(index: int, completion: Completion) -> None:
            scored = score_context(length, questions[index], completion)
            self._store.append(CONTEXT, scored.item, scored.model_dump(mode="json"))
            self._tell(length)

        def read(done: int, total: int | None = None, note: str = "") -> None:
            self._tell(length, f", {done:,} of them read")

        self._answerer.ask(self._set.items[0], length, questions, self._set.entry.max_tokens, store, read)

    def _tell(self, length: int, detail: str = "") -> None:
        """Progress in questions, over all lengths that are known to be asked at."""
        if length in self._counted or self._store.get(CONTEXT, f"{length}/plan") is not None:
            self._counted[length] = self._closed(length)
        total = len(self._counted) * self._suite.context_questions
        self._progress(min(sum(self._counted.values()), total), total, f"{length:,} tokens{detail}")

    def _closed(self, length: int) -> int:
        """How many questions of a length need not be asked any more."""
        if self._store.get(CONTEXT, f"{length}/failure") is not None:
            return self._suite.context_questions
        plan = self._store.get(CONTEXT, f"{length}/plan") or {"notes": []}
        return sum(not is_open(self._store, CONTEXT, f"{length}/{index}") for index in plan["notes"])


def is_open(store: Store, stage: str, key: str) -> bool:
    """Not asked yet, or asked in vain: an answerer that gave no answer is asked again."""
    stored = store.get(stage, key)
    return stored is None or stored["verdict"] == Verdict.UNUSABLE


def score_context(length: int, question: Question, completion: Completion) -> ScoredItem:
    """Right when the only code that the answer names is the one asked for."""
    place = {"length_tokens": length, "depth": question.depth}

    def score(completion: Completion) -> ScoredItem:
        verdict = completion.refusal()
        if verdict is None:
            verdict = Verdict.RIGHT if is_right(completion.text, question.note.code) else Verdict.WRONG
        return ScoredItem(
            stage=CONTEXT, item=_key(length, question), verdict=verdict, completion=completion, place=place
        )

    return judged(score, CONTEXT, _key(length, question), completion, place)


def _key(length: int, question: Question) -> str:
    return f"{length}/{question.note.index}"
