"""`dfqs deploy`: a model into the systems that people already use."""

from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.options import Json
from dfqs.cli.output import column_table, emit, note, out
from dfqs.errors import UsageError
from dfqs.model.files import open_model
from dfqs.targets.catalogue import all_targets
from dfqs.targets.listing import DeployListDocument, TargetRow, list_targets
from dfqs.targets.look import read_site
from dfqs.targets.model import local_model
from dfqs.units import format_bytes

_TAKES = {
    "path": "reads the file where it lies",
    "link": "a link in its directory",
    "copy": "copies it",
    "endpoint": "talks with a server",
    "download": "a notebook",
}


def command(
    model: Annotated[
        Path | None, typer.Argument(help="A .gguf file, or the first shard of a set.", show_default=False)
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Say which systems are here, and what stands in the way.")
    ] = False,
    json_: Json = False,
) -> None:
    """Show which systems a model can be brought into: what is installed here, what is blocked and why, how much disk
    each takes, and which GGUF it reads.

    Example: dfqs deploy --list model.gguf
    """
    if not list_:
        raise UsageError("say what to do: --list shows the systems")
    targets = all_targets()
    files = open_model(model) if model is not None else None
    local = local_model(files) if files is not None else None
    document = list_targets(targets, read_site(targets, probe=True), local, files)
    emit(document, json_, lambda: _show_list(document))


def _show_list(document: DeployListDocument) -> None:
    columns = ("target", "state", "how", "extra disk", "GGUF names", "build")
    table = column_table(*columns, words=columns)
    for row in document.targets:
        names, build = (row.dialect.names, row.dialect.build) if row.dialect is not None else ("-", "-")
        table.add_row(row.target, row.state, _TAKES[row.takes], _disk_words(row), names, build)
    out.print_table(table)
    for row in document.targets:
        if row.installed is not None:
            note(f"{row.target}: {row.installed}")
    for row in document.targets:
        if row.reason is not None:
            note(f"{row.target} is blocked: {row.reason}")


def _disk_words(row: TargetRow) -> str:
    if row.disk_high_bytes is None or row.disk_low_bytes is None:
        return {"copy": "a copy, or two", "link": "none where it can link"}.get(row.takes, "none")
    low, high = format_bytes(row.disk_low_bytes), format_bytes(row.disk_high_bytes)
    needed = (
        low if low == high else f"{low} to {high}" if row.disk_low_bytes else f"none, or {high} where it cannot link"
    )
    free = f", {format_bytes(row.disk_free_bytes)} free" if row.disk_free_bytes is not None else ""
    return needed + free
