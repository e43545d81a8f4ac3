"""Settings that were found by tuning, put to use: what a session or a server is started with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from dfqs.errors import SpaceError
from dfqs.model.files import ModelFiles
from dfqs.planning.settings import RunSettings
from dfqs.planning.tuning import describe_gain, describe_settings, find_tuning
from dfqs.runtime.context import DEFAULT_CONTEXT_TOKENS
from dfqs.runtime.loading import InMemory
from dfqs.runtime.requests import ContextSettings
from dfqs.streaming.budget import LoadPlan, Streamed, choose_load, least_cache_bytes
from dfqs.streaming.layout import plan_layout

_LONGER_BATCHES = (2048, 1024)
_LEFT_TO_EXPERTS = 7 / 8
"""Of the cache that there would be with batches as they are by default."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a model is run."""

    context: ContextSettings
    threads: int | None = None
    """None: one a physical core."""
    wait_policy: str | None = None
    """As `Worker` takes it."""
    environment: Mapping[str, str] = field(default_factory=dict)
    order: InMemory = field(default_factory=InMemory)
    """Of a model that does not stream."""
    tuned: RunSettings | None = None
    """Where they came from a tuning."""
    reason: str = "settings: the defaults (--no-tuning)"
    """One line for who asks why it runs as it does."""


def choose_tuned(
    model: ModelFiles,
    context: ContextSettings,
    threads: int | None = None,
    *,
    streamed: bool = False,
    use_tuning: bool = True,
) -> Start:
    """The settings that were found for a model here, or the defaults.

    Args:
        context: as it is without a tuning; its length stays.
        threads: as asked for, whatever a tuning says.
        streamed: whether experts are read from disk.
    """
    if not use_tuning:
        return Start(context, threads)
    tuning = find_tuning(model, streamed=streamed)
    if tuning is None:
        return Start(context, threads, reason="settings: the defaults ('dfqs tune' looks for faster ones)")
    found = tuning.settings
    if found == tuning.defaults:
        # Nothing beat them, and what dfqs does without a tuning is as good.
        return Start(context, threads, reason="settings: the defaults; tuning found none that are faster here")
    return Start(
        context=replace(
            found.context(context.n_ctx),
            swa_full=context.swa_full,
            threads_batch=found.threads_batch if threads is None else None,
        ),
        threads=found.threads if threads is None else threads,
        wait_policy=found.wait_policy,
        environment=found.environment,
        order=found.order,
        tuned=found,
        reason=f"settings: tuned ({describe_settings(found, tuning.defaults)}), when it was measured "
        f"{describe_gain(tuning.gain)} as fast as llama.cpp's defaults",
    )


def choose_start(
    model: ModelFiles,
    context: ContextSettings,
    *,
    threads: int | None = None,
    ram: str | None = None,
    force: bool | None = None,
    use_tuning: bool = True,
    sequences: int = 1,
    beside_bytes: int = 0,
) -> tuple[Start, LoadPlan]:
    """Tuned or not, whole or streamed.

    Args:
        context, threads: as `choose_tuned` takes them.
        ram, force, sequences, beside_bytes: as `choose_load` takes them.

    Raises:
        As `choose_load`.
    """
    choose = partial(choose_load, model, ram=ram, force=force, sequences=sequences, beside_bytes=beside_bytes)
    plan = choose(context)
    streamed = plan.order.is_streamed
    start = choose_tuned(model, context, threads, streamed=streamed, use_tuning=use_tuning)
    if start.tuned is not None:
        # Other batches and caches take another amount of memory.
        plan = choose(start.context, whole=start.order)
        if isinstance(plan.order, Streamed):
            order = start.tuned.order_within(plan.order)
            least = least_cache_bytes(plan_layout(model.headers), model.spec.experts_used)
            if isinstance(order, Streamed) and order.settings.cache_bytes >= least:
                plan = plan.streamed_by(order)
    elif plan.cache_bytes is not None:
        return _with_longer_batches(model, start, plan, choose)
    return start, plan


def _with_longer_batches(
    model: ModelFiles, start: Start, plan: LoadPlan, choose: Callable[[ContextSettings], LoadPlan]
) -> tuple[Start, LoadPlan]:
    """Of a prompt as many tokens at a time as leave nearly all of the memory to experts: each batch reads nearly every
    expert that is not there, whatever its length."""
    most = min(model.spec.context_tokens or DEFAULT_CONTEXT_TOKENS, DEFAULT_CONTEXT_TOKENS)
    for tokens in _LONGER_BATCHES:
        if tokens > (start.context.n_ctx or most):
            continue
        context = replace(start.context, n_batch=tokens, n_ubatch=tokens)
        try:
            found = choose(context)
        except SpaceError:
            continue
        if (found.cache_bytes or 0) >= (plan.cache_bytes or 0) * _LEFT_TO_EXPERTS:
            why = f"; prompts {tokens:,} tokens at a time, so that experts are read less often"
            return replace(start, context=context, reason=start.reason + why), found
    return start, plan
