"""Scores answers to the code set: the function is taken out of the answer and must pass hidden tests in the sandbox."""

from dfqs.evaluate.code_blocks import is_newer_syntax, python_source
from dfqs.evaluate.prompts import CodeItem
from dfqs.evaluate.sandbox import Outcome, Sandbox
from dfqs.evaluate.scores import Completion, ScoredItem, Verdict
from dfqs.evaluate.stages import CODE
from dfqs.evaluate.thoughts import without_thinking

_VERDICTS = {Outcome.PASSED: Verdict.RIGHT, Outcome.UNREAD: Verdict.UNJUDGED}


def score_code(item: CodeItem, completion: Completion, sandbox: Sandbox) -> ScoredItem:
    """Right when the hidden tests pass; nothing generated runs outside the sandbox.

    Raises:
        SandboxUnavailable: it could not be run; that is no verdict on the candidate.
    """
    place = code_place(item)
    refusal = completion.refusal()
    if refusal is not None:
        return ScoredItem(stage=CODE, item=item.id, verdict=refusal, completion=completion, place=place)
    source = extract_code(completion.text, item.entry_point)
    if source is None:
        newer = is_newer_syntax(without_thinking(completion.text), item.entry_point)
        return ScoredItem(
            stage=CODE,
            item=item.id,
            verdict=Verdict.UNJUDGED if newer else Verdict.WRONG,
            detail="it may be of a newer Python than the one that reads it"
            if newer
            else f"no function {item.entry_point} in the answer",
            completion=completion,
            place=place,
        )
    source = f"{item.helpers}\n\n{source}" if item.helpers.strip() else source
    result = sandbox.run(source, item.entry_point, item.tests, item.prelude)
    return ScoredItem(
        stage=CODE,
        item=item.id,
        verdict=_VERDICTS.get(result.outcome, Verdict.WRONG),
        answer=source,
        detail=f"{result.outcome}: {result.detail}".rstrip(": "),
        completion=completion,
        place=place,
    )


def code_place(item: CodeItem) -> dict[str, str | int | float]:
    """Where a problem belongs: one of ours to a level, one of HumanEval to that."""
    return {"level": item.level} if item.level else {"family": "HumanEval"}


def extract_code(output: str, entry_point: str) -> str | None:
    """The module that defines `entry_point`, out of what stands outside of thoughts; None when the answer has none."""
    return python_source(without_thinking(output), entry_point)
