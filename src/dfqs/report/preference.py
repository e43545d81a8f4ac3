"""What the report says of given answers and of the noise floor, out of stored results. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfqs.evaluate.preference import OTHER_NUMERICS, TEXT
from dfqs.evaluate.scores import LikelihoodScore, ScoredItem
from dfqs.evaluate.stages import FLOOR, LIKELIHOOD, REASONING
from dfqs.evaluate.statistics import Count, wilson_interval
from dfqs.quantize.bootstrap import Estimate, estimate_difference, estimate_mean
from dfqs.quantize.noise_floor import NoiseFloor
from dfqs.report.schema import AnswersAgainstThemselves, LikelihoodDetail, WrittenBeside

Results = Mapping[str, Mapping[str, Any]]


def margin_of(score: LikelihoodScore) -> float:
    """How much likelier the right answer is than the likeliest near miss, in nats."""
    right, *others = score.logprobs
    return right - max(others)


def mean_of_items(values: Sequence[float]) -> Estimate:
    """A mean with its interval. Items do not follow each other as tokens do: each is a block of its own."""
    return estimate_mean(np.array(values, np.float64), block_tokens=1)


def likelihood_detail(
    stages: Mapping[str, Results], expected: int | None, missing: dict[str, str]
) -> LikelihoodDetail | None:
    """The likelihood stage; None where it was not measured.

    Args:
        expected: how many items it has.
        missing: added to where it was begun, and there is nothing to tell.
    """
    results = stages.get(LIKELIHOOD, {})
    if not results or expected is None:
        return None
    if len(results) < expected:
        done = f"{len(results)} of {expected} items measured; run the same command again"
        missing["likelihood of given answers"] = done
        return None
    items = [ScoredItem.model_validate(data) for data in results.values()]
    scored = [(item, item.likelihood) for item in items if item.likelihood is not None]
    if not scored:
        missing["likelihood of given answers"] = f"none could be scored; the last: {items[-1].completion.text}"
        return None
    own = scored_by(items)
    count = Count(sum(score.right for _, score in scored), len(scored))
    interval = wilson_interval(count)
    chance = sum(score.chance for _, score in scored) / len(scored)
    return LikelihoodDetail(
        n=count.total,
        right=count.right,
        interval_95=interval,
        chance=chance,
        above_chance=None if interval is None else interval[0] > chance,
        unusable=len(items) - len(scored),
        gold=mean_of_items([score.logprobs[0] for _, score in scored]),
        margin=mean_of_items([margin_of(score) for _, score in scored]),
        greedy=sum(score.greedy for _, score in scored),
        groups=_groups([item for item, _ in scored]),
        written=_written([item for item, _ in scored], stages.get(REASONING, {})),
        floor=[against for name in OTHER_NUMERICS if (against := _against(name, own, stages.get(FLOOR, {})))],
    )


def scored_by(items: Sequence[ScoredItem]) -> dict[str, LikelihoodScore]:
    """Likelihoods by the items' names."""
    return {item.item: item.likelihood for item in items if item.likelihood is not None}


def text_floor(results: Results, missing: dict[str, str]) -> NoiseFloor | None:
    """The floor on held-out text; None where it was not measured.

    Args:
        missing: added to where there is none, and the reason is known.
    """
    failure = results.get(f"{TEXT}/failure")
    if TEXT in results:
        return NoiseFloor.model_validate(results[TEXT])
    if failure is not None:
        missing["noise floor"] = str(failure["reason"])
    return None


def _groups(items: Sequence[ScoredItem]) -> dict[str, tuple[int, int]]:
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for item in items:
        for name in (str(item.place["family"]), f"level {item.place['level']}"):
            right[name] += item.right
            total[name] += 1
    return {name: (right[name], total[name]) for name in sorted(total)}


def _written(items: Sequence[ScoredItem], results: Results) -> WrittenBeside | None:
    both = [(item, ScoredItem.model_validate(results[item.item])) for item in items if item.item in results]
    if not both:
        return None
    count = Count(sum(written.right for _, written in both), len(both))
    interval = wilson_interval(count)
    guess = sum(float(item.place["guess"]) for item, _ in both) / len(both)
    low = interval[0] if interval is not None else 0.0
    return WrittenBeside(
        n=count.total,
        right=count.right,
        interval_95=interval,
        guess=guess,
        at_floor=not count.right or low <= guess,
    )


def _against(name: str, own: Mapping[str, LikelihoodScore], floor: Results) -> AnswersAgainstThemselves | None:
    """Items under other numerics, paired with the score's own."""
    found = [ScoredItem.model_validate(data) for key, data in floor.items() if key.startswith(f"{name}/")]
    if not found:
        return None
    others = scored_by(found)
    pairs = [(own[key], score) for key, score in others.items() if key in own]
    if not pairs:
        reason = found[-1].completion.text or "no item was scored under both"
        return AnswersAgainstThemselves(numerics=name, n=0, same_choice=None, gold=None, margin=None, reason=reason)
    same = sum(_choice(ours) == _choice(theirs) for ours, theirs in pairs)

    def difference(values: Sequence[tuple[float, float]]) -> Estimate:
        ours, theirs = (np.array(column, np.float64) for column in zip(*values, strict=True))
        return estimate_difference(theirs, ours, block_tokens=1)

    return AnswersAgainstThemselves(
        numerics=name,
        n=len(pairs),
        same_choice=same / len(pairs),
        gold=difference([(ours.logprobs[0], theirs.logprobs[0]) for ours, theirs in pairs]),
        margin=difference([(margin_of(ours), margin_of(theirs)) for ours, theirs in pairs]),
    )


def _choice(score: LikelihoodScore) -> int:
    return max(range(len(score.logprobs)), key=score.logprobs.__getitem__)
