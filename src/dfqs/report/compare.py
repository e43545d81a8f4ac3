"""Compares evaluations: refuses unequal conditions by name, pairs the questions that both were asked, and tests."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from dfqs.evaluate.conditions import differences
from dfqs.evaluate.scores import ScoredItem
from dfqs.evaluate.stages import CODE, CONTEXT, LIKELIHOOD, REASONING
from dfqs.evaluate.statistics import CONFIDENCE, Count
from dfqs.quantize.bootstrap import estimate_difference
from dfqs.quantize.noise_floor import Resolution, far_end, resolve
from dfqs.report.comparison import Against, Compared, ComparisonDocument, Measure, Outcome
from dfqs.report.extras import noise_floor
from dfqs.report.facts import was_busy
from dfqs.report.paired import (
    Pairs,
    detectable_difference,
    difference_interval,
    holm,
    mcnemar_p,
    separated_p,
    smallest_significant,
    square_and_add,
)
from dfqs.report.preference import margin_of
from dfqs.report.reading import Reported
from dfqs.report.schema import Report

Only = Literal["scores", "speed"]
LEVEL = 1 - CONFIDENCE
DRIFT = 0.05
"""Two runs of one file on one machine are taken to differ by so much: repeats of one run share its moment."""
_STAGES = {"reasoning_score": REASONING, "code_score": CODE, "context_stability_curve": CONTEXT}
_STANDING = (Outcome.WORSE, Outcome.REFUSED, Outcome.NOT_MEASURED, Outcome.BETTER)
"""What stands above what, of several outcomes."""


def compare(
    reference: Reported, others: Sequence[Reported], *, only: Only | None = None, anyway: bool = False
) -> ComparisonDocument:
    """Each of `others` against the reference.

    Args:
        only: leave the rest out.
        anyway: compare what was measured under different conditions too; they are named all the same.
    """
    against = tuple(_against(reference, other, only, anyway) for other in others)
    floor = noise_floor(reference.report)
    notices = []
    if any(side.report.conditions.score.numerics is None for side in (reference, *others)):
        notices.append("an endpoint does not tell its numerics: equal conditions are not known to be equal")
    if anyway and any(each.score_differences or each.speed_differences for each in against):
        notices.append("the conditions differ, and were compared because --anyway was given: so do the numbers")
    return ComparisonDocument(
        reference=_side_of(reference),
        others=against,
        anyway=anyway,
        noise_floor_nats=floor,
        notices=tuple(notices),
        outcome=_standing([each.outcome for each in against]),
    )


def _side_of(side: Reported) -> Compared:
    report = side.report
    speed = report.conditions.speed
    return Compared(
        place=str(side.place),
        name=report.artifact.name,
        file_sha256=report.artifact.file_sha256,
        content_sha256=report.artifact.content_sha256,
        score_fingerprint=report.conditions.score.fingerprint,
        speed_fingerprint=speed.fingerprint if speed is not None else None,
        answers=side.lines is not None,
    )


def _against(reference: Reported, other: Reported, only: Only | None, anyway: bool) -> Against:
    ours, theirs = reference.report.conditions, other.report.conditions
    score_differences = differences(ours.score, theirs.score)
    speed_differences: tuple[str, ...] = ()
    if ours.speed is not None and theirs.speed is not None:
        # Of the scores' conditions it holds the hash: they are named themselves.
        own = [found for found in differences(ours.speed, theirs.speed) if not found.startswith("score_fingerprint")]
        speed_differences = (*own, *score_differences)
    measures: list[Measure] = []
    if only != "speed":
        refused = bool(score_differences) and not anyway
        scores = _scores(reference, other, score_differences if refused else ())
        measures += [*scores, _boundary(reference.report, other.report, score_differences if refused else ())]
    if only != "scores":
        measures.append(_speed(reference.report, other.report, () if anyway else speed_differences))
    hashes = reference.report.artifact.content_sha256, other.report.artifact.content_sha256
    return Against(
        other=_side_of(other),
        same_content=None if None in hashes else hashes[0] == hashes[1],
        score_differences=score_differences,
        speed_differences=speed_differences,
        measures=tuple(measures),
        outcome=_overall(measures),
    )


def _overall(measures: Sequence[Measure]) -> Outcome:
    """What neither side measured does not count, unless nothing was measured at all."""
    known = [m.outcome for m in measures if m.outcome != Outcome.TOLD and (m.reference, m.value) != (None, None)]
    return _standing(known) if known else Outcome.NOT_MEASURED


def _standing(outcomes: Sequence[Outcome]) -> Outcome:
    return next((outcome for outcome in _STANDING if outcome in outcomes), Outcome.NO_DIFFERENCE)


def _scores(reference: Reported, other: Reported, refused: Sequence[str]) -> list[Measure]:
    found = [_score(reference, other, name, stage, refused) for name, stage in _STAGES.items()]
    if not refused:
        found += [*_preferences(reference, other), *compare_likelihoods(reference, other)]
    tested = [index for index, measure in enumerate(found) if measure.p_value is not None]
    adjusted = holm([found[index].p_value or 0.0 for index in tested])
    for index, p in zip(tested, adjusted, strict=True):
        found[index] = _judged(found[index], p)
    return [*found, *([] if refused else _points(reference, other))]


def _judged(measure: Measure, p_adjusted: float) -> Measure:
    outcome = Outcome.NO_DIFFERENCE
    if p_adjusted <= LEVEL and measure.difference:
        outcome = Outcome.BETTER if measure.difference > 0 else Outcome.WORSE
    return measure.model_copy(update={"p_adjusted": p_adjusted, "outcome": outcome})


def _score(reference: Reported, other: Reported, name: str, stage: str, refused: Sequence[str]) -> Measure:
    ours, theirs = _count(reference.report, name), _count(other.report, name)
    values = {"reference": _share(ours), "value": _share(theirs)}
    if refused:
        return Measure(name=name, outcome=Outcome.REFUSED, reason=_refusal(refused), **values)
    if ours is None or theirs is None:
        lacks = [side for side, count in ((reference, ours), (other, theirs)) if count is None]
        reasons = [f"{side.place}: {side.report.reasons.get(name, 'not measured')}" for side in lacks]
        return Measure(name=name, outcome=Outcome.NOT_MEASURED, reason=_each_once(reasons), **values)
    if reference.lines is None or other.lines is None:
        return _unpaired(name, ours, theirs)
    pairs = pair_up(reference.items, other.items, stage, scored_by=_scored_by(reference, other))
    if not pairs.total:
        return Measure(name=name, outcome=Outcome.NOT_MEASURED, reason="no question was asked of both", **values)
    return _paired(name, pairs)


def pair_up(
    ours: dict[tuple[str, str], ScoredItem],
    theirs: dict[tuple[str, str], ScoredItem],
    stage: str,
    prefix: str = "",
    scored_by: str = "generated",
) -> Pairs:
    """Who was right on the questions of a stage that both were asked.

    Args:
        prefix: of the questions' keys, to count a part of them.
        scored_by: as the curve counts: answers that were written, or the likeliest of those given.
    """
    by_likelihood = stage == CONTEXT and scored_by == "likelihood"
    cells = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for key, item in ours.items():
        if key[0] == stage and key[1].startswith(prefix) and key in theirs:
            cells[_is_right(item, by_likelihood), _is_right(theirs[key], by_likelihood)] += 1
    return Pairs(cells[True, True], cells[True, False], cells[False, True], cells[False, False])


def _paired(name: str, pairs: Pairs) -> Measure:
    shares = (pairs.both + pairs.first) / pairs.total, (pairs.both + pairs.second) / pairs.total
    return Measure(
        name=name,
        outcome=Outcome.NO_DIFFERENCE,
        reference=shares[0],
        value=shares[1],
        difference=(pairs.second - pairs.first) / pairs.total,
        interval=difference_interval(pairs),
        method="McNemar, exact; Newcombe's interval of paired shares",
        n=pairs.total,
        both_right=pairs.both,
        reference_alone_right=pairs.first,
        other_alone_right=pairs.second,
        p_value=mcnemar_p(pairs),
        smallest_significant=smallest_significant(pairs),
        detectable=detectable_difference(pairs),
    )


def _unpaired(name: str, ours: Count, theirs: Count) -> Measure:
    """Of a report that came without its answers; less is seen so."""
    interval = square_and_add(ours, theirs)
    difference = (theirs.score or 0.0) - (ours.score or 0.0)
    outcome = Outcome.NO_DIFFERENCE
    if interval is not None and (interval[0] > 0 or interval[1] < 0):
        outcome = Outcome.BETTER if interval[0] > 0 else Outcome.WORSE
    return Measure(
        name=name,
        outcome=outcome,
        reason="answers are not here to be paired; give the evaluations' directories to see smaller differences",
        reference=ours.score,
        value=theirs.score,
        difference=difference,
        interval=interval,
        method="Newcombe's interval of separate shares",
        n=min(ours.total, theirs.total),
    )


def _points(reference: Reported, other: Reported) -> list[Measure]:
    """The curve length by length: told, and not tested one by one."""
    ours, theirs = reference.items, other.items
    lengths = {key[1].partition("/")[0] for key in ours if key[0] == CONTEXT and key in theirs}
    found = []
    for length in sorted(int(text) for text in lengths if text.isascii() and text.isdigit())[:40]:
        pairs = pair_up(ours, theirs, CONTEXT, f"{length}/", _scored_by(reference, other))
        measure = _paired(f"context at {length:,} tokens", pairs)
        found.append(measure.model_copy(update={"outcome": Outcome.TOLD}))
    return found


def _preferences(reference: Reported, other: Reported) -> list[Measure]:
    """Which right answers each preferred to near misses, pair by pair, where both evaluations have that."""
    pairs = pair_up(reference.items, other.items, LIKELIHOOD)
    return [_paired("right answers preferred", pairs)] if pairs.total else []


def compare_likelihoods(reference: Reported, other: Reported) -> list[Measure]:
    """Log-likelihoods of right answers, and their margins over near misses, pair by pair, where both evaluations have
    them; of the likelihood stage beside the larger of both models' own floors."""
    ours, theirs = reference.items, other.items
    found = []
    for stage in sorted({key[0] for key in ours}):
        keys = [key for key in ours if key[0] == stage and key in theirs]
        measures = [(f"likelihood of {stage} answers", "gold", right_logprob)]
        if stage == LIKELIHOOD:
            measures = [
                ("likelihood of right answers", "gold", right_logprob),
                ("margin over near misses", "margin", right_margin),
            ]
        for name, kind, read in measures:
            both = [(read(ours[key]), read(theirs[key])) for key in keys]
            known = [(a, b) for a, b in both if a is not None and b is not None]
            if len(known) > 1:
                bound = _answer_floor(reference.report, other.report, kind) if stage == LIKELIHOOD else None
                found.append(_paired_means(name, known, bound))
    return found


