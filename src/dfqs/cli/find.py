"""`dfqs find`: GGUF files on this machine, and copies that could be freed."""

from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.documents.integrity import FindDocument
from dfqs.cli.drawing import progress_bar
from dfqs.cli.options import Json
from dfqs.cli.output import column_table, emit, note, out
from dfqs.cli.tables import Table
from dfqs.errors import UsageError, printable
from dfqs.find import FindResult, find_models, taken_bytes, usual_directories
from dfqs.units import format_bytes, format_number_of

_LISTED_KEYS = 8


def command(
    directories: Annotated[
        list[Path] | None, typer.Argument(help="Where to look; the usual places by default.", show_default=False)
    ] = None,
    no_hash: Annotated[
        bool, typer.Option("--no-hash", help="Take headers and samples as proof; do not read candidates whole.")
    ] = False,
    json_: Json = False,
) -> None:
    """Find GGUF files (Hub cache, Ollama, LM Studio, llama.cpp, or the folders given), and the same model in several
    places, whole or in shards. Changes nothing.

    Example: dfqs find ~/models
    """
    for directory in directories or []:
        if not directory.is_dir():
            there = f"{directory} is a file; name the folder to look in" if directory.exists() else None
            raise UsageError(there or f"no such directory: {directory}")
    searched = tuple(directories) if directories else usual_directories()
    with progress_bar("comparing") as progress:
        result = find_models(searched, hash_candidates=not no_hash, progress=progress)
    emit(FindDocument.of(result), json_, lambda: _show(result))


def _show(result: FindResult) -> None:
    """The same for people."""
    if not result.searched:
        note("none of the usual places exists here; name a folder")
    if result.models:
        out.print_table(_table(result))
    for group in result.same:
        how = f"content_sha256 {group.content_sha256}" if group.content_sha256 else "by header and samples"
        out.print(f"the same model, {how}; {format_bytes(group.freeable_bytes)} could be freed:")
        for model, defect in zip(group.models, group.defects, strict=True):
            loads = "" if defect is None else f" (does not load: {printable(defect, 200)})"
            out.print(f"  {model.files[0].path}{loads}")
    for other in result.same_tensors:
        keys = ", ".join(other.keys[:_LISTED_KEYS]) + (", ..." if len(other.keys) > _LISTED_KEYS else "")
        out.print(f"the same tensors, and no copies: they differ in {printable(keys, 300)}; all are needed:")
        for model in other.models:
            out.print(f"  {model.files[0].path}")
    for path in result.unreadable:
        note(f"not looked into: {path}")
    total = taken_bytes(result.models)
    count = len(result.models)
    out.print(
        f"{format_number_of(count, 'model')}, {format_bytes(total)} on disk, "
        f"{format_bytes(result.freeable_bytes)} could be freed; nothing was changed"
    )


def _table(result: FindResult) -> Table:
    table = column_table("model", "size", "where", words=("model", "where"))
    for model in result.models:
        links = sum(len(file.names) - 1 for file in model.files)
        where = str(model.files[0].path.parent)
        extra = f" (and {links} links, which cost nothing)" if links else ""
        problem = f" [broken: {model.problem}]" if model.problem else "" if model.complete else " [incomplete]"
        table.add_row(
            printable(model.name, 100),
            format_bytes(model.disk_bytes),
            printable(where + extra + problem, 300),
        )
    return table
