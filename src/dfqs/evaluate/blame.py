"""Why two files answer differently: their templates and tokenizers, the arithmetic, rounding, or another checkpoint.

The smallest set of conditions that tells these apart. The same questions with given answers are scored

1. by the reference, on its own rendering of them;
2. by the model on those very tokens: what differs from 1 is the weights';
3. by the model on its own rendering, where that has other tokens: what differs from 2 is the template's or tokenizer's;
4. by either once more with flash attention on: what differs from itself is the arithmetic's.

A difference that is not wholly beyond that of 4 is the arithmetic's. Weights that differ by more are read from both
files (`dfqs.evaluate.closeness`): rounded, or another checkpoint's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from dfqs.errors import UsageError
from dfqs.evaluate.closeness import WeightsCloseness, compare_weights
from dfqs.evaluate.conditions import Numerics
from dfqs.evaluate.jobs import GivenTokens
from dfqs.evaluate.local import LocalAnswerer
from dfqs.evaluate.preference import preference_items
from dfqs.model.files import ModelFiles
from dfqs.progress import Progress, no_progress
from dfqs.quantize.bootstrap import Estimate, estimate_mean
from dfqs.quantize.noise_floor import Resolution
from dfqs.records import Document, Record, Text, Whole
from dfqs.runtime import Worker
from dfqs.runtime.loading import LoadOrder

ITEMS = 12
"""Of each reasoning set."""
BLAME_CONTEXT_TOKENS = 1024
FLASH_ATTENTION = Numerics(flash_attention="on")
Scores = dict[int, tuple[float, ...]]
"""Log-likelihoods of the answers to each question that fits the context, by its number."""


class Cause(StrEnum):
    """Where a difference comes from."""

    TEMPLATE = "template"
    TOKENIZER = "tokenizer"
    NUMERICS = "engine numerics"
    QUANTIZATION = "quantization"
    CHECKPOINT = "checkpoint"


class Effect(Record):
    """What changing one thing does to the log-likelihood of a given answer, whatever its direction."""

    changed: str
    absolute: Estimate
    """Mean amount, nats an answer; interval by bootstrap over questions."""
    signed: Estimate
    """Mean with its sign."""
    beyond_itself: Estimate
    """By how much that is more than the larger difference of either file from itself, question by question."""
    resolution: Resolution
    """Resolved: that interval lies above 0."""


class BlameDocument(Document):
    """`dfqs eval MODEL --blame REFERENCE`: what makes the difference, and what shows it. Null: not measured."""

    schema_: Literal["dfqs.blame/1"] = Field(default="dfqs.blame/1", alias="schema")
    reference: Text
    model: Text
    cause: Cause | None
    """Of the largest resolved effect; null where the model or the reference computes no numbers."""
    causes: tuple[Cause, ...]
    """All that have a resolved effect, the largest first."""
    reason: Text
    """In a sentence."""
    questions: Whole
    scored: Whole
    """Of these, as many as fit the contexts of both."""
    same_text: Whole
    """Questions that both templates write alike."""
    same_tokens: Whole
    """Questions that become the same tokens in both."""
    same_vocabulary: bool
    """The reference's tokens mean the same in the model."""
    itself: Estimate | None
    """Nats an answer: how far the files are from themselves with flash attention, of each question the larger."""
    prompt: Effect | None
    """Of the model's own rendering in place of the reference's tokens; null where they are the same."""
    weights: Effect | None
    """Of the model in place of the reference, on the reference's tokens."""
    total: Effect | None
    """Of both together: each file as it is used."""
    closeness: WeightsCloseness
    """Of the weights, read from both files."""


@dataclass(frozen=True, slots=True)
class _Side:
    """One file's renderings and scores; scores are None where it computes no numbers."""

    given: list[GivenTokens]
    own: Scores | None
    flash: Scores | None
    borrowed: Scores | None = None
    """Of the other's tokens."""
    same_vocabulary: bool = True


