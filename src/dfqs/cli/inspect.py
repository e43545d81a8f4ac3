"""`dfqs inspect`: what a model is, from its header alone."""

import importlib
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dfqs.cli.documents.inspect import describe_inspected
from dfqs.cli.options import Json
from dfqs.cli.output import emit, key_value_table, out
from dfqs.gguf.kinds import MODEL
from dfqs.model.description import ModelDescription
from dfqs.model.files import ModelFiles, open_model
from dfqs.model.snapshot import snapshot_rows
from dfqs.model.spec import RoleSize
from dfqs.shards.hub_address import is_remote
from dfqs.units import format_bytes, format_count


def command(
    source: Annotated[
        str,
        typer.Argument(
            help="A .gguf file, the first shard of a set, hf:OWNER/NAME[@REVISION][:PATTERN], or a Hub address.",
            show_default=False,
        ),
    ],
    json_: Json = False,
) -> None:
    """Show what a model is: architecture, parameters in all and active, experts, bits per weight by role, deployment
    class and tier. Reads headers only; a 62 GB file takes a fraction of a second, one on the Hub some kilobytes.

    Example: dfqs inspect DeepSeek-V4-Flash-IQ1_S-XL.gguf
    """
    model = open_source(source)
    emit(describe_inspected(model), json_, lambda: _show(model) if model.kind is MODEL else _show_other(model))


def _show(model: ModelFiles) -> None:
    described = model.description
    out.print(snapshot_table(described))
    out.print(role_table(model.spec.roles))
    if described.class_deviations:
        out.print(f"Closest class: {described.closest_class}. Deviations:")
        for deviation in described.class_deviations:
            out.print(f"  - {deviation}")


def _show_other(model: ModelFiles) -> None:
    """What is a GGUF and no model: its kind, and what it is for."""
    kind, metadata = model.kind, model.header.metadata
    name, architecture = (metadata.text(f"general.{key}") for key in ("name", "architecture"))
    rows = [("Kind", kind.word), ("Name", name or "(the file gives no name)"), ("Architecture", architecture or "-")]
    rows += [("Size", format_bytes(model.file_bytes)), ("Tensors", f"{len(model.tensors):,}"), ("Use", kind.use)]
    out.print(key_value_table(rows))


def open_source(source: str) -> ModelFiles:
    """The model in a file, or in the shards that it is the first of; local, or on the Hub."""
    if is_remote(source) and not Path(source).exists():
        model: ModelFiles = importlib.import_module("dfqs.cli.remote").open_remote_model(source)
        return model
    return open_model(source)


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
