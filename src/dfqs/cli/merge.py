"""`dfqs merge`: shards to one file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dfqs.cli.drawing import progress_bar
from dfqs.cli.output import key_value_table, note, out, print_json, warn
from dfqs.errors import DfqsError, UsageError
from dfqs.inplace import InplacePlan, abort_merge, is_unfinished, merge_inplace, plan_inplace, resume_merge
from dfqs.inplace.job import Mode
from dfqs.inplace.journal import unfinished_beside
from dfqs.inplace.merge import MIN_WINDOW_BYTES
from dfqs.shards import MergePlan, MergeResult, merge, merged_path, plan_merge
from dfqs.shards.merge import merged_already, refuse_source_as_target, require_space
from dfqs.storage.atomic import check_writable_target
from dfqs.units import format_bytes, format_duration, parse_size


def command(
    first_shard: Annotated[Path, typer.Argument(help="The first shard of the set.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write; PREFIX.gguf beside the shards by default.")
    ] = None,
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="The largest shard becomes the output; the others are used up. ext4 and XFS."),
    ] = False,
    consume: Annotated[
        bool, typer.Option("--consume", help="Free the shards while they are copied; no room for a second copy needed.")
    ] = False,
    window: Annotated[
        str, typer.Option("--window", help="Most bytes that exist twice at any time with --in-place or --consume.")
    ] = "256MiB",
    hash_sources: Annotated[
        bool,
        typer.Option("--hash", help="Hash every shard, and compare with the Hub's record of it, if any."),
    ] = False,
    abort: Annotated[bool, typer.Option("--abort", help="Undo an unfinished merge where that is possible.")] = False,
    trust_journal: Annotated[
        bool,
        typer.Option("--trust-journal", help="Go on with a journal of your own whose key (in the cache) is gone."),
    ] = False,
    trust_shards: Annotated[
        bool,
        typer.Option("--trust-shards", help="Go on with shards touched since the merge began; their bytes are right."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make one file of a model's shards: the bytes that llama-gguf-split --merge gives, or a clear refusal.

    The shards stay, unless --in-place or --consume says that they are used up; such a merge survives kill -9, a loss of
    power and a full disk, and the same command goes on with it.

    Example: dfqs merge model-00001-of-00003.gguf -o model.gguf
    """
    target = output or merged_path(first_shard)
    mode = _mode(in_place, consume)
    window_bytes = parse_size(window)
    if window_bytes < MIN_WINDOW_BYTES:
        raise UsageError(f"a window of {window}: every window waits for the disk, so at least 1MiB makes sense")
    if abort:
        abort_merge(first_shard, target, trust_journal=trust_journal)
        out.print("all shards are as they were before the merge", markup=False)
        return
    if is_unfinished(target):
        if mode is None or dry_run:
            raise UsageError(f"a merge to {target} is unfinished; go on with --in-place or --consume, or --abort it")
        note(f"an unfinished merge to {target} was found; going on with it")
        with progress_bar("merging") as progress:
            resumed = resume_merge(
                first_shard,
                target,
                mode,
                window_bytes=window_bytes,
                trust_journal=trust_journal,
                trust_shards=trust_shards,
                progress=progress,
            )
        if resumed is not None:
            _say_resumed(resumed, json_=json_)
            return
    plan = _plan(first_shard)
    inplace = plan_inplace(plan, target, mode, window_bytes=window_bytes) if mode is not None else None
    for line in inplace.notes if inplace is not None else plan.notes:
        warn(line)
    if dry_run:
        _show_plan(plan, inplace, target, json_=json_)
        return
    with progress_bar("merging") as progress:
        if inplace is None and (found := merged_already(plan, target, hash_sources=hash_sources)) is not None:
            result = found
        elif inplace is not None:
            result = merge_inplace(inplace, hash_first=hash_sources, progress=progress)
        else:
            result = merge(plan, target, hash_sources=hash_sources, progress=progress)
    if json_:
        print_json(describe_merge(plan, inplace, target, result))
    else:
        _say_result(result, len(plan.shards))


