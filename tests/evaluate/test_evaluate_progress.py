"""How far the context stage is: a document of 65,536 tokens is read for hours, and is not counted as one question."""

from dataclasses import replace
from typing import Any, cast

from dfqs.evaluate.answerer import Answered, Answerer, AnswererInfo, Asking, DocumentSize
from dfqs.evaluate.asker import QUESTION_WORK_TOKENS, Asker
from dfqs.evaluate.context import GrowingDocument
from dfqs.evaluate.scores import Completion
from dfqs.evaluate.store import Store
from dfqs.evaluate.suites import QUICK
from dfqs.progress import Progress, no_progress

LENGTHS = (1024, 65_536)
SUITE = replace(QUICK, context_lengths=LENGTHS, context_questions=40)


class Reads:
    """Reads a document up to a length in quarters of it, and answers."""

    info = AnswererInfo("fake", None, None, None, None, max(LENGTHS))

    def size(self, _document: GrowingDocument, length_tokens: int) -> DocumentSize:
        return DocumentSize(length_tokens // 20, length_tokens)

    def ask(self, asking: Asking, on_answer: Answered, progress: Progress = no_progress) -> None:
        for quarter in range(4):
            progress(asking.length_tokens * quarter // 4, asking.length_tokens)
        for index, _ in enumerate(asking.questions):
            on_answer(index, Completion(text="1", finish_reason="stop"), None)


class Kept:
    """What a store keeps."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, str], Any] = {}

    def get(self, stage: str, key: str) -> Any:
        return self.lines.get((stage, key))

    def stage(self, stage: str) -> dict[str, Any]:
        return {key: data for (name, key), data in self.lines.items() if name == stage}

    def append(self, stage: str, key: str, data: Any) -> None:
        self.lines[stage, key] = data


def told_of(store: Kept) -> list[tuple[int, int, str]]:
    told: list[tuple[int, int, str]] = []

    def take(done: int, total: int | None = None, note: str = "") -> None:
        assert total is not None
        told.append((done, total, note))

    Asker(cast(Answerer, Reads()), cast(Store, store), SUITE, take, LENGTHS).measure_curve(LENGTHS)
    return told


def test_what_is_read_moves_the_context_stage_as_far_as_it_takes_time() -> None:
    told = told_of(Kept())

    total = 2 * 65_536 + QUESTION_WORK_TOKENS * 80
    assert {each[1] for each in told} == {total}
    done = [each[0] for each in told]
    assert done == sorted(done) and (done[0], done[-1]) == (0, total)
    half_read = next(each for each in told if "49,152 of them read" in each[2])
    # Both lengths of the first document come before those of the second.
    assert half_read[0] == 49_152 + QUESTION_WORK_TOKENS * 20
    assert half_read[2].endswith("20 of 80 questions") and len(half_read[2]) <= 60


def test_a_document_that_is_read_again_after_a_kill_is_not_counted_as_read() -> None:
    store = Kept()
    told_of(store)
    answered = [key for key in store.lines if key[1].startswith("65536/1/")]
    for key in answered[5:]:
        del store.lines[key]

    told = told_of(store)

    assert told[0][0] == 65_536 + QUESTION_WORK_TOKENS * (80 - len(answered[5:]))
    assert told[-1][0] == told[-1][1]
