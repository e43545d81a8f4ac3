"""`dfqs imatrix`: which weights matter, per expert."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dfqs.cli.documents.imatrix import ImatrixDocument
from dfqs.cli.drawing import progress_bar
from dfqs.cli.guard import check_output
from dfqs.cli.loading import Checking, Loading, note_streaming
from dfqs.cli.options import (
    ChatTemplate,
    Check,
    CheckManifest,
    DryRun,
    Force,
    Json,
    ModelIfAny,
    Overwrite,
    Ram,
    Restart,
    Threads,
)
from dfqs.cli.output import emit, note, print_plain, warn
from dfqs.errors import AlreadyDone, UsageError
from dfqs.model.files import ModelFiles
from dfqs.quantize.calibration import Corpus, read_corpus, shipped_corpus
from dfqs.quantize.checkpoint import checkpoint_path
from dfqs.quantize.coverage import Coverage, measure_coverage
from dfqs.quantize.imatrix import ImatrixOutcome, imatrix_context, measure_importance
from dfqs.quantize.imatrix_file import merge_imatrices, read_imatrix, write_imatrix
from dfqs.quantize.imatrix_memory import sums_bytes
from dfqs.quantize.source import read_source
from dfqs.receipts import find_receipt, receipt_of
from dfqs.records import sha256_of
from dfqs.runtime.template_file import read_template
from dfqs.storage.hashing import hash_file
from dfqs.streaming.budget import LoadPlan
from dfqs.units import format_duration, format_number_of

SHOWN_COLD = 10
CorpusOption = Annotated[
    list[Path] | None, typer.Option(help="Your own text (UTF-8), repeatable; replaces the mix that dfqs ships.")
]


def command(
    model: ModelIfAny = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file to write.")] = None,
    corpus: CorpusOption = None,
    add: Annotated[
        list[Path] | None,
        typer.Option(help="Importance matrix to add up with, repeatable; without a MODEL, only these are merged."),
    ] = None,
    min_samples: Annotated[int, typer.Option(min=1, help="Inputs that every (layer, expert) should see.")] = 100,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to see at least, before stopping early.")] = 8192,
    max_tokens: Annotated[int | None, typer.Option(min=16, help="Tokens to see at most.", show_default=False)] = None,
    chunk: Annotated[int, typer.Option(min=16, help="Tokens computed together.")] = 512,
    chat_template: ChatTemplate = None,
    threads: Threads = None,
    ram: Ram = None,
    check: Check = None,
    manifest: CheckManifest = None,
    force: Force = False,
    overwrite: Overwrite = False,
    restart: Restart = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Measure which weights matter, per expert, for `dfqs quantize --imatrix` (llama-quantize reads the file too).

    Goes on until every expert of every layer has seen enough, or the text ends; says which have not. A killed
    measurement goes on from its last checkpoint.

    Example: dfqs imatrix model-q8_0.gguf -o model.imatrix.gguf
    """
    added = tuple(add or ())
    loading = Loading(ram, force, Checking(check, manifest), read_template(chat_template))
    if output is None:
        raise UsageError("name the file to write with -o")
    inputs = (model, *added, *(corpus or ()))
    if model is None:
        _merge(added, output, min_samples, overwrite, dry_run, json_)
        return
    # What is there already is seen to where the receipts are: it may be our own, of a run that was cut off.
    check_output(output, inputs, overwrite=overwrite or not dry_run)
    source = read_source(model)
    if added:
        # Before the model is loaded: a file that is no importance matrix, or two of different models.
        merge_imatrices([read_imatrix(path) for path in added])
    text = read_corpus(corpus) if corpus else shipped_corpus()
    if dry_run:
        planned = ImatrixDocument.of(None, corpus_sha256=text.sha256)
        emit(planned, json_, lambda: print_plain(f"would measure {model} on '{text.name}' and write {output}"))
        return
    limits: dict[str, Any] = {
        "min_samples": min_samples,
        "min_tokens": tokens,
        "max_tokens": max_tokens,
        "chunk_tokens": chunk,
    }
    beside = sums_bytes(source, chunk) + 2 * sum(path.stat().st_size for path in added)
    limits["order"] = _plan(source, chunk, loading, beside).order
    measure = partial(measure_importance, model, output, corpus=text, add=added, threads=threads, **limits)
    _measure(partial(measure, overwrite=overwrite, restart=restart), output, text, min_samples, json_)