def blame(
    model: ModelFiles,
    reference: ModelFiles,
    *,
    items: int = ITEMS,
    threads: int | None = None,
    orders: tuple[LoadOrder, LoadOrder],
    progress: Progress = no_progress,
) -> BlameDocument:
    """Find out why two files differ. One is loaded at a time.

    Args:
        items: questions of each reasoning set.
        orders: how the reference's and the model's weights come into memory.

    Raises:
        UsageError: no question fits the context.
        RuntimeFailure, FormatError, WorkerCrash: a file cannot be loaded.
    """
    asked = [(set_.prompt(item), answers) for set_, item, answers in preference_items(items)]
    steps = iter(range(1, 6 * len(asked) + 1))

    def tell(what: str) -> None:
        progress(next(steps), 6 * len(asked), what)

    def opened(files: ModelFiles, order: LoadOrder) -> LocalAnswerer:
        return LocalAnswerer(files, threads=threads, max_context=BLAME_CONTEXT_TOKENS, order=order)

    with opened(reference, orders[0]) as answerer:
        given = [answerer.render(prompt, answers) for prompt, answers in asked]
        own = _score(answerer, given, None, tell)
        theirs = _Side(given, own, _score(answerer, given, FLASH_ATTENTION, tell))
        used = sorted({token for each in given for token in (*each.asked, *(t for a in each.answers for t in a))})
        pieces = answerer.pieces(used)
    with opened(model, orders[1]) as answerer:
        same_vocabulary = answerer.pieces(used) == pieces
        mine = [answerer.render(prompt, answers) for prompt, answers in asked]
        borrowed = _score(answerer, given, None, tell) if same_vocabulary else None
        same = same_vocabulary and _tokens(mine) == _tokens(given)
        own = borrowed if same else _score(answerer, mine, None, tell)
        flash = _score(answerer, mine, FLASH_ATTENTION, tell)
        ours = _Side(mine, own, flash, borrowed, same_vocabulary)
    with Worker(threads=threads) as worker:
        weights = worker.reporting(lambda _event: None).call(compare_weights, reference.path, model.path)
    return conclude(reference.path, model.path, theirs, ours, weights)


def conclude(reference: Path, model: Path, theirs: _Side, ours: _Side, weights: WeightsCloseness) -> BlameDocument:
    """What the measurements say. Pure."""
    same_text = sum(a.text == b.text for a, b in zip(theirs.given, ours.given, strict=True))
    same_tokens = (
        sum(a == b for a, b in zip(_tokens(theirs.given), _tokens(ours.given), strict=True))
        if ours.same_vocabulary
        else 0
    )
    if not _common(theirs.own, ours.own) and theirs.own is not None and ours.own is not None:
        raise UsageError("no question fits the contexts of both models")
    noise = _noise(theirs, ours)
    itself = estimate_mean(np.array([*noise.values()]), 1) if noise else None
    differs = same_tokens < len(theirs.given)
    prompt = _effect("rendering", ours.borrowed, ours.own, noise) if differs else None
    effect = _effect("weights", theirs.own, ours.borrowed, noise)
    total = _effect("both", theirs.own, ours.own, noise)
    wording = Cause.TEMPLATE if same_text < len(theirs.given) else Cause.TOKENIZER
    # Where all that was read is the same, something else is not: what was not read, or keys.
    of_weights = Cause.QUANTIZATION if weights.rounded and not weights.identical else Cause.CHECKPOINT
    found = [(each, cause) for each, cause in ((prompt, wording), (effect, of_weights)) if each is not None]
    found = [pair for pair in found if pair[0].resolution is Resolution.RESOLVED]
    causes = tuple(cause for _, cause in sorted(found, key=lambda pair: -pair[0].absolute.mean))
    if not ours.same_vocabulary:
        # Nothing can be scored on the same tokens: the vocabulary is part of a checkpoint.
        causes = (Cause.TOKENIZER,) if weights.rounded else (Cause.CHECKPOINT, Cause.TOKENIZER)
    cause = _cause(causes, total, itself)
    return BlameDocument(
        reference=str(reference),
        model=str(model),
        cause=cause,
        causes=causes,
        reason=_reason(cause, causes, weights, total),
        questions=len(theirs.given),
        scored=len(_common(theirs.own, ours.own)),
        same_text=same_text,
        same_tokens=same_tokens,
        same_vocabulary=ours.same_vocabulary,
        itself=itself,
        prompt=prompt,
        weights=effect,
        total=total,
        closeness=weights,
    )


