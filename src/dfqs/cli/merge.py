"""`dfqs merge`: shards to one file."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfqs.cli.drawing import progress_bar
from dfqs.cli.merging import MergeFacts, describe_aborted, describe_merge, describe_resumed
from dfqs.cli.options import Align, DryRun, Json, Restart, model_file
from dfqs.cli.output import emit, key_value_table, note, out, print_plain, warn
from dfqs.errors import DfqsError, UsageError
from dfqs.gguf import read_header
from dfqs.inplace import abort_merge, is_unfinished, merge_inplace, plan_inplace, resume_merge
from dfqs.inplace.job import Mode
from dfqs.inplace.journal import unfinished_beside
from dfqs.inplace.merge import MIN_WINDOW_BYTES
from dfqs.progress import Progress
from dfqs.shards import MergePlan, MergeResult, merged_path, plan_merge
from dfqs.shards.plan import refuse_source_as_output
from dfqs.storage.atomic import check_output_path
from dfqs.storage.space import require_space
from dfqs.units import format_bytes, format_duration, format_number_of, parse_size

if TYPE_CHECKING:
    from dfqs.cli.documents.shards import MergeDocument

FirstShard = Annotated[Path, typer.Argument(help="The first shard of the set.", show_default=False, parser=model_file)]


def command(
    first_shard: FirstShard,
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
    align: Align = None,
    hash_sources: Annotated[
        bool,
        typer.Option("--hash", help="Hash every shard, and compare with the Hub's record of it, if any."),
    ] = False,
    abort: Annotated[bool, typer.Option("--abort", help="Undo an unfinished merge where that is possible.")] = False,
    restart: Restart = False,
    trust_journal: Annotated[
        bool,
        typer.Option("--trust-journal", help="Go on with a journal of your own whose key (in the cache) is gone."),
    ] = False,
    trust_shards: Annotated[
        bool,
        typer.Option("--trust-shards", help="Go on with shards touched since the merge began; their bytes are right."),
    ] = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Make one file of a model's shards: the bytes that llama-gguf-split --merge gives, or a clear refusal.

    The shards stay, unless --in-place or --consume says that they are used up; such a merge survives kill -9, a loss of
    power and a full disk, and the same command goes on with it.

    Example: dfqs merge model-00001-of-00003.gguf -o model.gguf
    """
    request = _Request(
        first_shard,
        output or merged_path(first_shard),
        _mode(in_place, consume),
        _window(window),
        align=align,
        hash_sources=hash_sources,
        trust_journal=trust_journal,
        trust_shards=trust_shards,
        dry_run=dry_run,
    )
    if abort:
        abort_merge(first_shard, request.output, trust_journal=trust_journal)
        found = describe_aborted(first_shard, request.output, request.mode)
    else:
        found = _carry_out(request, restart=restart)
    emit(lambda: _document(found), json_, lambda: _show(found))
    if dry_run and request.mode is None and not json_:
        require_space(request.output.parent, found.file_bytes or 0, "--in-place and --consume need no second copy")


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked for."""

    first_shard: Path
    output: Path
    mode: Mode | None
    window_bytes: int
    align: int | None
    hash_sources: bool
    trust_journal: bool
    trust_shards: bool
    dry_run: bool


def _carry_out(request: _Request, *, restart: bool) -> MergeFacts:
    if request.output.is_dir():
        # `.` has no name that a journal's could be made of.
        check_output_path(request.output)
    if restart and not request.dry_run and is_unfinished(request.output):
        abort_merge(request.first_shard, request.output, trust_journal=request.trust_journal)
    found = (_resume(request) if is_unfinished(request.output) else None) or _begin(request)
    for path in found.left:
        warn(f"{path} is not the shard that was merged but a file put there since; it is left")
    return found


def _resume(request: _Request) -> MergeFacts | None:
    """Go on with an unfinished merge; None where it had not begun yet."""
    output, mode = request.output, request.mode
    if mode is None or request.dry_run:
        raise UsageError(f"a merge to {output} is unfinished; go on with --in-place or --consume, or --abort it")
    note(f"an unfinished merge to {output} was found; going on with it")
    with progress_bar("merging") as progress:
        result = resume_merge(
            request.first_shard,
            output,
            mode,
            window_bytes=request.window_bytes,
            trust_journal=request.trust_journal,
            trust_shards=request.trust_shards,
            progress=progress,
        )
    if result is None:
        return None
    return describe_resumed(request.first_shard, mode, len(read_header(output).tensors), result)


def _begin(request: _Request) -> MergeFacts:
    """Plan a merge and, unless it is a dry run, carry it out."""
    plan, output, mode = _plan(request.first_shard, request.align), request.output, request.mode
    inplace = plan_inplace(plan, output, mode, window_bytes=request.window_bytes) if mode is not None else None
    for line in inplace.notes if inplace is not None else plan.notes:
        warn(line)
    if request.dry_run:
        refuse_source_as_output(plan.shards, output)
        check_output_path(output)
        return describe_merge(plan, inplace, output, None)
    with progress_bar("merging") as progress:
        if inplace is not None:
            result = merge_inplace(inplace, hash_first=request.hash_sources, progress=progress)
        else:
            result = _merge_plainly(plan, output, hash_sources=request.hash_sources, progress=progress)
    return describe_merge(plan, inplace, output, result)


def _merge_plainly(plan: MergePlan, output: Path, *, hash_sources: bool, progress: Progress) -> MergeResult:
    # It keeps a receipt, which comes with what checks documents.
    plain = importlib.import_module("dfqs.shards.plain_merge")
    done: MergeResult | None = plain.merged_already(plan, output, hash_sources=hash_sources)
    if done is None:
        done = plain.merge(plan, output, hash_sources=hash_sources, progress=progress)
    return done


def _document(found: MergeFacts) -> "MergeDocument":
    made: MergeDocument = importlib.import_module("dfqs.cli.documents.shards").MergeDocument(**vars(found))
    return made


def _window(written: str) -> int:
    window_bytes = parse_size(written)
    if window_bytes < MIN_WINDOW_BYTES:
        raise UsageError(f"a window of {written}: every window waits for the disk, so at least 1MiB makes sense")
    return window_bytes


def _mode(in_place: bool, consume: bool) -> Mode | None:
    if in_place and consume:
        raise UsageError("give --in-place or --consume, not both")
    return "in-place" if in_place else "consume" if consume else None


def _plan(first_shard: Path, align: int | None) -> MergePlan:
    """The plan; where shards are missing or emptied by an unfinished merge to another output, the message says so."""
    try:
        return plan_merge(first_shard, alignment=align)
    except DfqsError as error:
        out = unfinished_beside(first_shard)
        if out is None:
            raise
        raise UsageError(
            f"{error}. A merge of these shards to {out} is unfinished and has what is gone from them: give -o {out} "
            "and its mode (or --abort)"
        ) from None


def _show(found: MergeFacts) -> None:
    """The same for people."""
    file_bytes, moved_bytes = found.file_bytes or 0, found.moved_bytes or 0
    if found.aborted:
        print_plain("all shards are as they were before the merge")
    elif found.dry_run:
        rows = [
            ("output", f"{found.output}, {format_bytes(file_bytes)}, {format_number_of(found.tensors or 0, 'tensor')}"),
            ("shards", f"{len(found.shards)}, {'kept' if found.mode == 'plain' else 'used up'}"),
            ("bytes to write", format_bytes(moved_bytes)),
            ("disk needed beyond the shards", format_bytes(found.peak_extra_bytes or 0)),
        ]
        if found.resident_shard is not None:
            rows.insert(2, ("stays where it is", found.resident_shard))
        out.print_table(key_value_table(rows, "would merge"))
    elif found.done_already:
        print_plain(f"done already: {found.output} is what this merge wrote, and nothing changed since")
    else:
        moved, time = format_bytes(moved_bytes), format_duration(found.wall_s or 0)
        size = f"{format_bytes(file_bytes)} from {format_number_of(len(found.shards), 'shard')}"
        print_plain(f"wrote {found.output}: {size}, {moved} moved, in {time}")
