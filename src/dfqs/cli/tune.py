"""`dfqs tune`: the settings that make a model fastest on this machine."""

import re
from typing import Annotated

import typer

from dfqs.cli.drawing import SHARE, progress_bar
from dfqs.cli.loading import note_plan
from dfqs.cli.options import Force, Json, ObtainedModel, Ram, Threads, Yes
from dfqs.cli.output import column_table, emit, key_value_table, note, out, print_plain
from dfqs.cli.source import obtain_model
from dfqs.cli.tables import Table
from dfqs.errors import UsageError
from dfqs.hardware import read_machine
from dfqs.planning.settings import default_settings
from dfqs.planning.trials import Workload
from dfqs.planning.tune import REQUEST, TuneJob, tune
from dfqs.planning.tuning import (
    Tuning,
    describe_gain,
    describe_settings,
    find_tuning,
    require_storable,
    store_tuning,
)
from dfqs.runtime.loading import InMemory
from dfqs.streaming.budget import choose_load
from dfqs.units import format_duration

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)?\s*")
_UNITS_S = {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600}
LONGEST_S = 24 * 3600


def command(
    model: ObtainedModel,
    budget: Annotated[str, typer.Option("--budget", help="Time that may be spent: 90s, 3m, 1h.")] = "3m",
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", help="Of the request to be fast at.", min=1, max=65_536)
    ] = REQUEST.prompt_tokens,
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", help="Of the request to be fast at.", min=1, max=4096)
    ] = REQUEST.answer_tokens,
    threads: Threads = None,
    ram: Ram = None,
    force: Force = False,
    yes: Yes = False,
    show: Annotated[bool, typer.Option("--show", help="Print what was found before, and measure nothing.")] = False,
    json_: Json = False,
) -> None:
    """Find the settings that make a model fastest on this machine as it is now, and keep them: `run`, `chat` and
    `serve` use them from then on. What `eval` and `route` measure is never tuned.

    Example: dfqs tune model.gguf --budget 5m
    """
    seconds = parse_duration(budget)
    checked = obtain_model(model, context_tokens=prompt_tokens + answer_tokens, ram=ram, force=force, yes=yes)
    plan = choose_load(checked, default_settings(threads).context(prompt_tokens + answer_tokens), ram, force=force)
    note_plan(plan)
    order = None if isinstance(plan.order, InMemory) else plan.order
    if show:
        found = find_tuning(checked, streamed=plan.order.is_streamed)
        if found is None:
            raise UsageError(f"{model} was not tuned on this machine as busy as it is now; 'dfqs tune {model}' does it")
        emit(found, json_, lambda: show_tuning(found))
        return
    require_storable()
    note(f"tuning for {format_duration(seconds)}; what else runs meanwhile is taken for what always runs here")
    with progress_bar(f"tuning {checked.name}", SHARE) as progress:
        job = TuneJob(checked, read_machine(), Workload(prompt_tokens, answer_tokens), seconds, threads, order)
        tuning = tune(job, progress)
    store_tuning(tuning)
    emit(tuning, json_, lambda: show_tuning(tuning))


def parse_duration(text: str) -> float:
    """Seconds from `90`, `90s`, `3m` or `1h`.

    Raises:
        UsageError: it is no time, or longer than a day.
    """
    match = _DURATION.fullmatch(text)
    if match is None or not 0 < (seconds := float(match[1]) * _UNITS_S[match[2]]) <= LONGEST_S:
        raise UsageError(f"'{text}' is no time to spend; write it like 90s, 3m or 1h, at most 24h")
    return seconds


def show_tuning(tuning: Tuning) -> None:
    """For people."""
    kept = tuning.settings == tuning.defaults
    speed, before = tuning.speed, tuning.default_speed
    rows = [
        ("settings", describe_settings(tuning.settings, tuning.defaults)),
        (
            "answer",
            f"{speed.answer_tokens_per_s:.1f} tokens/s (defaults {before.answer_tokens_per_s:.1f})"
            + ("" if kept else f", {describe_gain(tuning.answer_gain)}"),
        ),
        (
            "prompt",
            f"{speed.prompt_tokens_per_s:.1f} tokens/s (defaults {before.prompt_tokens_per_s:.1f})"
            + ("" if kept else f", {describe_gain(tuning.prompt_gain)}"),
        ),
        ("request", f"{tuning.prompt_tokens:,} tokens of prompt, {tuning.answer_tokens:,} of answer"),
    ]
    if not kept:
        rows.append(("gain", f"{describe_gain(tuning.gain)} in {tuning.gain.pairs} pairs with the defaults"))
    busy = "busy" if tuning.busy else "quiet"
    rows += [
        ("machine", f"{busy} ({tuning.other_cpus:.1f} CPUs taken by others), speed within {tuning.drift:.2f} x"),
        ("spent", f"{format_duration(tuning.spent_s)} of {format_duration(tuning.budget_s)}"),
    ]
    out.print_table(key_value_table(rows))
    if tuning.tried:
        print_plain("")
        out.print_table(_tried_table(tuning))
    for line in tuning.notes:
        note(f"note: {line}")


def _tried_table(tuning: Tuning) -> Table:
    table = column_table("tried", "of", "request", "prompt", "answer", "pairs", words=("tried", "of"))
    for one in tuning.tried:
        gains = (one.gain, one.prompt_gain, one.answer_gain)
        changes = ", ".join(one.changes) + (" (taken)" if one.chosen else "")
        table.add_row(changes, one.stage, *(f"{gain.mean:.2f} x" for gain in gains), str(one.gain.pairs))
    return table