def _answer_floor(ours: Report, theirs: Report, kind: str) -> float | None:
    """How far either model's answers are at most from themselves under other numerics; None: not measured."""
    details = [report.details.likelihood for report in (ours, theirs)]
    estimates = [getattr(each, kind) for detail in details if detail is not None for each in detail.floor]
    return max((far_end(estimate) for estimate in estimates if estimate is not None), default=None)


def _paired_means(name: str, known: Sequence[tuple[float, float]], floor: float | None) -> Measure:
    """A paired difference of means, called not resolvable where it is not wholly beyond the floor."""
    baseline, values = (np.array(column, np.float64) for column in zip(*known, strict=True))
    # Questions do not follow each other as tokens do: each is a block of its own.
    estimate = estimate_difference(values, baseline, block_tokens=1)
    interval = (estimate.low, estimate.high) if estimate.low is not None and estimate.high is not None else None
    resolution = resolve(estimate, floor)
    # Without any spread nothing says how small a difference would have been seen.
    same = bool((values == baseline).all())
    outcome, reason = Outcome.NO_DIFFERENCE, "every answer is exactly as likely on both sides" if same else None
    if estimate.excludes_zero and resolution is Resolution.NOT_RESOLVABLE:
        reason = f"not resolvable: a model differs from itself under other numerics by up to {floor:.3f} nats an item"
    elif estimate.excludes_zero:
        outcome = Outcome.BETTER if estimate.mean > 0 else Outcome.WORSE
    return Measure(
        name=name,
        outcome=outcome,
        reason=reason,
        reference=float(baseline.mean()),
        value=float(values.mean()),
        difference=estimate.mean,
        interval=interval,
        method=f"paired bootstrap of questions, seeded; {estimate.blocks} pairs",
        n=len(known),
        smallest_significant=(interval[1] - interval[0]) / 2 if interval is not None and not same else None,
        noise_floor=floor,
        resolution=resolution,
    )


