"""`dfqs perplexity`: per-token loss, and divergence from a reference."""

from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.documents.perplexity import PerplexityDocument
from dfqs.cli.drawing import progress_bar
from dfqs.cli.guard import check_output
from dfqs.cli.loading import Checking, Loading, note_streaming
from dfqs.cli.options import Check, CheckManifest, DryRun, Force, Json, Model, NoiseFloorTokens, Overwrite, Ram, Threads
from dfqs.cli.output import column_table, emit, note, out, print_plain
from dfqs.cli.tables import Table
from dfqs.model.files import ModelFiles
from dfqs.quantize import calibration
from dfqs.quantize.bootstrap import Estimate
from dfqs.quantize.logits_file import Losses, read_losses, write_losses
from dfqs.quantize.noise_floor import FLOOR_TOKENS, NoiseFloor, Resolution
from dfqs.quantize.perplexity import (
    STRIDE_TOKENS,
    WINDOW_TOKENS,
    Measured,
    PerplexityJob,
    Summary,
    logits_bytes,
    measure_perplexity,
    perplexity_context,
    summarise,
    whole_order,
)
from dfqs.quantize.source import read_source
from dfqs.quantize.windows import plan_windows
from dfqs.receipts import find_receipt, receipt_of
from dfqs.runtime.loading import LoadOrder
from dfqs.storage.documents import read_text


