"""`dfqs manifest`: write down what a model's bytes are and where they came from."""

from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.drawing import progress_bar
from dfqs.cli.guard import check_output
from dfqs.cli.options import Json, Overwrite, model_file
from dfqs.cli.output import emit, note, print_plain
from dfqs.gguf.shard import read_shards
from dfqs.integrity.manifest import Provenance, SourceFile, make_manifest, manifest_path
from dfqs.integrity.structure import require_one_model
from dfqs.records import write_json
from dfqs.storage.hashing import hash_file


def command(
    model: Annotated[Path, typer.Argument(help="The .gguf file.", show_default=False, parser=model_file)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The manifest to write; MODEL.manifest.json by default.")
    ] = None,
    shards: Annotated[
        Path | None, typer.Option("--shards", help="First of the shards it was made of; their hashes are recorded.")
    ] = None,
    repo: Annotated[str | None, typer.Option("--repo", help="Hub repository it came from.")] = None,
    commit: Annotated[str | None, typer.Option("--commit", help="Commit of that repository.")] = None,
    experts: Annotated[
        bool, typer.Option("--experts", help="Hash every expert too, so that a check can name the one that changed.")
    ] = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Hash, but write nothing.")] = False,
    json_: Json = False,
) -> None:
    """Hash a model (the file, its content, every tensor) and record it with its origin.

    Example: dfqs manifest model.gguf -o model.manifest.json
    """
    place = output or manifest_path(model)
    if not dry_run:
        check_output(place, (model, shards), overwrite=overwrite)
    require_one_model(model)
    sources = None
    if shards is not None:
        sources = []
        for shard in read_shards(shards):
            with progress_bar(f"hashing {shard.path.name}") as progress:
                sha256 = hash_file(shard.path, progress=progress)
            sources.append(SourceFile(name=shard.path.name, bytes=shard.header.file_size, sha256=sha256))
    provenance = Provenance(repo=repo, commit=commit, shards=sources)
    with progress_bar("hashing") as progress:
        manifest = make_manifest(model, provenance=provenance, experts=experts, progress=progress)
    if not dry_run:
        write_json(place, manifest, overwrite=overwrite)
        note(f"wrote {place}")

    def show() -> None:
        print_plain(f"file_sha256     {manifest.file_sha256}")
        print_plain(f"content_sha256  {manifest.content_sha256}")

    emit(manifest, json_, show)
