"""Asks the questions of the context stages, and stores every answer before the next."""

from collections import Counter
from collections.abc import Iterable, Sequence

from dfqs.evaluate.answerer import Answerer, Asking, DocumentSize, LengthFailure, LengthFault
from dfqs.evaluate.boundary import LengthResult
from dfqs.evaluate.context import GrowingDocument, Question, is_right, plan_questions
from dfqs.evaluate.prompts import read_context_set
from dfqs.evaluate.scores import CHOSEN, Completion, LikelihoodScore, ScoredItem, Verdict, judged
from dfqs.evaluate.stages import CONTEXT
from dfqs.evaluate.statistics import Count
from dfqs.evaluate.store import Store
from dfqs.evaluate.stored import StoredPlan, plan_keys
from dfqs.evaluate.suites import Suite
from dfqs.progress import Progress

ATTEMPTS = 2
"""Rounds of questions at one length; the second is for those without an answer."""

QUESTION_WORK_TOKENS = 100
"""As many tokens of a document take about as long as a question with its answers."""


class Asker:
    """Measures context lengths, and remembers through the store.

    Args:
        lengths: known to be asked at, besides the suite's own.
    """

    def __init__(
        self, answerer: Answerer, store: Store, suite: Suite, progress: Progress, lengths: Sequence[int]
    ) -> None:
        self._answerer = answerer
        self._store = store
        self._suite = suite
        self._progress = progress
        self._lengths = sorted({*suite.context_lengths, *lengths})
        self._set = read_context_set()
        self._documents = [GrowingDocument(self._set.items[0], number) for number in range(suite.context_documents)]
        self._sizes: dict[int, tuple[DocumentSize, ...]] = {}
        self._tried: Counter[int] = Counter()
        """Attempts at each length that ended in a failure."""
        self._last_asked = 0
        """The document that may still be in somebody's cache."""
        stored = {key.partition("/")[0] for key in store.stage(CONTEXT) if key.endswith("/plan")}
        known = {*lengths, *(int(length) for length in stored if length.isascii() and length.isdigit())}
        # What was there before is reported at once: it tells nothing of the rate.
        self._counted = {length: self._closed(length) for length in sorted(known)}
        numbers = range(len(self._documents))
        self._read = [max(known, default=0) * self._is_over(document, known) for document in numbers]
        """Tokens of each document that were read, or need not be."""
        self._tell(next(iter(lengths), 0))

    def measure_curve(self, lengths: Sequence[int]) -> None:
        """Ask what is still open at each length: first all lengths of one document, so that it is read once."""
        for number in range(len(self._documents)):
            for length in lengths:
                if self._failure(length) is None:
                    try:
                        self._ask(length, [each for each in self._open(length) if each.document == number])
                    except LengthFailure as error:
                        self._failed(length, error)
        for length in lengths:
            self.measure(length)

    def measure(self, length: int) -> LengthResult:
        """Ask what is still open at a length, and count."""
        failure = self._failure(length)
        if failure is not None:
            return failure
        alive = self._ask_what_is_open(length)
        failure = self._failure(length)
        if failure is not None:
            return failure
        questions = self._plan(length)
        scored = [ScoredItem.model_validate(self._store.get(CONTEXT, _key(length, each))) for each in questions]
        verdicts = [item.verdict for item in scored]
        if verdicts and set(verdicts) == {Verdict.UNUSABLE}:
            why = f"no usable answer; the last: {scored[-1].completion.text}"
            kind = LengthFault.UNANSWERED
            return LengthResult(length, Count(0, 0), why, answered=alive, failure_kind=kind)
        written = [item for item in scored if item.completion.finish_reason != CHOSEN]
        likely = [item.likelihood for item in scored if item.likelihood is not None]
        return LengthResult(
            length,
            Count(sum(item.right for item in written), len(written)),
            unanswered=verdicts.count(Verdict.UNUSABLE) + verdicts.count(Verdict.NO_ANSWER),
            likelihood=Count(sum(score.right for score in likely), len(likely)) if likely else None,
            chance=sum(score.chance for score in likely) / len(likely) if likely else 0.0,
        )

    def _failure(self, length: int) -> LengthResult | None:
        stored = self._store.get(CONTEXT, f"{length}/failure")
        if stored is None:
            return None
        return LengthResult(length, Count(0, 0), stored["reason"], failure_kind=stored.get("kind"))

    def _store_failure(self, length: int, error: LengthFailure) -> None:
        self._store.append(CONTEXT, f"{length}/failure", {"reason": str(error), "kind": str(error.fault)})
        self._tell(length)

    def _failed(self, length: int, error: LengthFailure) -> None:
        """Remember a failure, if it is the last attempt's or one that no other attempt changes."""
        self._tried[length] += 1
        if self._tried[length] >= ATTEMPTS or not error.may_pass:
            self._store_failure(length, error)

    def _ask_what_is_open(self, length: int) -> bool:
        """Ask, and once more what got no answer.

        Returns:
            Whether an answerer that answered none of them did answer a shorter one, each time.
        """
        alive = False
        for _ in range(self._tried[length], ATTEMPTS):
            try:
                still_open = self._open(length)
                # The one in the cache first: the other's takes its place.
                for number in sorted({each.document for each in still_open}, key=lambda n: n != self._last_asked):
                    self._ask(length, [each for each in still_open if each.document == number])
            except LengthFailure as error:
                self._failed(length, error)
                if self._failure(length) is not None:
                    break
                continue
            if not self._open(length):
                break
            alive = self._answers_shorter(length)
            if not alive:
                break
        return alive

    def _answers_shorter(self, length: int) -> bool:
        """Whether a question at the shortest length gets an answer now: what fails is then the length."""
        shortest = self._suite.context_lengths[0]
        if length <= shortest:
            return False
        answers: list[Completion] = []
        try:
            asking = self._asking(shortest, self._plan(shortest)[:1])
            self._answerer.ask(asking, lambda _index, answer, _likelihood: answers.append(answer))
        except LengthFailure:
            return False
        return any(answer.refusal() is not Verdict.UNUSABLE for answer in answers)

    def _open(self, length: int) -> list[Question]:
        """
        Raises:
            LengthFailure: the length cannot be asked at.
        """
        return [each for each in self._plan(length) if is_open(self._store, CONTEXT, _key(length, each))]

    def _plan(self, length: int) -> tuple[Question, ...]:
        """The questions of a length; the documents' sizes are stored, so that a resumed run asks the same."""
        sizes = self._size(length)
        count = self._suite.context_questions
        questions = plan_questions(self._documents, [size.lines for size in sizes], count)
        if self._store.get(CONTEXT, f"{length}/plan") is None:
            plan = StoredPlan(
                notes=[each.place for each in questions],
                depths=[each.depth for each in questions],
                kinds=[each.kind for each in questions],
                documents=[each.document for each in questions],
                document_lines=[size.lines for size in sizes],
                document_tokens=[size.tokens for size in sizes if size.tokens is not None],
            )
            self._store.append(CONTEXT, f"{length}/plan", plan.model_dump(mode="json"))
        return questions

    def _size(self, length: int) -> tuple[DocumentSize, ...]:
        if length not in self._sizes:
            stored = self._store.get(CONTEXT, f"{length}/plan")
            if stored is not None:
                tokens = stored["document_tokens"] or [None] * len(self._documents)
                pairs = zip(stored["document_lines"], tokens, strict=True)
                self._sizes[length] = tuple(DocumentSize(*pair) for pair in pairs)
            else:
                self._sizes[length] = tuple(self._answerer.size(document, length) for document in self._documents)
        return self._sizes[length]

    def _asking(self, length: int, questions: Sequence[Question]) -> Asking:
        """Of questions about one document. It is read in the same pieces whatever was asked before."""
        document = questions[0].document
        shorter = [each for each in self._lengths if each < length]
        stops = {self._size(each)[document].lines for each in shorter}
        return Asking(
            length,
            self._documents[document],
            self._size(length)[document].lines,
            tuple(sorted(stops - {0})),
            tuple(questions),
            self._set.entry.max_tokens,
            self._suite.context_written or not self._answerer.info.tells_likelihoods,
        )

    def _ask(self, length: int, questions: Sequence[Question]) -> None:
        def store(index: int, completion: Completion, likelihood: LikelihoodScore | None) -> None:
            scored = score_context(length, questions[index], completion, likelihood)
            self._store.append(CONTEXT, scored.item, scored.model_dump(mode="json"))
            self._note_read(document, length)
            self._tell(length)

        def read(done: int, total: int | None = None, note: str = "") -> None:
            self._note_read(document, done)
            self._tell(length, f", {done:,} of them read")

        if questions:
            self._last_asked = document = questions[0].document
            self._answerer.ask(self._asking(length, questions), store, read)

    def _note_read(self, document: int, tokens: int) -> None:
        self._read[document] = max(self._read[document], tokens)

    def _tell(self, length: int, detail: str = "") -> None:
        """Progress over all lengths that are known to be asked at, in tokens of documents: reading one takes hours, its
        questions minutes."""
        if length in self._counted or self._store.get(CONTEXT, f"{length}/plan") is not None:
            self._counted[length] = self._closed(length)
        questions = len(self._counted) * self._suite.context_questions
        asked = min(sum(self._counted.values()), questions)
        longest = max(self._counted, default=0)
        total = len(self._documents) * longest + QUESTION_WORK_TOKENS * questions
        done = sum(min(tokens, longest) for tokens in self._read) + QUESTION_WORK_TOKENS * asked
        where = f"{length:,} tokens{detail}, {asked} of {questions} questions"
        # What failed was not read, and needs no more.
        self._progress(total if asked == questions else done, total, where)

    def _is_over(self, document: int, lengths: Iterable[int]) -> bool:
        """Whether nothing is left to ask about a document: it is not read again."""
        for length in lengths:
            plan = self._store.get(CONTEXT, f"{length}/plan")
            if self._failure(length) is None:
                if plan is None:
                    return False
                stored = StoredPlan.model_validate(plan)
                documents = stored.documents or [0] * len(stored.notes)
                keys = [key for key, of in zip(plan_keys(length, stored), documents, strict=True) if of == document]
                if any(is_open(self._store, CONTEXT, key) for key in keys):
                    return False
        return True

    def _closed(self, length: int) -> int:
        """How many questions of a length need not be asked any more."""
        plan = self._store.get(CONTEXT, f"{length}/plan")
        if self._store.get(CONTEXT, f"{length}/failure") is not None or plan is None:
            return 0 if plan is None and self._failure(length) is None else self._suite.context_questions
        keys = plan_keys(length, StoredPlan.model_validate(plan))
        return sum(not is_open(self._store, CONTEXT, key) for key in keys)


