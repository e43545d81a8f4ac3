"""What the report says of tool calls and of the capability profile, out of stored results."""

from collections.abc import Mapping
from typing import Any

from dfqs.evaluate.scores import Verdict
from dfqs.evaluate.stages import CONTEXT
from dfqs.evaluate.statistics import Count, wilson_interval
from dfqs.report.schema import ContextDetail, ProfileRow, ScoreDetail, ToolDetail

Results = Mapping[str, Mapping[str, Any]]

CLAIMED = {
    "Code Generation": "Primary",
    "Instruction Following": "Full",
    "Long-Context Reasoning (1M tokens)": "Full",
    "Conversational AI": "Full",
    "Text Generation": "Full",
    "Translation": "Limited (English primary)",
}
"""Row -> support level, as the specification's section 6 claims them for the reference artifact."""
ROWS = {
    "Instruction Following": "instruction-following",
    "Conversational AI": "conversational-ai",
    "Text Generation": "text-generation",
    "Translation": "translation",
}
"""Row -> name in the profile set."""
FULL, LIMITED = 0.9, 0.5
"""Scores from which a level is called full, or limited. Ours: the specification does not say what its words mean."""


def tool_detail(items: Results, score: ScoreDetail | None) -> ToolDetail | None:
    """Trigger and schema, counted over all answers but those that did not come.

    Precision, recall, F1: of calling where a call is needed. Schema accuracy: of the calls that were made.
    """
    if score is None:
        return None
    places = [item["place"] for item in items.values() if item["verdict"] != Verdict.UNUSABLE]
    needed = sum(place["needed"] for place in places)
    called = sum(place["called"] for place in places)
    rightly = sum(place["needed"] * place["called"] for place in places)
    valid = sum(place["valid"] for place in places)
    return ToolDetail(
        score=score,
        needed=needed,
        called=called,
        called_rightly=rightly,
        valid=valid,
        trigger_precision=rightly / called if called else None,
        trigger_recall=rightly / needed if needed else None,
        trigger_f1=2 * rightly / (needed + called) if needed + called else None,
        schema_accuracy=valid / called if called else None,
        schema_interval_95=wilson_interval(Count(valid, called)),
    )


def profile_rows(
    items: Results, expected: int | None, code: ScoreDetail | None, context: ContextDetail | None
) -> list[ProfileRow] | None:
    """The six rows; None where the suite has no profile."""
    if expected is None:
        return None
    rows = []
    for row, claimed in CLAIMED.items():
        count, source, reason = _counted(row, items, expected, code, context)
        score = count.score
        rows.append(
            ProfileRow(
                row=row,
                claimed=claimed,
                measured_by=source,
                n=count.total,
                right=count.right,
                score=score,
                interval_95=wilson_interval(count),
                level=None if score is None else _level(score),
                reason=reason,
            )
        )
    return rows


def _counted(
    row: str, items: Results, expected: int, code: ScoreDetail | None, context: ContextDetail | None
) -> tuple[Count, str, str | None]:
    """Right of all, by what it was measured, and why it was not."""
    if row == "Code Generation":
        found = Count(code.right, code.n) if code is not None else Count(0, 0)
        return found, "the code stage", None if found.total else "the code stage was not measured"
    if row not in ROWS:
        if context is None or not context.lengths_tokens:
            return Count(0, 0), CONTEXT, "the context stage was not measured"
        longest = context.lengths_tokens[-1]
        return Count(context.right[-1], context.n[-1]), f"the context stage, at {longest:,} tokens", None
    source = f"the profile set, {ROWS[row]}"
    if len(items) < expected:
        return Count(0, 0), source, "the profile stage was not measured to its end"
    own = [item for item in items.values() if item["place"]["row"] == ROWS[row]]
    answered = [item for item in own if item["verdict"] not in (Verdict.UNUSABLE, Verdict.UNJUDGED)]
    if not answered or all(item["verdict"] == Verdict.NO_ANSWER for item in answered):
        return Count(0, 0), source, "no answer was given"
    return Count(sum(item["verdict"] == Verdict.RIGHT for item in own), len(own)), source, None


def _level(score: float) -> str:
    return "full" if score >= FULL else "limited" if score >= LIMITED else "little"
