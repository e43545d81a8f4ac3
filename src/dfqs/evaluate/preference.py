"""The stages that score given answers by likelihood: right answers beside near misses, and the model against itself.

A model that writes no right answer, because it is small or was brought to few bits, still finds some answers likelier
than others. The sets are the reasoning sets', in their words, and what is scored stands where the written answer would.
"""

from collections.abc import Sequence

from dfqs.errors import RuntimeFailure
from dfqs.evaluate.answerer import LikelihoodAnswerer
from dfqs.evaluate.asker import is_open
from dfqs.evaluate.conditions import Numerics
from dfqs.evaluate.items import ItemSet
from dfqs.evaluate.near_misses import near_misses
from dfqs.evaluate.prompts import ReasoningItem, read_gym_set, read_reasoning_set
from dfqs.evaluate.scores import Completion, LikelihoodScore, ScoredItem, Verdict
from dfqs.evaluate.stages import FLOOR, LIKELIHOOD, REASONING
from dfqs.evaluate.store import Store
from dfqs.evaluate.suites import Suite
from dfqs.progress import Progress

TEXT = "text"
"""Key of the floor on held-out text."""
OTHER_NUMERICS = {
    "flash attention on": {"flash_attention": "on"},
    "KV cache q8_0, with the flash attention that it needs": {
        "flash_attention": "on",
        "type_k": "q8_0",
        "type_v": "q8_0",
    },
}
"""Under which answers are scored again. Not token by token: that would take as long as writing all prompts."""

Preferred = tuple[ItemSet, ReasoningItem, tuple[str, ...]]
"""A set, an item, and its answers, the right one first."""


def preference_items(count: int) -> list[Preferred]:
    """The first `count` items of each reasoning set that have near misses."""
    found: list[Preferred] = []
    for set_ in (read_reasoning_set(), read_gym_set()):
        items = set_.items[:count]
        asked = ItemSet(REASONING, set_, len(items))
        found += [(asked, item, (item.answer, *others)) for item in items if (others := near_misses(item))]
    return found


def measure_preferences(answerer: LikelihoodAnswerer, store: Store, suite: Suite, progress: Progress) -> None:
    """Score and store what is still open of the likelihood stage."""
    asked = preference_items(suite.likelihood_items)
    _measure(answerer, store, LIKELIHOOD, [(each[1].id, each, None) for each in asked], progress)


def measure_floor(
    answerer: LikelihoodAnswerer, store: Store, suite: Suite, numerics: Numerics, progress: Progress
) -> None:
    """Hold the model against itself: on held-out text, and on the first items of the likelihood stage.

    Args:
        numerics: those of the scores, which the others differ from.
    """
    if suite.floor_tokens and store.get(FLOOR, TEXT) is None and store.get(FLOOR, f"{TEXT}/failure") is None:
        try:
            found = answerer.hold_against_itself(suite.floor_tokens, progress)
        except RuntimeFailure as error:
            # Written down: a model without numbers has no floor, and the rest of the evaluation says what it has.
            store.append(FLOOR, f"{TEXT}/failure", {"reason": error.sentence})
        else:
            store.append(FLOOR, TEXT, found.model_dump(mode="json"))
    asked = preference_items(suite.floor_items)
    others = {name: numerics.model_copy(update=changes) for name, changes in OTHER_NUMERICS.items()}
    # One context serves all items of a numerics.
    _measure(
        answerer,
        store,
        FLOOR,
        [(f"{name}/{each[1].id}", each, other) for name, other in others.items() for each in asked],
        progress,
    )


def _measure(
    answerer: LikelihoodAnswerer,
    store: Store,
    stage: str,
    asked: Sequence[tuple[str, Preferred, Numerics | None]],
    progress: Progress,
) -> None:
    still_open = [each for each in asked if is_open(store, stage, each[0])]
    done = len(asked) - len(still_open)
    progress(done, len(asked), "")
    for key, (set_, item, answers), numerics in still_open:
        try:
            completion, likelihood = answerer.prefer(set_.prompt(item), answers, numerics)
        except RuntimeFailure as error:
            if numerics is None:
                raise
            # Other numerics can be refused, which is no failure of the model.
            completion, likelihood = Completion(text=error.sentence, finish_reason="error"), None
        scored = score_preference(stage, item, completion, likelihood)
        store.append(stage, key, scored.model_dump(mode="json"))
        done += 1
        progress(done, len(asked), item.id)


def score_preference(
    stage: str, item: ReasoningItem, completion: Completion, likelihood: LikelihoodScore | None
) -> ScoredItem:
    """One item's result: right when the right answer is likelier than every near miss."""
    verdict = completion.refusal() or Verdict.WRONG
    if likelihood is not None:
        verdict = Verdict.RIGHT if likelihood.right else Verdict.WRONG
    return ScoredItem(
        stage=stage,
        item=item.id,
        verdict=verdict,
        answer=completion.text if likelihood is not None else None,
        completion=completion,
        place={"family": item.family, "level": item.level, "guess": item.chance},
        likelihood=likelihood,
    )