def _mode(in_place: bool, consume: bool) -> Mode | None:
    if in_place and consume:
        raise UsageError("give --in-place or --consume, not both")
    return "in-place" if in_place else "consume" if consume else None


def _plan(first_shard: Path) -> MergePlan:
    """The plan; where shards are missing or emptied by an unfinished merge to another output, the message says so."""
    try:
        return plan_merge(first_shard)
    except DfqsError as error:
        out = unfinished_beside(first_shard)
        if out is None:
            raise
        raise UsageError(
            f"{error}. A merge of these shards to {out} is unfinished and has what is gone from them: give -o {out} "
            "and its mode (or --abort)"
        ) from None


def _say_resumed(result: MergeResult, *, json_: bool) -> None:
    if not json_:
        _say_result(result, len(result.shard_sha256))
        return
    print_json(
        {
            "schema": "dfqs.merge/1",
            "output": str(result.path),
            "resumed": True,
            "file_bytes": result.file_bytes,
            "moved_bytes": result.moved_bytes,
            "wall_s": result.wall_s,
            "shard_sha256": list(result.shard_sha256),
        }
    )


def _say_result(result: MergeResult, shards: int) -> None:
    for path in result.left:
        warn(f"{path} is not the shard that was merged but a file put there since; it is left")
    if result.done_already:
        out.print(f"done already: {result.path} is what this merge wrote, and nothing changed since", markup=False)
        return
    size, moved = format_bytes(result.file_bytes), format_bytes(result.moved_bytes)
    time = format_duration(result.wall_s)
    out.print(f"wrote {result.path}: {size} from {shards} shards, {moved} moved, in {time}", markup=False)


def _show_plan(plan: MergePlan, inplace: InplacePlan | None, target: Path, *, json_: bool) -> None:
    refuse_source_as_target(plan.shards, target)
    check_writable_target(target)
    if json_:
        print_json(describe_merge(plan, inplace, target, None))
        return
    description = describe_merge(plan, inplace, target, None)
    rows = [
        ("output", f"{target}, {format_bytes(description['file_bytes'])}, {len(plan.tensors):,} tensors"),
        ("shards", f"{len(plan.shards)}, {'used up' if inplace else 'kept'}"),
        ("bytes to write", format_bytes(description["moved_bytes"])),
        ("disk needed beyond the shards", format_bytes(description["peak_extra_bytes"])),
    ]
    if inplace is not None and (resident := inplace.job.job.resident) is not None:
        rows.insert(2, ("stays where it is", plan.shards[resident.shard].path.name))
    out.print(key_value_table(rows, "would merge"))
    if inplace is None:
        require_space(target.parent, plan.file_bytes, "--in-place and --consume need no second copy")


def describe_merge(
    plan: MergePlan, inplace: InplacePlan | None, target: Path, result: MergeResult | None
) -> dict[str, Any]:
    """Plan and outcome for programs; what is not known is null."""
    hashes = result.shard_sha256 if result else (None,) * len(plan.shards)
    job = inplace.job.job if inplace is not None else None
    return {
        "schema": "dfqs.merge/1",
        "output": str(target),
        "mode": job.mode if job is not None else "plain",
        "freeing": job.freeing if job is not None else None,
        "dry_run": result is None,
        "resumed": False,
        "done_already": result is not None and result.done_already,
        "file_bytes": job.file_bytes if job is not None else plan.file_bytes,
        "tensors": len(plan.tensors),
        "moved_bytes": job.moved_bytes if job is not None else len(plan.header) + plan.copied_bytes,
        "peak_extra_bytes": inplace.peak_bytes if inplace is not None else plan.file_bytes,
        "resident_shard": plan.shards[job.resident.shard].path.name if job is not None and job.resident else None,
        "wall_s": result.wall_s if result else None,
        "notes": list(inplace.notes if inplace is not None else plan.notes),
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
