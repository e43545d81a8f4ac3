"""A plan as tables and sentences for people."""

from collections.abc import Iterable, Iterator
from typing import Any

from dfqs.cli.drawing import progress_bar
from dfqs.cli.inspecting import loader_table
from dfqs.cli.output import column_table, key_value_table, out, print_plain, warn
from dfqs.cli.source import open_source
from dfqs.cli.tables import Table
from dfqs.control_groups import hidden_group
from dfqs.errors import printable
from dfqs.planning.document import ContextPlan, GpuSplit, NeededSetting, PlanDocument, StreamedPlan, Verdict
from dfqs.planning.plan import PlanRequest, plan_model
from dfqs.runtime.worker import Worker
from dfqs.units import format_bytes, format_count

_KINDS = (("weights", "Weights"), ("kv", "KV"), ("state", "State"), ("compute", "Compute"), ("output", "Output"))
_NAMES = {"swa_full": "swa_full", "flash_attention": "flash attention", "kv": "KV", "context": "a context of"}


def make_plan(source: str, asked: dict[str, Any], worker: Worker) -> PlanDocument:
    """The plan of what was asked for (fields of `PlanRequest`), with a bar while the runtime answers."""
    model = open_source(source)
    if asked.get("memory_bytes") is None and (group := hidden_group()) is not None:
        warn(
            f"this process is in the control group {printable(group)}, of which nothing can be read: if it limits "
            "memory, say so (--ram)"
        )
    with progress_bar("asking the runtime") as progress:
        return plan_model(model, PlanRequest(**asked), worker=worker, progress=progress)


def show_plan(plan: PlanDocument) -> None:
    """The same for people."""
    out.print_table(key_value_table(overview_rows(plan)))
    if plan.unknown is None:
        what = "free on this machine now, with room for others" if plan.memory_of == "this machine" else "as given"
        print_plain("")
        print_plain(f"Memory by {plan.runtime}, against {format_bytes(plan.memory_bytes)} ({what}):")
        out.print_table(parts_table(plan))
    else:
        print_plain("")
        print_plain(f"The runtime does not load it, so what a context takes is not known: {plan.unknown}")
        print_plain(f"Its weights are {format_bytes(plan.tensor_bytes)}.")
    print_plain("")
    for line in context_lines(plan):
        print_plain(line)
    if plan.split is not None:
        print_plain("")
        print_plain(split_line(plan.split))
    print_plain("")
    print_plain("Which runtime loads this file?")
    out.print_table(loader_table(plan.loaders))


def overview_rows(plan: PlanDocument) -> list[tuple[str, str]]:
    """What is planned for, where it would lie, and the specification's envelope."""
    active = f", {format_count(plan.parameters_active)} active" if plan.parameters_active != plan.parameters else ""
    rows = [
        ("Model", printable(plan.name or plan.source, 100)),
        ("Architecture", f"{printable(plan.architecture)}, {format_count(plan.parameters)} parameters{active}"),
        ("Disk", _disk(plan)),
    ]
    for component in ("RAM", "GPU VRAM", "storage"):
        found = [row for row in plan.envelope if row.component == component]
        needed = found[0].needed_bytes
        held = ", ".join(f"{format_bytes(row.given_bytes)} {row.level} {_answer(row.holds)}" for row in found)
        amount = "not known" if needed is None else f"{format_bytes(needed)} for {found[0].needed_for}"
        rows.append((f"Envelope, {component}", f"{held} ({amount})"))
    return rows


def _answer(holds: bool | None) -> str:
    return {True: "holds", False: "does NOT hold", None: "is not known to hold"}[holds]


def _disk(plan: PlanDocument) -> str:
    disk = plan.disk
    free = f"{format_bytes(disk.free_bytes)} free in {printable(disk.directory, 200)}"
    if not disk.fetch_bytes:
        return f"{format_bytes(disk.file_bytes)}, here already; {free}"
    enough = "" if disk.free_bytes >= disk.fetch_bytes else ", which is NOT enough"
    copies = (
        ""
        if disk.plain_merge_bytes == disk.file_bytes
        else (f"; fetched as shards and merged plainly {format_bytes(disk.plain_merge_bytes)}")
    )
    return f"{format_bytes(disk.fetch_bytes)} to fetch (dfqs pull){copies}; {free}{enough}"


