"""The context stage's part of a report, out of its stored results. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfqs.evaluate.scores import CHOSEN, NOTHING_SAID, ScoredItem, Verdict
from dfqs.evaluate.statistics import Count, wilson_interval
from dfqs.evaluate.stored import StoredBoundary, StoredPlan, plan_keys
from dfqs.report.schema import (
    BoundaryDetail,
    BoundaryLength,
    ContextCell,
    ContextDetail,
    ContextKind,
    ContextLikelihood,
    ContextTokens,
)

SINGLE = "single"
"""The kind of question that runs before there were several asked."""

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Length:
    """A length at which every question was asked."""

    tokens: int
    plan: StoredPlan
    items: tuple[ScoredItem, ...]

    def select(self, **place: Any) -> list[ScoredItem]:
        return [item for item in self.items if all(_place(item, name) == value for name, value in place.items())]


def context_detail(lengths: Sequence[int], results: Results, reasons: dict[str, str]) -> ContextDetail | None:
    """The curve; None, with the reason, when nothing was measured.

    Args:
        lengths: of the curve, in tokens.
        results: of the stage.
        reasons: metric -> why it is null; added to.
    """
    measured: list[_Length] = []
    missing: dict[str, str] = {}
    for length in lengths:
        found = _length(length, results)
        if isinstance(found, str):
            missing[str(length)] = found
        else:
            measured.append(found)
    if not measured:
        reasons["context_stability_curve"] = next(iter(missing.values()))
        if not results:
            return None
    verdicts = [Counter(item.verdict for item in each.items) for each in measured]
    items = [item for each in measured for item in each.items]
    return ContextDetail(
        lengths_tokens=[each.tokens for each in measured],
        n=[found.total() for found in verdicts],
        right=[found[Verdict.RIGHT] for found in verdicts],
        truncated=[found[Verdict.TRUNCATED] for found in verdicts],
        empty=[found[Verdict.EMPTY] for found in verdicts],
        unusable=[found[Verdict.UNUSABLE] for found in verdicts],
        intervals_95=[wilson_interval(Count(found[Verdict.RIGHT], found.total())) for found in verdicts],
        not_measured=missing,
        scored_by="likelihood" if items and all(_is_chosen(item) for item in items) else "generated",
        documents=max((len(each.plan.document_lines) for each in measured), default=1) or 1,
        grid=[cell for each in measured for cell in _cells(each)],
        kinds=_kinds(measured),
        likelihood=_likelihood(measured),
        tokens=_tokens(measured),
    )


def boundary_detail(stored: Mapping[str, Any]) -> BoundaryDetail:
    """How the boundary was found."""
    boundary = StoredBoundary.model_validate(stored)
    by_likelihood = boundary.scored_by == "likelihood"
    lengths = []
    for looked in boundary.lengths:
        count = looked.likelihood if by_likelihood and looked.likelihood is not None else looked.count
        lengths.append(
            BoundaryLength(
                length_tokens=looked.length_tokens,
                n=count.total,
                right=count.right,
                failure=looked.failure,
                failure_kind=looked.failure_kind,
            )
        )
    return BoundaryDetail(
        scored_by=boundary.scored_by,
        chance=boundary.chance,
        failure_kind=boundary.failure_kind,
        censored=boundary.censored,
        cause=boundary.cause,
        reason=boundary.reason,
        confidence_per_look=boundary.confidence,
        lengths=lengths,
    )


def _length(length: int, results: Results) -> _Length | str:
    """What was measured at a length, or why it is not in the curve."""
    failure, stored = results.get(f"{length}/failure"), results.get(f"{length}/plan")
    if failure is not None:
        return str(failure["reason"])
    plan = StoredPlan.model_validate(stored) if stored is not None else None
    keys = plan_keys(length, plan) if plan is not None else []
    if plan is None or not keys:
        return "not measured"
    answered = [ScoredItem.model_validate(results[key]) for key in keys if key in results]
    if len(answered) < len(keys):
        return f"{len(answered)} of {len(keys)} questions asked; run the same command again"
    if all(item.verdict is Verdict.NO_ANSWER for item in answered):
        return NOTHING_SAID
    if all(item.verdict is Verdict.UNUSABLE for item in answered):
        return f"no usable answer; the last: {answered[-1].completion.text}"
    return _Length(length, plan, tuple(answered))


def _cells(length: _Length) -> Iterable[ContextCell]:
    for depth in sorted({float(item.place["depth"]) for item in length.items}):
        items = length.select(depth=depth)
        yield ContextCell(
            length_tokens=length.tokens,
            depth=depth,
            n=len(items),
            right=_right(items),
            likelihood_right=_likelihood_right(items),
        )


def _kinds(lengths: Sequence[_Length]) -> list[ContextKind]:
    kinds = dict.fromkeys(str(_place(item, "kind")) for each in lengths for item in each.items)
    found = []
    for kind in kinds:
        items = [each.select(kind=kind) for each in lengths]
        chosen = [_likelihood_right(some) if some else 0 for some in items]
        counted = [count for count in chosen if count is not None]
        found.append(
            ContextKind(
                kind=kind,
                n=[len(some) for some in items],
                right=[_right(some) for some in items],
                likelihood_right=counted if len(counted) == len(chosen) else None,
            )
        )
    return found


def _likelihood(lengths: Sequence[_Length]) -> ContextLikelihood | None:
    scores = [[item.likelihood for item in each.items if item.likelihood is not None] for each in lengths]
    if not scores or not all(scores):
        return None
    right = [sum(score.right for score in found) for found in scores]
    return ContextLikelihood(
        n=[len(found) for found in scores],
        right=right,
        chance=[sum(score.chance for score in found) / len(found) for found in scores],
        intervals_95=[wilson_interval(Count(r, len(found))) for r, found in zip(right, scores, strict=True)],
    )


def _tokens(lengths: Sequence[_Length]) -> ContextTokens | None:
    """None where nobody counted, as behind an endpoint."""
    if not lengths or any(not each.plan.document_tokens for each in lengths):
        return None
    # Of each document as far as something was asked about it; each is read once.
    read: dict[int, int] = {}
    questions = answers = likelihoods = unshared = 0
    for each in lengths:
        stems: dict[tuple[int, str], int] = {}
        for item in each.items:
            if item.completion.prompt_tokens is None:
                return None
            number = int(_place(item, "document"))
            document = each.plan.document_tokens[number]
            read[number] = max(read.get(number, 0), document)
            generated = item.completion.generated_tokens or 0
            scored = item.likelihood.computed_tokens if item.likelihood is not None else 0
            stem = item.completion.stem_tokens or 0
            # Questions of a kind are asked in a row.
            stems[number, str(_place(item, "kind"))] = stem
            questions += item.completion.prompt_tokens - document - stem
            answers += generated
            likelihoods += scored
            unshared += item.completion.prompt_tokens + generated + scored
        questions += sum(stems.values())
    documents = [read[number] for number in sorted(read)]
    computed = sum(documents) + questions + answers + likelihoods
    return ContextTokens(
        documents=documents,
        questions=questions,
        answers=answers,
        likelihoods=likelihoods,
        unshared=unshared,
        saved=unshared - computed,
    )


def _place(item: ScoredItem, name: str) -> Any:
    return item.place.get(name, {"kind": SINGLE, "document": 0}.get(name))


def _right(items: Sequence[ScoredItem]) -> int:
    return sum(item.right for item in items)


def _likelihood_right(items: Sequence[ScoredItem]) -> int | None:
    scores = [item.likelihood for item in items if item.likelihood is not None]
    return sum(score.right for score in scores) if scores and len(scores) == len(items) else None


def _is_chosen(item: ScoredItem) -> bool:
    return item.completion.finish_reason == CHOSEN
