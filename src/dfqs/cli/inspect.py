"""`dfqs inspect`: what a model is, from its header alone."""

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dfqs.cli.output import key_value_table, out, print_json
from dfqs.gguf import Header
from dfqs.gguf.kinds import MODEL, FileKind, file_kind
from dfqs.gguf.shard import read_model_shards
from dfqs.model.classes import ClassMatch, model_tier, recognise_class
from dfqs.model.snapshot import snapshot_rows
from dfqs.model.spec import ModelSpec, RoleSize, read_model_spec
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
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what a model is: architecture, parameters in all and active, experts, bits per weight by role, deployment
    class and tier. Reads headers only; a 62 GB file takes a fraction of a second, one on the Hub some kilobytes.

    Example: dfqs inspect DeepSeek-V4-Flash-IQ1_S-XL.gguf
    """
    headers = read_headers(source)
    first = headers[0]
    if (kind := file_kind(first)) is not MODEL:
        _show_other(kind, headers, json_)
        return
    spec = read_model_spec(first, [tensor for header in headers for tensor in header.tensors])
    match = recognise_class(spec)
    file_bytes = sum(header.file_size for header in headers)
    if json_:
        print_json(describe_as_json(first, spec, match, file_bytes, len(headers)))
        return
    out.print(snapshot_table(spec, match, file_bytes, len(headers)))
    out.print(role_table(spec.roles))
    if match is not None and match.deviations:
        out.print(f"Closest class: {match.name}. Deviations:")
        for deviation in match.deviations:
            out.print(f"  - {deviation}")


def _show_other(kind: FileKind, headers: tuple[Header, ...], json_: bool) -> None:
    """What is a GGUF and no model: its kind, and what it is for."""
    tensors = [tensor for header in headers for tensor in header.tensors]
    file_bytes = sum(header.file_size for header in headers)
    name, architecture = (headers[0].metadata.text(f"general.{key}") for key in ("name", "architecture"))
    if json_:
        record = {"schema": "dfqs.inspect/1", "source": headers[0].source_name, "kind": kind.code, "name": name}
        print_json({**record, "architecture": architecture, "file_bytes": file_bytes, "tensors": len(tensors)})
        return
    rows = [("Kind", kind.word), ("Name", name or "(the file gives no name)"), ("Architecture", architecture or "-")]
    rows += [("Size", format_bytes(file_bytes)), ("Tensors", f"{len(tensors):,}"), ("Use", kind.use)]
    out.print(key_value_table(rows))


def read_headers(source: str | Path) -> tuple[Header, ...]:
    """The header of a file, or those of all the shards that it is the first of; local, or on the Hub."""
    if is_remote(str(source)) and not Path(source).exists():
        headers: tuple[Header, ...] = importlib.import_module("dfqs.cli.remote").read_headers(str(source))
        return headers
    return tuple(shard.header for shard in read_model_shards(Path(source)))


def snapshot_table(spec: ModelSpec, match: ClassMatch | None, file_bytes: int, files: int) -> Table:
    """The table of the specification's section 5, for this file."""
    rows = snapshot_rows(spec, match, file_bytes, files)
    if spec.description:
        rows.append(("Description", spec.description))
    return key_value_table(rows)


def describe_class(match: ClassMatch | None) -> dict[str, Any]:
    """The class for programs; null where it is none."""
    return {
        "class": match.name if match is not None and match.exact else None,
        "closest_class": match.name if match is not None else None,
        "class_deviations": list(match.deviations) if match is not None else [],
    }


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


def describe_as_json(
    header: Header, spec: ModelSpec, match: ClassMatch | None, file_bytes: int, files: int
) -> dict[str, Any]:
    """The same for programs. Bytes are bytes, parameters are counts, unknown is null."""
    tier = model_tier(spec)
    return {
        "schema": "dfqs.inspect/1",
        "source": header.source_name,
        "kind": MODEL.code,
        "files": files,
        "file_bytes": file_bytes,
        "gguf_version": header.version,
        "alignment": header.alignment,
        "name": spec.name,
        "description": spec.description,
        "architecture": spec.architecture,
        "parameters": spec.parameters,
        "parameters_active": spec.parameters_active,
        "tensor_bytes": spec.tensor_bytes,
        "bits_per_weight": spec.bits_per_weight,
        "main_bits_per_weight": spec.main_bits_per_weight,
        "file_type": spec.file_type,
        "layers": spec.layers,
        "experts": spec.experts,
        "experts_used": spec.experts_used,
        "experts_shared": spec.experts_shared,
        "context_tokens": spec.context_tokens,
        "embedding_length": spec.embedding_length,
        "vocabulary": spec.vocabulary,
        "chat_template": spec.chat_template,
        **describe_class(match),
        "declared_class": spec.declared_class,
        "tier": tier.name if tier is not None else None,
        "roles": {
            size.role.value: {
                "tensors": size.tensors,
                "parameters": size.parameters,
                "bytes": size.bytes,
                "bits_per_weight": size.bits_per_weight,
                "types": {type_.name: count for type_, count in size.types.items()},
            }
            for size in spec.roles
        },
    }
