"""`dfqs audit`: a published quantization spot-checked against its source."""

import secrets
from contextlib import ExitStack
from typing import Annotated

import typer

from dfqs.cli.documents.audit import AuditDocument
from dfqs.cli.drawing import progress_bar
from dfqs.cli.options import Imatrix, Json, Source, Threads
from dfqs.cli.output import column_table, emit, escape_controls, note, out, print_plain
from dfqs.cli.source import open_bytes
from dfqs.quantize.audit import Side, audit
from dfqs.units import format_bytes, parse_size

DIFFERENT, UNKNOWN = 1, 4
SHOWN = 20
"""So many tensors that are not equal are shown to people; `--json` has all."""


def command(
    model: Source,
    source: Annotated[
        str,
        typer.Option(
            "--source",
            help="What it was quantized from: a .gguf file, the first shard of a set, or one on the Hub (hf:...).",
            show_default=False,
        ),
    ],
    imatrix: Imatrix = None,
    confidence: Annotated[
        float,
        typer.Option("--confidence", help="Probability of drawing one that differs, where --share of them do."),
    ] = 0.95,
    share: Annotated[float, typer.Option("--share", help="Share of the tensors that differ.")] = 0.01,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the draw, to repeat one.", show_default="drawn, and said")
    ] = None,
    limit: Annotated[
        str,
        typer.Option(
            "--limit",
            help="Read no more of a source tensor than this, at random places; 'all' reads whole ones.",
        ),
    ] = "32MB",
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Draw tensors of a quantized model, make them again from its source, and compare bytes. Only their bytes are read.

    Exit code 0: all that were drawn are equal. 1: one differs. 4: none does, and some cannot be told (their importance
    matrix is not there).

    Example: dfqs audit model-iq1.gguf --source hf:owner/model-bf16 --imatrix model.imatrix.gguf
    """
    limit_bytes = None if limit == "all" else parse_size(limit)
    drawn = secrets.randbits(32) if seed is None else seed
    with ExitStack() as stack:
        sides = [Side(*stack.enter_context(open_bytes(place))) for place in (model, source)]
        for side in sides:
            side.model.require_model()
        with progress_bar("auditing") as progress:
            found = audit(
                *sides,
                imatrix=imatrix,
                confidence=confidence,
                share=share,
                seed=drawn,
                limit_bytes=limit_bytes,
                threads=threads,
                progress=progress,
            )
    document = AuditDocument.of(model, source, found)
    emit(document, json_, lambda: _show(document))
    if document.verdict != "equal":
        raise typer.Exit(DIFFERENT if document.verdict == "different" else UNKNOWN)


def _show(found: AuditDocument) -> None:
    others = [tensor for tensor in found.results if tensor.verdict != "equal"]
    if others:
        words = ("tensor", "type", "verdict", "why")
        table = column_table(*words, "blocks that differ", "RMSE", "expected", words=words)
        for tensor in others[:SHOWN]:
            differing = f"{tensor.differing_blocks:,} of {tensor.blocks:,}" if tensor.blocks else "-"
            numbers = ["-" if value is None else f"{value:.4g}" for value in (tensor.rmse, tensor.expected_rmse)]
            table.add_row(
                escape_controls(tensor.name), tensor.type, tensor.verdict, escape_controls(tensor.reason or ""),
                differing, *numbers,
            )  # fmt: skip
        out.print_table(table)
        if len(others) > SHOWN:
            note(f"and {len(others) - SHOWN:,} more (--json lists all)")
    for names, where in ((found.only_in_model, "the file"), (found.only_in_source, "the source")):
        if names:
            shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            print_plain(f"only {where} has {len(names):,} tensors: {shown}")
    partly = sum(0 < tensor.rows_compared < tensor.rows for tensor in found.results)
    print_plain(
        f"{found.verdict}: of {found.sampled:,} of {found.tensors:,} tensors {found.equal:,} are byte-identical, "
        f"{found.different:,} different, {found.unknown:,} unknown"
    )
    print_plain(
        f"where {found.differing_tensors:,} of the {found.tensors:,} differ, such a draw has one of them with "
        f"probability {found.detection:.3f}; a single one with {found.detection_of_one:.3f} (--seed {found.seed})"
    )
    where = f"; {partly:,} large tensors were read in places (--limit)" if partly else ""
    note(
        f"read {format_bytes(found.model_bytes_read)} of the file and {format_bytes(found.source_bytes_read)} of the "
        f"source{where}"
    )
