"""`dfqs repair`: a correct file out of a damaged one, or one that llama.cpp loads out of another program's."""

import importlib
from pathlib import Path
from typing import Annotated, Literal

import typer

from dfqs.cli.documents.shards import RepairDocument
from dfqs.cli.drawing import progress_bar
from dfqs.cli.guard import check_output
from dfqs.cli.options import DryRun, Json, model_file
from dfqs.cli.output import emit, print_plain
from dfqs.errors import AlreadyDone
from dfqs.gguf import BytesSource, parse_header
from dfqs.gguf.shard import Shard
from dfqs.integrity import verify_structure
from dfqs.model.files import ModelFiles
from dfqs.shards.repair import plan_repair, repair
from dfqs.shards.rewriting import RepairPlan
from dfqs.units import format_bytes


def command(
    model: Annotated[
        Path,
        typer.Argument(help="The damaged file, or one of its raw pieces.", show_default=False, parser=model_file),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.", show_default=False)],
    dialect: Annotated[
        Literal["upstream"] | None,
        typer.Option(
            "--dialect",
            help="Also say keys and tensors in llama.cpp's words that a fork's converter named otherwise or left out "
            "(deepseek4). What nothing in the file tells is refused.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Make a correct file of shards joined with cat, of raw pieces, or of a model with bytes after its end or tensors
    out of place. The damaged file stays. What cannot be fixed is refused, with the reason.

    Example: dfqs repair joined.gguf -o model.gguf
    """
    try:
        plan = plan_repair(model, dialect)
    except AlreadyDone as error:
        nothing = RepairDocument(
            sources=(model,),
            output=None,
            dry_run=dry_run,
            done_already=True,
            fixed=str(error),
            file_bytes=model.stat().st_size,
            tensors=None,
            left=(),
        )
        emit(nothing, json_, lambda: print_plain(nothing.fixed))
        return
    check_output(output, plan.sources)
    # Asked first: copying a large model only to have it refused would be a pity.
    runtime = _ask_runtime(plan, output) if plan.changes else None
    if not dry_run:
        with progress_bar("repairing") as progress:
            repair(plan, output, progress=progress)
    left = None if dry_run else [finding.message for finding in verify_structure(output).findings]
    found = RepairDocument.of(plan, output, left, runtime)
    emit(found, json_, lambda: _show(found))


def _ask_runtime(plan: RepairPlan, output: Path) -> str:
    """Have the runtime load the header that would be written.

    Raises:
        RuntimeFailure: it does not; nothing is written.
    """
    header = parse_header(BytesSource(plan.header, str(output), plan.file_bytes))
    loads: str = importlib.import_module("dfqs.planning.plan").require_loads(ModelFiles((Shard(str(output), header),)))
    return loads


def _show(found: RepairDocument) -> None:
    for change in found.changes:
        print_plain(f"  {change}")
    verb = "would write" if found.dry_run else "wrote"
    print_plain(f"{found.fixed}; {verb} {found.output}: {format_bytes(found.file_bytes)}")
    if found.runtime is not None:
        print_plain(f"{found.runtime} loads it (asked with its header)")
    for message in found.left or ():
        print_plain(f"still to be seen to: {message}")
