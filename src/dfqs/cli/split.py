"""`dfqs split`: one file to shards."""

from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.documents.shards import SplitDocument
from dfqs.cli.drawing import progress_bar
from dfqs.cli.options import DryRun, Json, model_file
from dfqs.cli.output import emit, note, print_plain
from dfqs.errors import AlreadyDone
from dfqs.shards.split import plan_split, split
from dfqs.units import format_bytes, format_number_of, parse_size


def command(
    model: Annotated[Path, typer.Argument(help="The file to split.", show_default=False, parser=model_file)],
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
    dry_run: DryRun = False,
    json_: Json = False,
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
    done_already = False
    if not dry_run:
        try:
            with progress_bar("splitting") as progress:
                split(plan, progress=progress)
        except AlreadyDone as error:
            note(str(error))
            done_already = True
    found = SplitDocument.of(plan, dry_run=dry_run, done_already=done_already)
    emit(found, json_, lambda: _show(found))


def _show(found: SplitDocument) -> None:
    verb = "would write" if found.dry_run else "there are" if found.done_already else "wrote"
    print_plain(f"{verb} {format_number_of(len(found.shards), 'shard')}, {format_bytes(found.file_bytes)} in all:")
    for shard in found.shards:
        print_plain(f"  {shard.path}  {format_number_of(shard.tensors, 'tensor')}  {format_bytes(shard.file_bytes)}")
