"""`dfqs imatrix`: which weights matter, per expert."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dfqs.cli.drawing import progress_bar
from dfqs.cli.guard import check_output
from dfqs.cli.output import note, print_json, print_plain, warn
from dfqs.errors import UsageError
from dfqs.quantize.calibration import read_corpus, shipped_corpus
from dfqs.quantize.coverage import Coverage, measure_coverage
from dfqs.quantize.imatrix import ImatrixOutcome, checkpoint_path, measure_importance
from dfqs.quantize.imatrix_file import merge_imatrices, read_imatrix, write_imatrix
from dfqs.quantize.source import read_source
from dfqs.units import format_duration, format_number_of

SHOWN_COLD = 10


def command(
    model: Annotated[
        Path | None, typer.Argument(help="A .gguf file (or first shard) to measure.", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file to write.")] = None,
    corpus: Annotated[
        list[Path] | None, typer.Option(help="Your own text (UTF-8), repeatable; replaces the mix that dfqs ships.")
    ] = None,
    add: Annotated[
        list[Path] | None,
        typer.Option(help="Importance matrix to add up with, repeatable; without a MODEL, only these are merged."),
    ] = None,
    min_samples: Annotated[int, typer.Option(min=1, help="Inputs that every (layer, expert) should see.")] = 100,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to see at least, before stopping early.")] = 8192,
    max_tokens: Annotated[int | None, typer.Option(min=16, help="Tokens to see at most.", show_default=False)] = None,
    chunk: Annotated[int, typer.Option(min=16, help="Tokens computed together.")] = 512,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; one a physical core by default.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the inputs, and measure nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure which weights matter, per expert, for `dfqs quantize --imatrix` (llama-quantize reads the file too).

    Goes on until every expert of every layer has seen enough, or the text ends; says which have not. A killed
    measurement goes on from its last checkpoint.

    Example: dfqs imatrix model-q8_0.gguf -o model.imatrix.gguf
    """
    added = tuple(add or ())
    if output is None:
        raise UsageError("name the file to write with -o")
    check_output(output, (model, *added, *(corpus or ())), overwrite=overwrite)
    if model is None:
        _merge(added, output, min_samples, overwrite, dry_run, json_)
        return
    read_source(model)
    if added:
        # Before the model is loaded: a file that is no importance matrix, or two of different models.
        merge_imatrices([read_imatrix(path) for path in added])
    text = read_corpus(corpus) if corpus else shipped_corpus()
    if dry_run and json_:
        print_json(_as_json(None, None, None, text.sha256))
        return
    if dry_run:
        print_plain(f"would measure {model} on '{text.name}' and write {output}")
        return
    try:
        with progress_bar("measuring importance", "tokens") as progress:
            outcome = measure_importance(
                model,
                output,
                corpus=text,
                chunk_tokens=chunk,
                min_samples=min_samples,
                min_tokens=tokens,
                max_tokens=max_tokens,
                add=added,
                threads=threads,
                overwrite=overwrite,
                progress=progress,
            )
    except KeyboardInterrupt:
        if checkpoint_path(output.absolute()).exists():
            note("the last checkpoint (one a minute) is kept; the same command goes on from there")
        raise
    if json_:
        print_json(_as_json(output, outcome.coverage, outcome, text.sha256))
        return
    print_plain(
        f"wrote {output}: {format_number_of(outcome.weights, 'weight')}, "
        f"{format_number_of(outcome.tokens, 'token')} of '{text.name}'"
    )
    _report_coverage(outcome.coverage)
    note(f"stopped because {outcome.stopped_because}; {format_duration(outcome.wall_s)}")


def _merge(
    added: tuple[Path, ...], output: Path, min_samples: int, overwrite: bool, dry_run: bool, json_: bool
) -> None:
    if not added:
        raise UsageError("name a MODEL to measure, or importance matrices to merge with --add")
    total = merge_imatrices([read_imatrix(path) for path in added])
    coverage = measure_coverage(total, min_samples)
    if not dry_run:
        write_imatrix(output, total, overwrite=overwrite)
    if json_:
        print_json(_as_json(None if dry_run else output, coverage, None, None))
        return
    print_plain(
        f"{'would write' if dry_run else 'wrote'} {output}: "
        f"{format_number_of(len(total.entries), 'weight')} of {format_number_of(len(added), 'file')}"
    )
    _report_coverage(coverage)


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


def _as_json(
    output: Path | None, coverage: Coverage | None, outcome: ImatrixOutcome | None, corpus_sha256: str | None
) -> dict[str, Any]:
    """The summary for programs; what was not measured is null."""
    cold = [{"layer": c.layer, "expert": c.expert, "samples": c.samples} for c in coverage.cold] if coverage else None
    return {
        "schema": "dfqs.imatrix/1",
        "path": str(output) if output else None,
        "tokens": outcome.tokens if outcome else None,
        "tokens_available": outcome.tokens_available if outcome else None,
        "resumed_tokens": outcome.resumed_tokens if outcome else None,
        "stopped_because": outcome.stopped_because if outcome else None,
        "corpus_sha256": corpus_sha256,
        "wall_s": outcome.wall_s if outcome else None,
        "experts": coverage.experts if coverage else None,
        "min_samples": coverage.min_samples if coverage else None,
        "median_samples": coverage.median_samples if coverage else None,
        "cold": cold,
    }