def _scored_by(reference: Reported, other: Reported) -> str:
    """How both curves count; where they differ, by what was written, which both have."""
    contexts = [side.report.details.context for side in (reference, other)]
    told = {context.scored_by for context in contexts if context is not None}
    return told.pop() if len(told) == 1 else "generated"


def _is_right(item: ScoredItem, by_likelihood: bool) -> bool:
    scored = getattr(item, "likelihood", None)
    return bool(scored.right) if by_likelihood and scored is not None else item.right


def right_logprob(item: ScoredItem) -> float | None:
    """Natural logarithm of the right answer's probability; None where it was not scored."""
    scored = getattr(item, "likelihood", None)
    logprobs = getattr(scored, "logprobs", ())
    return float(logprobs[0]) if logprobs and np.isfinite(logprobs[0]) else None


def right_margin(item: ScoredItem) -> float | None:
    """How much likelier the right answer is than the likeliest near miss, in nats; None where it was not scored."""
    scored = item.likelihood
    if scored is None or len(scored.logprobs) < 2 or not np.isfinite(scored.logprobs).all():
        return None
    return margin_of(scored)


def _boundary(ours: Report, theirs: Report, refused: Sequence[str]) -> Measure:
    """Told: one length each has no interval."""
    first, second = ours.metrics.failure_boundary_tokens, theirs.metrics.failure_boundary_tokens
    censored = [r.details.boundary is not None and r.details.boundary.censored for r in (ours, theirs)]
    reason = "one length a model: no test" + ("; at least, where nothing failed" if any(censored) else "")
    return Measure(
        name="failure_boundary_tokens",
        outcome=Outcome.REFUSED if refused else Outcome.TOLD,
        reason=_refusal(refused) if refused else reason,
        reference=first,
        value=second,
        difference=second - first if first is not None and second is not None else None,
    )


