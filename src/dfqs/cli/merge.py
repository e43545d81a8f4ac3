"""`dfqs merge`: shards to one file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dfqs.cli.output import out, print_json, progress_bar, warn
from dfqs.shards import MergePlan, MergeResult, merge, merged_path, plan_merge
from dfqs.shards.merge import refuse_source_as_target
from dfqs.storage import check_writable_target
from dfqs.units import format_bytes, format_duration


def command(
    first_shard: Annotated[Path, typer.Argument(help="The first shard of the set.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write; PREFIX.gguf beside the shards by default.")
    ] = None,
    hash_sources: Annotated[bool, typer.Option("--hash", help="Hash every shard in the same pass.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make one file of a model's shards: the bytes that llama-gguf-split --merge gives, or a clear refusal.

    Example: dfqs merge model-00001-of-00003.gguf -o model.gguf
    """
    target = output or merged_path(first_shard)
    plan = plan_merge(first_shard)
    for line in plan.notes:
        warn(line)
    result = None
    if dry_run:
        refuse_source_as_target(plan.shards, target)
        check_writable_target(target)
    else:
        with progress_bar("merging") as progress:
            result = merge(plan, target, hash_sources=hash_sources, progress=progress)
    if json_:
        print_json(describe_merge(plan, target, result))
    elif result is None:
        out.print(f"would write {target}: {format_bytes(plan.file_bytes)} from {len(plan.shards)} shards", markup=False)
    else:
        size, time = format_bytes(result.file_bytes), format_duration(result.wall_s)
        out.print(f"wrote {target}: {size} from {len(plan.shards)} shards in {time}", markup=False)


def describe_merge(plan: MergePlan, target: Path, result: MergeResult | None) -> dict[str, Any]:
    """Plan and outcome for programs; what is not known is null."""
    hashes = result.shard_sha256 if result else (None,) * len(plan.shards)
    return {
        "schema": "dfqs.merge/1",
        "output": str(target),
        "dry_run": result is None,
        "file_bytes": plan.file_bytes,
        "tensors": len(plan.tensors),
        "moved_bytes": len(plan.header) + plan.copied_bytes,
        "wall_s": result.wall_s if result else None,
        "notes": list(plan.notes),
        "shards": [
            {
                "path": shard.source,
                "file_bytes": shard.header.file_size,
                "tensors": len(shard.tensors),
                "sha256": sha256,
            }
            for shard, sha256 in zip(plan.shards, hashes, strict=True)
        ],
    }
