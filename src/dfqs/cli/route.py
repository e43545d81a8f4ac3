"""`dfqs route`: expert routing captured, checked, compared and counted."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dfqs.cli.completing import complete_model
from dfqs.cli.documents.routing import CaptureDocument
from dfqs.cli.drawing import progress_bar
from dfqs.cli.guard import check_output
from dfqs.cli.loading import Checking, Loading, note_streaming
from dfqs.cli.options import Check, CheckManifest, DryRun, Force, Json, Overwrite, Plots, Ram, Svg, Threads, model_file
from dfqs.cli.output import emit, note, print_parts, print_plain, warn
from dfqs.cli.route_compare import diff, plan_pictures, stats
from dfqs.cli.route_text import load_table, margin_table, matrix_table, pressure_table, verdict
from dfqs.records import write_json
from dfqs.routing.capture import MAX_CONTEXT_TOKENS, REFERENCE, CaptureSummary, capture_trace
from dfqs.routing.contexts import (
    check_contexts,
    collected_bytes,
    matrix_contexts,
    pressure_contexts,
    trace_context,
)
from dfqs.routing.determinism import MATRIX_TOKENS, check_routing
from dfqs.routing.forecast import FORECAST_TOKENS, forecast_routing
from dfqs.routing.identity import read_identity
from dfqs.routing.pressure import measure_pressure
from dfqs.routing.prompts import packaged_prompt, read_prompts
from dfqs.runtime import Worker
from dfqs.runtime.checks import check_model
from dfqs.units import format_bytes, format_number_of, parse_tokens

app = typer.Typer(no_args_is_help=True, add_completion=False)

ModelArgument = Annotated[
    Path,
    typer.Argument(
        help="A Mixture-of-Experts .gguf file, or one of the Hub that is kept here.",
        show_default=False,
        parser=model_file,
        autocompletion=complete_model,
    ),
]


class Profile(StrEnum):
    """Settings of the server that the standard load goes to."""

    STANDARD = "standard"
    DETERMINISTIC = "deterministic"


class Switch(StrEnum):
    """Flash attention."""

    OFF = "off"
    ON = "on"
    AUTO = "auto"


@app.command()
def trace(
    model: ModelArgument,
    out_path: Annotated[Path, typer.Option("-o", "--out", help="Trace file to write.", show_default=False)],
    prompts: Annotated[
        list[Path] | None,
        typer.Option(help="Text file, or .jsonl with a text a line; may be given again. Default: two packaged texts."),
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Store the router's scores too (4 bytes an expert, layer and token).")
    ] = False,
    ctx: Annotated[int, typer.Option(min=1, help="Longest prompt, in tokens; longer ones are cut.")] = (
        MAX_CONTEXT_TOKENS
    ),
    ubatch: Annotated[int, typer.Option(min=1, help="Tokens computed at a time.")] = 512,
    flash_attention: Annotated[Switch, typer.Option(help="Flash attention.")] = Switch.OFF,
    type_k: Annotated[str, typer.Option(help="Type of the K cache.")] = "f16",
    type_v: Annotated[str, typer.Option(help="Type of the V cache.")] = "f16",
    threads: Threads = None,
    ram: Ram = None,
    check_: Check = None,
    manifest: CheckManifest = None,
    force: Force = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Record which experts a model chooses, for every token and layer. The file travels; the model need not.

    Example: dfqs route trace model.gguf --prompts book.txt -o model.route
    """
    chosen = read_prompts(prompts) if prompts else [packaged_prompt("first"), packaged_prompt("second")]
    source = ", ".join(path.name for path in prompts) if prompts else "packaged texts"
    check_output(out_path, (model, *(prompts or ())), overwrite=overwrite)
    if dry_run:
        _plan_trace(model, out_path, len(chosen), weights, json_)
        return
    settings: dict[str, Any] = {"n_batch": max(512, ubatch), "n_ubatch": ubatch, "type_k": type_k, "type_v": type_v}
    settings["flash_attention"] = flash_attention.value
    opened = check_model(model)
    read_identity(opened)
    context = trace_context(opened.spec, settings, ctx)
    beside = collected_bytes(opened.spec, settings["n_batch"], scores=weights)
    loading = Loading(ram, force, Checking(check_, manifest))
    plan = loading.plan(opened, [context], "a smaller --ctx or --ubatch", beside_bytes=beside)
    with Worker(threads=threads) as worker, progress_bar("routing", "tokens") as progress:
        summary = capture_trace(
            worker,
            opened,
            chosen,
            out_path,
            settings=settings,
            scores=weights,
            context_tokens=ctx,
            source=source,
            overwrite=overwrite,
            order=plan.order,
            progress=progress,
        )
    _report_trace(summary, out_path, weights, json_)