def _speed(ours: Report, theirs: Report, refused: Sequence[str]) -> Measure:
    name, a, b = "cpu_tokens_per_sec", ours.details.speed, theirs.details.speed
    values = {"reference": ours.metrics.cpu_tokens_per_sec, "value": theirs.metrics.cpu_tokens_per_sec}
    if a is None or b is None or not values["reference"] or not values["value"]:
        reasons = [r.reasons.get(name, "not measured") for r, speed in ((ours, a), (theirs, b)) if speed is None]
        return Measure(name=name, outcome=Outcome.NOT_MEASURED, reason=_each_once(reasons), **values)
    if refused:
        return Measure(name=name, outcome=Outcome.REFUSED, reason=_refusal(refused), **values)
    if not min(*a.decode_spread, *b.decode_spread):
        return Measure(name=name, outcome=Outcome.NOT_MEASURED, reason="a repeat of no speed at all", **values)
    low, high = b.decode_spread[0] / a.decode_spread[1] - 1, b.decode_spread[1] / a.decode_spread[0] - 1
    p = separated_p(a.repeats, b.repeats)
    outcome, reason = Outcome.NO_DIFFERENCE, None
    if p > LEVEL:
        reason = f"{a.repeats} and {b.repeats} repeats cannot tell two speeds apart; it takes 4 of each"
    elif was_busy(a, b):
        reason = "the machine was busy with something else"
    elif low > DRIFT or high < -DRIFT:
        outcome = Outcome.BETTER if low > 0 else Outcome.WORSE
    else:
        reason = f"the repeats' ranges are not {DRIFT:.0%} apart, which two runs of one file can be"
    return Measure(
        name=name,
        outcome=outcome,
        reason=reason,
        **values,
        difference=values["value"] / values["reference"] - 1,
        interval=(low, high),
        method="ranges of repeats (Mann-Whitney where they do not touch)",
        n=a.repeats,
        p_value=p if low > 0 or high < 0 else None,
        smallest_significant=DRIFT if p <= LEVEL else None,
    )


def _count(report: Report, name: str) -> Count | None:
    details, metrics = report.details, report.metrics
    if getattr(metrics, name) is None:
        return None
    if name == "context_stability_curve":
        context = details.context
        return Count(sum(context.right), sum(context.n)) if context is not None and context.n else None
    detail = details.reasoning if name == "reasoning_score" else details.code
    return Count(detail.right, detail.n) if detail is not None else None


def _share(count: Count | None) -> float | None:
    return count.score if count is not None else None


def _each_once(reasons: Sequence[str]) -> str | None:
    """Reasons of both sides, one that they share said once."""
    return "; ".join(dict.fromkeys(reasons)) or None


def _refusal(found: Sequence[str]) -> str:
    return f"{len(found)} condition{'s differ' if len(found) != 1 else ' differs'}"
