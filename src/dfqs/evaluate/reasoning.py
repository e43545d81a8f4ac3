"""Scores answers to the reasoning set: the extracted final answer must be the item's, exactly."""

from dfqs.evaluate.extract import extract_answer
from dfqs.evaluate.prompts import ReasoningItem
from dfqs.evaluate.scores import Completion, ScoredItem, Verdict
from dfqs.evaluate.stages import REASONING


def is_same(answer: str | None, item: ReasoningItem) -> bool:
    """Letters' case does not matter in a text."""
    if item.kind == "text":
        return answer is not None and answer.casefold() == item.answer.casefold()
    return answer == item.answer


def score_reasoning(item: ReasoningItem, completion: Completion) -> ScoredItem:
    """Right, wrong, or why it was not judged."""
    place = {"family": item.family, "level": item.level}
    refusal = completion.refusal()
    if refusal is not None:
        return ScoredItem(stage=REASONING, item=item.id, verdict=refusal, completion=completion, place=place)
    answer = extract_answer(completion.text, item.kind, item.question, item.choices)
    return ScoredItem(
        stage=REASONING,
        item=item.id,
        verdict=Verdict.RIGHT if is_same(answer, item) else Verdict.WRONG,
        answer=answer,
        detail="" if answer is not None else "no final answer found",
        completion=completion,
        place=place,
    )
