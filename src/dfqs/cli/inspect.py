"""`dfqs inspect`: what a model is, from its header alone."""

import importlib
from typing import Annotated

import typer
from rich.table import Table

from dfqs.cli.documents.inspect import describe_inspected
from dfqs.cli.options import Json, Source
from dfqs.cli.output import emit, escape_controls, key_value_table, out
from dfqs.cli.source import open_source
from dfqs.gguf.kinds import MODEL
from dfqs.model.description import ModelDescription
from dfqs.model.files import ModelFiles
from dfqs.model.snapshot import snapshot_rows
from dfqs.model.spec import RoleSize
from dfqs.planning.loaders import LoaderVerdict
from dfqs.units import format_bytes, format_count


def command(
    source: Source,
    runtimes: Annotated[
        bool,
        typer.Option("--runtimes", help="Ask the runtime whether it loads this, and tell of others."),
    ] = False,
    json_: Json = False,
) -> None:
    """Show what a model is: architecture, parameters in all and active, experts, bits per weight by role, deployment
    class and tier. Reads headers only; a 62 GB file takes a fraction of a second, one on the Hub some kilobytes.

    Example: dfqs inspect DeepSeek-V4-Flash-IQ1_S-XL.gguf
    """
    model = open_source(source)
    # The runtime is not on the way of a look at a header.
    found = importlib.import_module("dfqs.planning.plan").judge_all(model) if runtimes else None
    document = describe_inspected(model, found)
    emit(document, json_, lambda: _show(model, found) if model.kind is MODEL else _show_other(model))


def _show(model: ModelFiles, loaders: tuple[LoaderVerdict, ...] | None) -> None:
    described = model.description
    out.print(snapshot_table(described))
    out.print(role_table(model.spec.roles))
    if described.class_deviations:
        out.print(f"Closest class: {described.closest_class}. Deviations:")
        for deviation in described.class_deviations:
            out.print(f"  - {deviation}")
    if loaders is not None:
        out.print("Which runtime loads this file?")
        out.print_table(loader_table(loaders))


def _show_other(model: ModelFiles) -> None:
    """What is a GGUF and no model: its kind, and what it is for."""
    kind, metadata = model.kind, model.header.metadata
    name, architecture = (metadata.text(f"general.{key}") for key in ("name", "architecture"))
    rows = [("Kind", kind.word), ("Name", name or "(the file gives no name)"), ("Architecture", architecture or "-")]
    rows += [("Size", format_bytes(model.file_bytes)), ("Tensors", f"{len(model.tensors):,}"), ("Use", kind.use)]
    out.print(key_value_table(rows))


def snapshot_table(described: ModelDescription) -> Table:
    """The table of the specification's section 5, for this model."""
    rows = snapshot_rows(described)
    if described.description:
        rows.append(("Description", described.description))
    return key_value_table(rows)


def role_table(roles: tuple[RoleSize, ...]) -> Table:
    """Bits per weight by role."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("Role", "Tensors", "Weights", "Bytes", "Bits/weight"):
        table.add_column(name, justify="left" if name == "Role" else "right")
    table.add_column("Types")
    for size in roles:
        bits = size.bits_per_weight
        table.add_row(
            size.role.value,
            f"{size.tensors:,}",
            format_count(size.parameters) if size.parameters else "-",
            format_bytes(size.bytes),
            "-" if bits is None else f"{bits:.2f}",
            ", ".join(type_.name for type_ in size.types),
        )
    return table


def loader_table(loaders: tuple[LoaderVerdict, ...]) -> Table:
    """Which program loads the file: a row a program."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for found in loaders:
        how = "asked" if found.asked else "not asked"
        table.add_row(found.loader, f"{found.verdict} ({how})", escape_controls(found.evidence))
    return table