def parts_table(plan: PlanDocument) -> Table:
    """A row a context, its memory by what it is for."""
    kinds = [(kind, title) for kind, title in _KINDS if any(_bytes(row, kind) for row in plan.contexts)]
    columns = ("Context", "Profile", "KV type", *(title for _, title in kinds), "Program", "In all", "")
    table = column_table(*columns, words=("Profile", "KV type", ""))
    for row in plan.contexts:
        table.add_row(
            f"{row.context_tokens:,}",
            row.profile,
            cache_name(row),
            *(format_bytes(_bytes(row, kind)) for kind, _ in kinds),
            format_bytes(_bytes(row, "program")),
            "-" if row.total_bytes is None else format_bytes(row.total_bytes),
            row.verdict.value,
        )
    return table


def cache_name(row: ContextPlan) -> str:
    """`f16`, or `q8_0/f16` where K and V differ."""
    settings = row.settings
    return settings.type_k if settings.type_k == settings.type_v else f"{settings.type_k}/{settings.type_v}"


def _bytes(row: ContextPlan, kind: str) -> int:
    return sum(part.bytes for part in row.parts if part.kind == kind)


def context_lines(plan: PlanDocument) -> Iterator[str]:
    """Sentences: what grows, and the verdict of each context with what it stands on."""
    known = [row for row in plan.contexts if row.profile == "default" and row.total_bytes is not None]
    if known:
        longest = max(known, key=lambda row: row.context_tokens)
        caches = ", ".join(
            f"{part.name} {format_bytes(part.bytes)}" for part in longest.parts if part.kind in ("kv", "state")
        )
        if caches:
            yield f"KV and states at {longest.context_tokens:,} tokens: {printable(caches, 400)}"
    for row in plan.contexts:
        # The table says it all where nothing is to be added.
        if row.verdict is not Verdict.FITS or row.notices:
            yield from _verdict_lines(row)


def _verdict_lines(row: ContextPlan) -> Iterator[str]:
    where = f"{row.asked_tokens:,} tokens, {row.profile}"
    head = f"{where}: {row.verdict.value}"
    if row.needed:
        head += (" " if row.verdict is Verdict.FITS_WITH else " with ") + ", ".join(_needed(row.needed))
    elif row.verdict is Verdict.DOES_NOT_FIT and row.binding is not None:
        head += f": {row.binding} {'do' if row.binding != 'context' else 'does'} not; it takes {row.advice}"
    elif row.advice:
        head += f": {row.advice}"
    yield head
    if row.streamed is not None:
        yield f"  {streamed_line(row.streamed)}"
    if row.whole_context_tokens is not None and row.streamed is not None:
        yield f"  all weights in memory leave room for {row.whole_context_tokens:,} tokens"
    for notice in row.notices:
        yield f"  {printable(notice, 300)}"


def _needed(needed: Iterable[NeededSetting]) -> Iterator[str]:
    for setting in needed:
        name = _NAMES.get(setting.name, setting.name)
        value = f"{int(setting.value):,} tokens" if setting.name == "context" else setting.value
        than = f"{int(setting.otherwise):,}" if setting.name == "context" else setting.otherwise
        instead = "refused" if setting.otherwise_bytes is None else format_bytes(setting.otherwise_bytes)
        yield f"{name} {value} ({than}: {instead})"


def streamed_line(streamed: StreamedPlan) -> str:
    """What stays, what is cached, what is read, and the rates that a disk allows."""
    rates = ", ".join(
        f"{rate.tokens_per_s:.1f} tokens/s at {format_bytes(rate.disk_bytes_per_s)}/s"
        for rate in streamed.rates
        if rate.tokens_per_s is not None
    )
    return (
        f"{format_bytes(streamed.resident_bytes)} of weights stay, {format_bytes(streamed.cache_bytes)} cache "
        f"{streamed.hit_share:.0%} of the experts; {format_bytes(streamed.read_bytes_per_token)} of "
        f"{format_bytes(streamed.touched_bytes_per_token)} read a token"
        + (f": at most {rates}" if rates else "")
        + " (computed: disk alone, experts equally likely)"
    )


def split_line(split: GpuSplit) -> str:
    """The split between a GPU and the CPU."""
    vram = format_bytes(split.vram_bytes)
    if not split.fits:
        return f"With {vram} of VRAM: not one layer fits at {split.context_tokens:,} tokens ({split.basis})"
    room = "" if split.fits_ram else ", which is more than may be taken"
    return (
        f"With {vram} of VRAM at {split.context_tokens:,} tokens: {' '.join(split.arguments)} puts "
        f"{format_bytes(split.gpu_weights_bytes)} of weights and {format_bytes(split.gpu_context_bytes)} of context "
        f"there, {format_bytes(split.ram_bytes)} in RAM{room} ({split.basis})"
    )
