"""`dfqs repair`: a correct file out of a damaged one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dfqs.cli.drawing import progress_bar
from dfqs.cli.guard import check_output
from dfqs.cli.output import out, print_json
from dfqs.integrity import verify_structure
from dfqs.shards.repair import RepairPlan, plan_repair, repair
from dfqs.units import format_bytes


def command(
    model: Annotated[Path, typer.Argument(help="The damaged file, or one of its raw pieces.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fixed and write nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
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
    left = [] if dry_run else [finding.message for finding in verify_structure(output).findings]
    if json_:
        print_json(describe_repair(plan, output, left, dry_run=dry_run))
        return
    verb = "would write" if dry_run else "wrote"
    out.print(f"{plan.what}; {verb} {output}: {format_bytes(plan.file_bytes)}", markup=False)
    for message in left:
        out.print(f"still to be seen to: {message}", markup=False)


def describe_repair(plan: RepairPlan, output: Path, left: list[str], *, dry_run: bool) -> dict[str, Any]:
    """The repair for programs."""
    return {
        "schema": "dfqs.repair/1",
        "sources": [str(path) for path in plan.sources],
        "output": str(output),
        "dry_run": dry_run,
        "fixed": plan.what,
        "file_bytes": plan.file_bytes,
        "tensors": plan.tensors or None,
        "left": None if dry_run else left,
    }
