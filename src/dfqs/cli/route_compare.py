"""`dfqs route diff` and `dfqs route stats`: what trace files say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.options import Json, Plots, Svg
from dfqs.cli.output import emit, note, print_parts, warn
from dfqs.cli.route_text import percent, plain_table, share
from dfqs.cli.tables import Table
from dfqs.errors import UsageError
from dfqs.routing.coherence import Coherence, RouteDiff, diff_traces
from dfqs.routing.stats import RouteStats, measure_stats
from dfqs.storage.atomic import check_output_path
from dfqs.units import format_number_of


def diff(
    reference: Annotated[Path, typer.Argument(help="Trace to compare with.", show_default=False)],
    other: Annotated[Path, typer.Argument(help="Trace of the same tokens.", show_default=False)],
    plots: Plots = None,
    svg: Svg = False,
    json_: Json = False,
) -> None:
    """Compare the routing of two quantizations, runtimes or settings of one model on the same tokens. Needs the two
    traces only: the models may be elsewhere.

    Example: dfqs route diff bf16.route iq1.route --plots pictures
    """
    pictures = plan_pictures(plots, ("agreement-by-layer", "agreement-by-context"), svg)
    found = diff_traces(reference, other)
    emit(found, json_, lambda: print_parts(diff_table(found), context_table(found)))
    for text in found.notices:
        warn(text)
    if found.differing_conditions:
        note("conditions that differ: " + "; ".join(found.differing_conditions))
    if pictures:
        from dfqs.routing.plots import plot_agreement_by_context, plot_agreement_by_layer  # noqa: PLC0415

        plot_agreement_by_layer(found, pictures[0])
        plot_agreement_by_context(found, pictures[1])
        note(f"pictures: {', '.join(str(path) for path in pictures)}")


def stats(
    trace: Annotated[Path, typer.Argument(help="Trace file.", show_default=False)],
    plots: Plots = None,
    svg: Svg = False,
    json_: Json = False,
) -> None:
    """Count what a trace holds: load of every expert, hot set, experts that go together, working set, and how well a
    cache of experts would do.

    Example: dfqs route stats model.route --plots pictures
    """
    pictures = plan_pictures(plots, ("expert-load",), svg)
    found = measure_stats(trace)
    tables = [load_table(found), reuse_table(found), entropy_table(found)]
    emit(found, json_, lambda: print_parts(*tables, *([pair_table(found)] if found.pairs else [])))
    if pictures:
        from dfqs.routing.plots import plot_load  # noqa: PLC0415

        plot_load(found, pictures[0])
        note(f"picture: {pictures[0]}")


def plan_pictures(directory: Path | None, names: Sequence[str], svg: bool) -> list[Path]:
    """Files to write pictures to, refused before work is spent on them."""
    if directory is None:
        return []
    if not directory.parent.is_dir():
        raise UsageError(f"no such directory: {directory.parent}")
    directory.mkdir(exist_ok=True)
    paths = [directory / f"{name}.{'svg' if svg else 'png'}" for name in names]
    for path in paths:
        check_output_path(path)
    return paths


def _cells(found: Coherence) -> list[str]:
    return [
        f"{found.decisions:,}",
        percent(found.jaccard),
        percent(found.chance_jaccard),
        percent(found.above_chance),
        percent(found.same_set),
        percent(found.top1),
        percent(found.weight_overlap),
        "-" if found.kl_nats is None else f"{found.kl_nats:.2g}",
    ]


_COLUMNS = ("decisions", "Jaccard", "chance", "above", "same", "first", "weight", "KL")


def diff_table(found: RouteDiff) -> Table:
    """Agreement by layer, and over all."""
    table = plain_table(
        f"Routing of {found.other.model.name} ({', '.join(found.other.model.expert_types)}) against "
        f"{', '.join(found.reference.model.expert_types)}, {format_number_of(found.tokens, 'token')} "
        f"(shares in %, KL in nats; Jaccard of two random sets: {percent(found.uniform_chance_jaccard)})",
        "Layer",
        *_COLUMNS,
    )
    for row in found.by_layer:
        table.add_row(str(row.layer) + (" (hash)" if row.layer in found.hash_layers else ""), *_cells(row))
    table.add_row("all" if not found.hash_layers else "all but hash", *_cells(found.overall))
    return table


def context_table(found: RouteDiff) -> Table:
    """Agreement by position."""
    table = plain_table("By position in the prompt", "Tokens", *_COLUMNS)
    for row in found.by_context:
        table.add_row(f"{row.start:,}-{row.stop - 1:,}", *_cells(row))
    return table


def load_table(found: RouteStats) -> Table:
    """Load by layer."""
    model = found.model
    table = plain_table(
        f"Load of {model.experts} experts, {model.experts_used} used: "
        f"{format_number_of(found.tokens, 'token')}, {format_number_of(found.prompts, 'prompt')}",
        "Layer",
        "entropy",
        "of max",
        "half on",
        "unused",
        *(f"in {window}" for window in found.windows),
    )
    for row in found.layers:
        table.add_row(
            str(row.layer) + (" (hash)" if row.layer in found.hash_layers else ""),
            f"{row.entropy_bits:.2f} bit",
            share(row.entropy_share, 1),
            f"{row.hot_experts}",
            f"{row.unused_experts}",
            *("-" if unique is None else f"{unique:.1f}" for unique in row.unique_experts),
        )
    table.caption = "half on: experts that take half of the load; in N: different experts in N tokens, mean"
    return table


def reuse_table(found: RouteStats) -> Table:
    """Hits of a cache of experts."""
    reuse = found.reuse
    table = plain_table(
        f"An LRU cache of experts, token by token ({reuse.blocks_touched:,} of {reuse.blocks:,} experts touched)",
        "Experts in the cache",
        "of all",
        "hits",
    )
    for blocks, hits in zip(reuse.cache_blocks, reuse.hit_share, strict=True):
        table.add_row(f"{blocks:,}", share(blocks / reuse.blocks, 0), share(hits))
    return table


def entropy_table(found: RouteStats) -> Table:
    """Entropy by position."""
    table = plain_table(
        "Entropy by position in the prompt", "Tokens", "counted", "load in 256 tokens", "router, one token"
    )
    for row in found.by_context:
        bits = ["-" if value is None else f"{value:.2f} bit" for value in (row.load_bits, row.router_bits)]
        table.add_row(f"{row.start:,}-{row.stop - 1:,}", f"{row.tokens:,}", *bits)
    return table


def pair_table(found: RouteStats) -> Table:
    """Experts that go together."""
    table = plain_table("Experts chosen together most above chance", "Layer", "experts", "tokens", "times chance")
    for pair in found.pairs[:10]:
        table.add_row(str(pair.layer), f"{pair.experts[0]}, {pair.experts[1]}", f"{pair.tokens:,}", f"{pair.lift:.2f}")
    return table
