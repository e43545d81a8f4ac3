"""Settings that were found by tuning, put to use: what a session or a server is started with."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from dfqs.model.files import ModelFiles
from dfqs.planning.settings import RunSettings
from dfqs.planning.tuning import describe_gain, describe_settings, find_tuning
from dfqs.runtime.loading import InMemory
from dfqs.runtime.requests import ContextSettings
from dfqs.streaming.budget import LoadPlan, Streamed, choose_load, least_cache_bytes
from dfqs.streaming.layout import plan_layout


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
    return start, plan
