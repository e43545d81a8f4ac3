"""The decision how a model is loaded, made of headers: what does not fit is raised, as `choose_load` does."""

from collections.abc import Callable
from pathlib import Path

from dfqs.errors import SpaceError
from dfqs.gguf.reader import Header
from dfqs.runtime.memory import MemoryNeed
from dfqs.streaming.budget import LoadPlan, Shortfall, choose_cache, weigh_load
from dfqs.streaming.layout import StreamLayout, plan_layout
from dfqs.streaming.mechanism import Choice


def plan_load(
    headers: tuple[Header, ...],
    paths: tuple[Path, ...],
    need: MemoryNeed,
    used: int,
    memory_bytes: int,
    choose: Callable[[StreamLayout], Choice] = choose_cache,
) -> LoadPlan:
    """As `weigh_load`.

    Raises:
        SpaceError: it does not fit, streamed or not; says what is missing.
    """
    weighed = weigh_load(need, memory_bytes, used, paths, lambda: plan_layout(headers), choose)
    if isinstance(weighed, Shortfall):
        raise SpaceError(weighed.describe())
    return weighed