def _plan_trace(model: Path, out_path: Path, prompts: int, weights: bool, json_: bool) -> None:
    identity, hash_layers = read_identity(model)
    planned = CaptureDocument(
        dry_run=True,
        model=identity,
        hash_layers=hash_layers,
        prompts=prompts,
        out=out_path,
        scores=weights,
        trace_sha256=None,
        tokens=None,
        header=None,
    )
    text = (
        f"Would write {out_path}: {format_number_of(prompts, 'prompt')} through {identity.architecture}, "
        f"{identity.experts_used} of {format_number_of(identity.experts, 'expert')} in up to "
        f"{format_number_of(identity.layers, 'layer')}" + (", with scores" if weights else "")
    )
    emit(planned, json_, lambda: print_plain(text))


def _report_trace(summary: CaptureSummary, out_path: Path, weights: bool, json_: bool) -> None:
    for text in summary.notices:
        warn(text)
    header = summary.header
    written = CaptureDocument(
        dry_run=False,
        model=header.model,
        hash_layers=header.hash_layers,
        prompts=summary.prompts,
        out=out_path,
        scores=weights,
        trace_sha256=summary.trace_sha256,
        tokens=summary.tokens,
        header=header,
        streaming=summary.streaming,
    )
    text = (
        f"{out_path}: {format_number_of(summary.tokens, 'token')} of {format_number_of(summary.prompts, 'prompt')}, "
        f"{header.model.experts_used} of {format_number_of(header.model.experts, 'expert')} in "
        f"{format_number_of(len(header.layers), 'layer')}"
        + (f" ({len(header.hash_layers)} hash-routed)" if header.hash_layers else "")
        + f", {format_bytes(out_path.stat().st_size)}"
    )

    def show() -> None:
        print_plain(text)
        note_streaming(summary.streaming)

    emit(written, json_, show)