def _plan(source: ModelFiles, chunk: int, loading: Loading, beside: int) -> LoadPlan:
    return loading.plan(source, [imatrix_context(chunk)], "a smaller --chunk", beside_bytes=beside)


def _measure(measure: Callable[..., ImatrixOutcome], output: Path, text: Corpus, min_samples: int, json_: bool) -> None:
    try:
        with progress_bar("measuring importance", "tokens") as progress:
            outcome = measure(progress=progress)
    except AlreadyDone as error:
        note(str(error))
        coverage = measure_coverage(read_imatrix(output), min_samples)
        emit(ImatrixDocument.of(output, coverage, None, text.sha256, done_already=True), json_, lambda: None)
        return
    except KeyboardInterrupt:
        if checkpoint_path(output.absolute()).exists():
            note("the last checkpoint (one a minute) is kept; the same command goes on from there")
        raise
    found = ImatrixDocument.of(output, outcome.coverage, outcome, text.sha256)
    emit(found, json_, lambda: _show(outcome, output, text.name))


def _show(outcome: ImatrixOutcome, output: Path, text: str) -> None:
    print_plain(
        f"wrote {output}: {format_number_of(outcome.weights, 'weight')}, "
        f"{format_number_of(outcome.tokens, 'token')} of '{text}'"
    )
    _report_coverage(outcome.coverage)
    note_streaming(outcome.streaming)
    note(f"stopped because {outcome.stopped_because}; {format_duration(outcome.wall_s)}")


def _merge(
    added: tuple[Path, ...], output: Path, min_samples: int, overwrite: bool, dry_run: bool, json_: bool
) -> None:
    if not added:
        raise UsageError("name a MODEL to measure, or importance matrices to merge with --add")
    fingerprint = sha256_of(["imatrix", *map(hash_file, added)])
    done = not overwrite and find_receipt(fingerprint, [output]) is not None
    check_output(output, added, overwrite=overwrite or done)
    total = merge_imatrices([read_imatrix(path) for path in added])
    coverage = measure_coverage(total, min_samples)
    if not dry_run and not done:
        with receipt_of(fingerprint, output) as on_whole:
            write_imatrix(output, total, overwrite=overwrite, on_whole=on_whole)

    def show() -> None:
        print_plain(
            f"{'done already:' if done else 'would write' if dry_run else 'wrote'} {output}: "
            f"{format_number_of(len(total.entries), 'weight')} of {format_number_of(len(added), 'file')}"
        )
        _report_coverage(coverage)

    emit(ImatrixDocument.of(None if dry_run else output, coverage, done_already=done), json_, show)


def _report_coverage(coverage: Coverage) -> None:
    if coverage.uncounted:
        warn(
            f"{coverage.uncounted} expert matrices have one count for all experts, as older files do: what each of "
            "them saw is not known"
        )
        return
    if not coverage.experts:
        print_plain("a dense model: every weight has seen every token")
        return
    enough = coverage.experts - len(coverage.cold)
    print_plain(
        f"expert coverage: {enough} of {coverage.experts} (layer, expert) pairs saw {coverage.min_samples} inputs or "
        f"more; median {coverage.median_samples:,.0f}"
    )
    if coverage.is_complete:
        return
    warn(
        f"{format_number_of(len(coverage.cold), 'expert')} saw less"
        + (f", {coverage.unseen} of them nothing: all their columns will weigh the same" if coverage.unseen else "")
        + "; more text (--corpus, --add) helps"
    )
    for cold in coverage.cold[:SHOWN_COLD]:
        print_plain(f"  - layer {cold.layer}, expert {cold.expert}: {cold.samples} inputs")
    if len(coverage.cold) > SHOWN_COLD:
        print_plain(f"  - and {len(coverage.cold) - SHOWN_COLD} more (--json lists all)")