def is_open(store: Store, stage: str, key: str) -> bool:
    """Not asked yet, or asked in vain: an answerer that gave no answer is asked again."""
    stored = store.get(stage, key)
    return stored is None or stored["verdict"] == Verdict.UNUSABLE


def score_context(
    length: int, question: Question, completion: Completion, likelihood: LikelihoodScore | None = None
) -> ScoredItem:
    """Right when the only value that the answer names is the one asked for; when it was chosen, when it is that."""
    place = {
        "length_tokens": length,
        "depth": question.depth,
        "kind": question.kind,
        "document": question.document,
    }

    def score(completion: Completion) -> ScoredItem:
        verdict = completion.refusal()
        if verdict is None:
            chosen = likelihood is not None and completion.finish_reason == CHOSEN
            right = likelihood.right if chosen and likelihood is not None else is_right(completion.text, question)
            verdict = Verdict.RIGHT if right else Verdict.WRONG
        return ScoredItem(
            stage=CONTEXT,
            item=_key(length, question),
            verdict=verdict,
            completion=completion,
            place=place,
            likelihood=likelihood,
        )

    return judged(score, CONTEXT, _key(length, question), completion, place)


def _key(length: int, question: Question) -> str:
    return f"{length}/{question.document}/{question.kind}/{question.place}"