@app.command()
def check(
    model: ModelArgument,
    profile: Annotated[Profile, typer.Option(help="Server settings that the load goes to.")] = Profile.STANDARD,
    matrix: Annotated[bool, typer.Option(help="Try the matrix of conditions too.")] = True,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of the text that the matrix runs on.")] = MATRIX_TOKENS,
    threads: Threads = None,
    ram: Ram = None,
    check_: Check = None,
    manifest: CheckManifest = None,
    force: Force = False,
    out_path: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the findings as JSON.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Try whether routing stays the same: under a matrix of conditions, and under the standard load (docs/routing.md).
    Exits with 1 when the specification's clause does not hold.

    Example: dfqs route check model.gguf --profile deterministic
    """
    if out_path is not None:
        check_output(out_path, (model,), overwrite=overwrite)
    opened = check_model(model)
    read_identity(opened)
    contexts = check_contexts(opened.spec, profile.value, tokens if matrix else 0)
    beside = collected_bytes(opened.spec, 2 * tokens if matrix else 0, scores=False)
    loading = Loading(ram, force, Checking(check_, manifest))
    plan = loading.plan(opened, contexts, "--no-matrix", beside_bytes=beside)
    with progress_bar("checking", "items") as progress:
        found = check_routing(
            opened,
            profile=profile.value,
            threads=threads,
            tokens=tokens,
            matrix=matrix,
            order=plan.order,
            progress=progress,
        )
    if out_path is not None:
        write_json(out_path, found, overwrite=overwrite)
    tables = [matrix_table(found), load_table(found)] if found.matrix else [load_table(found)]
    emit(found, json_, lambda: print_parts(*tables, verdict(found)))
    if not json_:
        note_streaming(found.streaming)
    for row in found.matrix:
        if row.refused is not None:
            note(f"{row.condition}: {row.refused}")
    for text in found.notices:
        warn(text)
    if found.hash_layers:
        note(f"layers {', '.join(map(str, found.hash_layers))} are hash-routed: their experts cannot differ")
    if not found.holds:
        raise typer.Exit(1)


@app.command()
def margins(
    model: ModelArgument,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of each of the two texts.")] = FORECAST_TOKENS,
    threads: Threads = None,
    ram: Ram = None,
    check_: Check = None,
    manifest: CheckManifest = None,
    force: Force = False,
    plots: Plots = None,
    svg: Svg = False,
    json_: Json = False,
) -> None:
    """Measure by how little experts are chosen, and forecast from that how often routing flips under a perturbation.

    Example: dfqs route margins model.gguf --plots pictures
    """
    pictures = plan_pictures(plots, ("margins",), svg)
    opened = check_model(model)
    read_identity(opened)
    contexts = matrix_contexts(tokens)
    beside = 2 * collected_bytes(opened.spec, 2 * tokens, scores=True)
    loading = Loading(ram, force, Checking(check_, manifest))
    plan = loading.plan(opened, contexts, "a smaller --tokens", beside_bytes=beside)
    with progress_bar("margins", "items") as progress:
        report = forecast_routing(opened, threads=threads, tokens=tokens, order=plan.order, progress=progress)
    emit(report, json_, lambda: print_parts(margin_table(report)))
    for name, reason in report.refused.items():
        note(f"{name}: {reason}")
    for text in report.notices:
        warn(text)
    if pictures:
        from dfqs.routing.plots import plot_margins  # noqa: PLC0415

        plot_margins(report, pictures[0])
        note(f"picture: {pictures[0]}")


@app.command()
def pressure(
    model: ModelArgument,
    lengths: Annotated[str, typer.Option(help="Tokens of the document, ascending.")] = "64,256,1024,2048",
    flash_attention: Annotated[Switch, typer.Option(help="Of the other run.")] = Switch.ON,
    type_k: Annotated[str, typer.Option(help="Of the other run.")] = "q8_0",
    type_v: Annotated[str, typer.Option(help="Of the other run.")] = "q8_0",
    threads: Threads = None,
    ram: Ram = None,
    check_: Check = None,
    manifest: CheckManifest = None,
    force: Force = False,
    plots: Plots = None,
    svg: Svg = False,
    json_: Json = False,
) -> None:
    """Route the same text behind a document that grows, under reference and other settings: does routing vary more
    when the context is long?

    Example: dfqs route pressure model.gguf --lengths 64,512,4096 --plots pictures
    """
    pictures = plan_pictures(plots, ("pressure",), svg)
    wanted = [parse_tokens(length) for length in lengths.split(",")]
    perturbed = {"flash_attention": flash_attention.value, "type_k": type_k, "type_v": type_v}
    opened = check_model(model)
    read_identity(opened)
    contexts = pressure_contexts(wanted, perturbed)
    beside = collected_bytes(opened.spec, 2 * REFERENCE["n_batch"], scores=True)
    loading = Loading(ram, force, Checking(check_, manifest))
    plan = loading.plan(opened, contexts, "shorter --lengths", beside_bytes=beside)
    with progress_bar("routing", "tokens") as progress:
        report = measure_pressure(
            opened, wanted, perturbed=perturbed, threads=threads, order=plan.order, progress=progress
        )
    emit(report, json_, lambda: print_parts(pressure_table(report)))
    if pictures:
        from dfqs.routing.plots import plot_pressure  # noqa: PLC0415

        plot_pressure(report, pictures[0])
        note(f"picture: {pictures[0]}")


app.command()(diff)
app.command()(stats)