def _cause(causes: Sequence[Cause], total: Effect | None, itself: Estimate | None) -> Cause | None:
    if total is None or itself is None:
        return None
    return causes[0] if causes else Cause.NUMERICS


def _reason(cause: Cause | None, causes: Sequence[Cause], weights: WeightsCloseness, total: Effect | None) -> str:
    if cause is None:
        return "one of the files computes no numbers (NaN or infinity), so that there is nothing to compare"
    others = f"; beside it: {', '.join(causes[1:])}" if len(causes) > 1 else ""
    compared = len(weights.compared)
    sentences = {
        Cause.TEMPLATE: "the chat templates write the questions differently, and that changes what is likely",
        Cause.TOKENIZER: "the same text becomes other tokens, or tokens mean something else",
        Cause.QUANTIZATION: f"the weights differ by as much as rounding to their types makes ({compared} tensors read)",
        Cause.CHECKPOINT: "the weights, or the keys that say how they are used, differ by more than rounding to their "
        f"types makes ({compared} tensors read)",
        Cause.NUMERICS: "the difference is not resolvable: either file differs from itself by as much under other "
        "numerics",
    }
    sentence = sentences[cause]
    if cause is Cause.NUMERICS and total is not None and total.absolute.mean == 0:
        sentence = "there is no difference under the same numerics: what was seen is numerics, settings or sampling"
    elif cause is Cause.NUMERICS and not weights.identical:
        kind = "otherwise rounded" if weights.rounded else "others"
        sentence += f"; the weights are {kind} all the same, which does not show in these answers"
    return sentence + others


def _effect(changed: str, before: Scores | None, after: Scores | None, noise: Mapping[int, float]) -> Effect | None:
    """
    Args:
        noise: how far either file is from itself, by question.
    """
    amounts = _amounts(before, after)
    keys = sorted(amounts.keys() & noise.keys())
    if not keys or before is None or after is None:
        return None
    # Question by question: what makes some of them touchier than others cancels.
    beyond = estimate_mean(np.array([amounts[key] - noise[key] for key in keys]), 1)
    low = beyond.mean if beyond.low is None else beyond.low
    signed = [float(np.mean(np.array(after[key]) - np.array(before[key]))) for key in keys]
    return Effect(
        changed=changed,
        absolute=estimate_mean(np.array([amounts[key] for key in keys]), 1),
        signed=estimate_mean(np.array(signed), 1),
        beyond_itself=beyond,
        resolution=Resolution.RESOLVED if low > 0 else Resolution.NOT_RESOLVABLE,
    )


def _noise(theirs: _Side, ours: _Side) -> dict[int, float]:
    """How far either file is from itself with flash attention, by question; empty where one computes no numbers."""
    first, second = (_amounts(side.own, side.flash) for side in (theirs, ours))
    return {key: max(first[key], second[key]) for key in sorted(first.keys() & second.keys())}


def _amounts(before: Scores | None, after: Scores | None) -> dict[int, float]:
    """Mean amount by which the answers' log-likelihoods differ, by question."""
    if before is None or after is None:
        return {}
    return {key: float(np.abs(np.array(after[key]) - np.array(before[key])).mean()) for key in _common(before, after)}


def _common(first: Scores | None, second: Scores | None) -> list[int]:
    return sorted((first or {}).keys() & (second or {}).keys())


def _score(
    answerer: LocalAnswerer, given: Sequence[GivenTokens], numerics: Numerics | None, tell: Callable[[str], object]
) -> Scores | None:
    """None: it computes no numbers."""
    found: Scores = {}
    for number, each in enumerate(given):
        tell(answerer.path.name)
        scored = answerer.score_given(each, numerics)
        if scored.scores is not None:
            found[number] = scored.scores.logprobs
        elif scored.finish_reason != "context":
            return None
    return found


def _tokens(given: Sequence[GivenTokens]) -> list[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]]:
    return [(each.asked, each.answers) for each in given]
