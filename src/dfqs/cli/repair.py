"""`dfqs repair`: a correct file out of a damaged one."""

from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.documents.shards import RepairDocument
from dfqs.cli.drawing import progress_bar
from dfqs.cli.guard import check_output
from dfqs.cli.options import DryRun, Json
from dfqs.cli.output import emit, print_plain
from dfqs.integrity import verify_structure
from dfqs.shards.repair import plan_repair, repair
from dfqs.units import format_bytes


def command(
    model: Annotated[Path, typer.Argument(help="The damaged file, or one of its raw pieces.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.", show_default=False)],
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Make a correct file of shards joined with cat, of raw pieces, or of a model with bytes after its end or tensors
    out of place. The damaged file stays. What cannot be fixed is refused, with the reason.

    Example: dfqs repair joined.gguf -o model.gguf
    """
    plan = plan_repair(model)
    check_output(output, plan.sources)
    if not dry_run:
        with progress_bar("repairing") as progress:
            repair(plan, output, progress=progress)
    left = None if dry_run else [finding.message for finding in verify_structure(output).findings]
    found = RepairDocument.of(plan, output, left)
    emit(found, json_, lambda: _show(found))


def _show(found: RepairDocument) -> None:
    verb = "would write" if found.dry_run else "wrote"
    print_plain(f"{found.fixed}; {verb} {found.output}: {format_bytes(found.file_bytes)}")
    for message in found.left or ():
        print_plain(f"still to be seen to: {message}")