def command(
    model: Model,
    text: Annotated[
        Path | None, typer.Option(help="Text to predict (UTF-8); a held-out mix that dfqs ships by default.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Stored logits of another model (`--save`) to compare with, token by token.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Store this model's logits for later comparisons.")] = None,
    window: Annotated[int, typer.Option(min=2, help="Tokens computed together.")] = WINDOW_TOKENS,
    stride: Annotated[int, typer.Option(min=1, help="Tokens that each window scores: its last ones.")] = STRIDE_TOKENS,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Tokens to read at most.", show_default=False)] = None,
    noise_floor: NoiseFloorTokens = None,
    threads: Threads = None,
    ram: Ram = None,
    check: Check = None,
    manifest: CheckManifest = None,
    force: Force = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Measure how well a model predicts a text: loss, perplexity and, against a reference's stored logits, the paired
    difference in loss and the KL divergence. Intervals are 95 %, from a bootstrap over blocks of tokens.

    Example: dfqs perplexity model-f16.gguf --save f16.logits.gguf, then
    dfqs perplexity model-iq1.gguf --reference f16.logits.gguf
    """
    list(plan_windows(window + 1, window, stride))
    source, words, stored = read_source(model), text_of(text), read_losses(reference) if reference else None
    loading = Loading(ram, force, Checking(check, manifest))
    order = whole_order(stored) if dry_run else _choose_order(source, window, stored, loading)
    job = PerplexityJob(
        model.absolute(),
        words,
        window,
        stride,
        max_tokens,
        reference.absolute() if reference is not None else None,
        threads,
        store=save is not None,
        order=order,
        floor_tokens=_floor_tokens(noise_floor, reference),
    )
    done = save is not None and not overwrite and find_receipt(job.fingerprint, [save]) is not None
    if save is not None:
        check_output(save, (model, text, reference), overwrite=overwrite or done)
    if dry_run:
        _say_plan(PerplexityDocument.planned(model, len(words), window, stride), json_)
        return
    measured = _measure(job, save if done and reference is None and not job.floor_tokens else None)
    if save is not None and not done:
        _store(measured, save, job.fingerprint, overwrite)
    summary = summarise(measured, stored)

    def show() -> None:
        _show(summary, stored.model_name if stored else "")
        _note(measured, save, done)

    emit(PerplexityDocument.of(model, len(words), measured, summary), json_, show)


def _floor_tokens(asked: int | None, reference: Path | None) -> int:
    """On how many tokens the model is held against itself: where it is held against another, unless told otherwise."""
    if asked is not None:
        return asked
    return FLOOR_TOKENS if reference is not None else 0


def _choose_order(source: ModelFiles, window: int, stored: Losses | None, loading: Loading) -> LoadOrder:
    """How the model is loaded, said in a line where there is something to say."""
    beside, whole = logits_bytes(window, source.spec.vocabulary), whole_order(stored)
    contexts = [perplexity_context(window)]
    return loading.plan(source, contexts, "a smaller --window", beside_bytes=beside, whole=whole).order


def _say_plan(document: PerplexityDocument, json_: bool) -> None:
    windows = f"windows of {document.conditions.window_tokens}, stride {document.conditions.stride_tokens}"
    what = f"would measure {document.model} on {document.characters:,} characters, {windows}"
    emit(document, json_, lambda: print_plain(what))


def _measure(job: PerplexityJob, kept: Path | None) -> Measured:
    """Its losses; those that stand in `kept`, where they do."""
    if kept is not None:
        return Measured(read_losses(kept), None)
    with progress_bar("predicting", "tokens") as progress:
        return measure_perplexity(
            job.model,
            job.text,
            window_tokens=job.window_tokens,
            stride_tokens=job.stride_tokens,
            max_tokens=job.max_tokens,
            reference=job.reference,
            store=job.store,
            threads=job.threads,
            order=job.order,
            floor_tokens=job.floor_tokens,
            progress=progress,
        )


def _store(measured: Measured, path: Path, fingerprint: str, overwrite: bool) -> None:
    with receipt_of(fingerprint, path) as on_whole:
        write_losses(path, measured.losses, overwrite=overwrite, on_whole=on_whole)


def _note(measured: Measured, save: Path | None, done: bool) -> None:
    """How it was measured, and where it stands."""
    conditions = measured.losses.conditions
    note_streaming(measured.streaming)
    windows = f"windows of {conditions.window_tokens}, stride {conditions.stride_tokens}"
    note(f"{len(measured.losses.nll):,} tokens, {windows}; {conditions.numerics}")
    if measured.floor is not None:
        note(f"against itself: {measured.floor.tokens:,} tokens, beside {measured.floor.reference}")
    if save is not None:
        note(f"done already: {save} is what this command stored" if done else f"wrote {save}")


def _show(summary: Summary, reference: str) -> None:
    print_plain(f"loss            {estimate_text(summary.nll)} nats a token")
    low, high = summary.perplexity_low, summary.perplexity_high
    interval = f" ({low:.4g} to {high:.4g})" if low is not None and high is not None else ""
    print_plain(f"perplexity      {summary.perplexity:.4g}{interval}")
    if summary.nll_difference is not None and summary.kl is not None and summary.same_top is not None:
        said = summary.against_floor
        loss, kl, top = (said.nll_difference, said.kl, said.same_top) if said is not None else (None, None, None)
        print_plain(f"loss difference {estimate_text(summary.nll_difference)} from {reference}{_beside(loss)}")
        print_plain(f"KL divergence   {estimate_text(summary.kl)} nats a token, at least{_beside(kl)}")
        print_plain(f"same top token  {estimate_text(summary.same_top)}{_beside(top)}")
    if summary.floor is not None:
        out.print_table(floor_table(summary.floor))


def _beside(found: Resolution | None) -> str:
    return "; not resolvable: the model differs from itself by as much" if found is Resolution.NOT_RESOLVABLE else ""


def floor_table(floor: NoiseFloor) -> Table:
    """A model against itself, a row for each of the other numerics."""
    columns = ("Against itself", "KL", "Same top", "Perplexity")
    table = column_table(*columns, words=columns[:1])
    for other in floor.others:
        if other.kl is None or other.same_top is None or other.perplexity_ratio is None:
            table.add_row(other.numerics, f"not measured: {other.reason}", "", "")
            continue
        ratio = estimate_text(other.perplexity_ratio)
        table.add_row(other.numerics, estimate_text(other.kl), estimate_text(other.same_top), f"x {ratio}")
    return table


def text_of(path: Path | None) -> str:
    """The text to predict; None: the held-out text that dfqs brings.

    Raises:
        As `read_text`.
    """
    return calibration.heldout_text() if path is None else read_text(path, calibration.MAX_TEXT_BYTES, "text")


def estimate_text(estimate: Estimate) -> str:
    """`2.837 (2.701 to 2.980)`, or the mean alone where there is no interval."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:.4f}"
    return f"{estimate.mean:.4f} ({estimate.low:.4f} to {estimate.high:.4f})"
