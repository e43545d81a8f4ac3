"""The stages that ask one prompt after the other: reasoning, code, tools, profile.

Every answer is stored before the next is asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dfqs.errors import IntegrityError, UsageError
from dfqs.evaluate.answerer import Answerer
from dfqs.evaluate.asker import is_open
from dfqs.evaluate.code import code_place, score_code
from dfqs.evaluate.humaneval import humaneval_entry, read_humaneval_set
from dfqs.evaluate.profile import score_profile
from dfqs.evaluate.prompts import (
    CodeItem,
    ProfileItem,
    PromptSet,
    ReasoningItem,
    ToolItem,
    read_code_set,
    read_context_set,
    read_gym_set,
    read_profile_set,
    read_reasoning_set,
    read_tool_set,
)
from dfqs.evaluate.reasoning import score_reasoning
from dfqs.evaluate.sandbox import Sandbox
from dfqs.evaluate.scores import Completion, ScoredItem, judged
from dfqs.evaluate.stages import CODE, PROFILE, REASONING, TOOLS
from dfqs.evaluate.store import Store
from dfqs.evaluate.suites import STANDARD, Suite
from dfqs.evaluate.tools import score_tools, tool_prompt
from dfqs.progress import Progress

Item = ReasoningItem | CodeItem | ToolItem | ProfileItem


@dataclass(frozen=True, slots=True)
class ItemSet:
    """A set as a suite uses it."""

    stage: str
    set_: PromptSet[Any]
    count: int
    most_tokens: int | None = None
    """Longest answer, where that is less than the set's own."""

    @property
    def max_tokens(self) -> int:
        """Longest answer."""
        own: int = self.set_.entry.max_tokens
        return own if self.most_tokens is None else min(own, self.most_tokens)

    @property
    def items(self) -> Sequence[Item]:
        """Those that are asked."""
        return self.set_.items[: self.count]

    def prompt(self, item: Item, tools_beside: bool = False) -> str:
        """What the model is asked.

        Args:
            tools_beside: tools are not told in words, but beside the message in a form of their own.
        """
        if isinstance(item, ToolItem):
            return item.question if tools_beside else tool_prompt(self.set_, item)
        return self.set_.prompt(item.question if isinstance(item, ReasoningItem) else item.prompt)


def item_sets(suite: Suite) -> tuple[ItemSet, ...]:
    """The sets of a suite, our first ones always; HumanEval where its data is."""
    sets = [
        ItemSet(REASONING, read_reasoning_set(), suite.reasoning_items),
        ItemSet(CODE, read_code_set(), suite.code_items),
    ]
    if suite.gym_items:
        sets.append(ItemSet(REASONING, read_gym_set(), suite.gym_items))
    if suite.humaneval_items and why_no_humaneval() is None:
        sets.append(ItemSet(CODE, read_humaneval_set(), suite.humaneval_items))
    if suite.tool_items:
        sets.append(ItemSet(TOOLS, read_tool_set(), suite.tool_items))
    if suite.profile_items:
        sets.append(ItemSet(PROFILE, read_profile_set(), suite.profile_items))
    return tuple(replace(each, most_tokens=suite.answer_tokens) for each in sets)


def frozen_hashes() -> dict[str, str]:
    """Every set of this version with its hash, whether its data is here or not."""
    sets = [*(each.set_.entry for each in item_sets(STANDARD)), read_context_set().entry, humaneval_entry()]
    return {entry.name: entry.set_sha256 for entry in sets}


def why_no_humaneval() -> str | None:
    """None: it is here."""
    try:
        read_humaneval_set()
    except (UsageError, IntegrityError) as error:
        return str(error)
    return None


def measure_items(
    answerer: Answerer, store: Store, stage: str, sets: Sequence[ItemSet], sandbox: Sandbox | None, progress: Progress
) -> None:
    """Ask and store what is still open of a stage. What was there before is reported at once: it tells nothing of the
    rate."""
    asked = [(each, item) for each in sets if each.stage == stage for item in each.items]
    still_open = [(each, item) for each, item in asked if is_open(store, stage, item.id)]
    done = len(asked) - len(still_open)
    progress(done, len(asked))
    for each, item in still_open:
        within = _within(progress, done, len(asked), item.id)
        completion = _ask(answerer, each, item, within)
        scored = judged(_scorer(item, sandbox), stage, item.id, completion, _place(item))
        store.append(stage, item.id, scored.model_dump(mode="json"))
        done += 1
        progress(done, len(asked), item.id)


def _ask(answerer: Answerer, set_: ItemSet, item: Item, progress: Progress) -> Completion:
    beside = isinstance(item, ToolItem) and answerer.info.offers_tools
    tools = item.tools if isinstance(item, ToolItem) and beside else ()
    return answerer.complete(set_.prompt(item, beside), set_.max_tokens, progress, tools)


def _scorer(item: Item, sandbox: Sandbox | None) -> Callable[[Completion], ScoredItem]:
    if isinstance(item, ReasoningItem):
        return partial(score_reasoning, item)
    if isinstance(item, ToolItem):
        return partial(score_tools, item)
    if isinstance(item, ProfileItem):
        return partial(score_profile, item)
    assert sandbox is not None, "code is only measured with a sandbox"
    return partial(score_code, item, sandbox=sandbox)


def _place(item: Item) -> dict[str, str | int | float]:
    if isinstance(item, ReasoningItem):
        return {"family": item.family, "level": item.level}
    if isinstance(item, ToolItem):
        return {"level": item.level, "needed": int(item.call is not None), "called": 0, "valid": 0}
    return {"row": item.row, "level": item.level} if isinstance(item, ProfileItem) else code_place(item)


def _within(progress: Progress, measured: int, items: int, name: str) -> Progress:
    """Progress inside one item: the count stands still, the note moves."""

    def tell(done: int, total: int | None = None, note: str = "") -> None:
        progress(measured, items, f"{name}, token {done:,} of {total:,}")

    return tell
