"""`dfqs split`: one file to shards."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dfqs.cli.drawing import progress_bar
from dfqs.cli.output import out, print_json
from dfqs.shards import SplitPlan, plan_split, split
from dfqs.units import format_bytes, format_number_of, parse_size


def command(
    model: Annotated[Path, typer.Argument(help="The file to split.", show_default=False)],
    prefix: Annotated[
        Path,
        typer.Option("-o", "--output", help="Shards are named PREFIX-00001-of-0000N.gguf.", show_default=False),
    ],
    max_size: Annotated[
        str | None, typer.Option("--max-size", help="Tensor bytes in a shard, like 2G or 500M (decimal).")
    ] = None,
    max_tensors: Annotated[
        int | None, typer.Option("--max-tensors", help="Tensors in a shard; 128 when no limit is given.")
    ] = None,
    no_tensor_first_split: Annotated[
        bool, typer.Option("--no-tensor-first-split", help="Keep the first shard to the metadata alone.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the shards and write nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Split a model into shards, byte for byte as llama-gguf-split does. All shards appear, or none.

    Example: dfqs split model.gguf -o shards/model --max-size 2G
    """
    plan = plan_split(
        model,
        prefix,
        max_bytes=parse_size(max_size) if max_size is not None else None,
        max_tensors=max_tensors,
        no_tensor_first_split=no_tensor_first_split,
    )
    if not dry_run:
        with progress_bar("splitting") as progress:
            split(plan, progress=progress)
    if json_:
        print_json(describe_split(plan, dry_run=dry_run))
        return
    verb = "would write" if dry_run else "wrote"
    out.print(
        f"{verb} {format_number_of(len(plan.shards), 'shard')}, {format_bytes(plan.file_bytes)} in all:", markup=False
    )
    for shard in plan.shards:
        tensors = format_number_of(len(shard.tensors), "tensor")
        out.print(f"  {shard.path}  {tensors}  {format_bytes(shard.file_bytes)}", markup=False)


def describe_split(plan: SplitPlan, *, dry_run: bool) -> dict[str, Any]:
    """The plan for programs."""
    return {
        "schema": "dfqs.split/1",
        "model": str(plan.model),
        "dry_run": dry_run,
        "file_bytes": plan.file_bytes,
        "shards": [
            {
                "path": str(shard.path),
                "tensors": len(shard.tensors),
                "header_bytes": len(shard.header),
                "file_bytes": shard.file_bytes,
            }
            for shard in plan.shards
        ],
    }
