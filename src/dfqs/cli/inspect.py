"""`dfqs inspect`: what a model is, from its header alone."""

import importlib
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperCommand

from dfqs.cli.documents.inspect import Listed, describe_difference, describe_inspected
from dfqs.cli.listing import show_difference, show_keys, show_tensors, show_tokenizer
from dfqs.cli.options import Json
from dfqs.cli.output import column_table, emit, escape_controls, key_value_table, out, print_plain, write_text
from dfqs.cli.source import open_source
from dfqs.errors import UsageError
from dfqs.gguf.kinds import MODEL
from dfqs.model.description import ModelDescription
from dfqs.model.difference import compare_headers
from dfqs.model.files import ModelFiles
from dfqs.model.listing import EVERY
from dfqs.model.snapshot import snapshot_rows
from dfqs.model.spec import RoleSize
from dfqs.planning.loaders import LoaderVerdict
from dfqs.units import format_bytes, format_count


class Command(TyperCommand):
    """`--keys` and `--tensors` alone mean all of them; typer has no options whose value may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words: list[str] = []
        for word, following in itertools.zip_longest(args, args[1:]):
            words.append(word)
            if word in ("--keys", "--tensors") and (following is None or following.startswith("-")):
                words.append(EVERY)
        return super().parse_args(ctx, words)


def command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="{source}...",
            help="A .gguf file, the first shard of a set, hf:OWNER/NAME[@REVISION][:PATTERN], or a Hub address.",
            show_default=False,
        ),
    ],
    keys: Annotated[
        str | None, typer.Option("--keys", help="List keys and values: all, or those that match.", metavar="[glob]")
    ] = None,
    tensors: Annotated[
        str | None, typer.Option("--tensors", help="List tensors: all, or those that match.", metavar="[glob]")
    ] = None,
    template: Annotated[bool, typer.Option("--template", help="Print the chat template, and nothing else.")] = False,
    tokenizer: Annotated[bool, typer.Option("--tokenizer", help="Show the tokenizer and its special tokens.")] = False,
    diff: Annotated[
        str | None,
        typer.Option(
            "--diff", help="Show how the header differs from another model's; exit 1 where it does.", metavar="{source}"
        ),
    ] = None,
    runtimes: Annotated[
        bool,
        typer.Option("--runtimes", help="Ask the runtime whether it loads this, and tell of others."),
    ] = False,
    json_: Json = False,
) -> None:
    """Show what a model is: architecture, parameters in all and active, experts, bits per weight by role, deployment
    class and tier. Reads headers only; a 62 GB file takes a fraction of a second, one on the Hub some kilobytes.
    With --json, several models give one document a line.

    Example: dfqs inspect DeepSeek-V4-Flash-IQ1_S-XL.gguf --tensors '*ffn_gate_exps*'
    """
    models = [open_source(source) for source in sources]
    if diff is not None:
        _compare(models, diff, json_)
    for number, model in enumerate(models):
        # The runtime is not on the way of a look at a header.
        found = importlib.import_module("dfqs.planning.plan").judge_all(model) if runtimes else None
        listed = Listed.of(model, keys, tensors, template=template, tokenizer=tokenizer)
        document = describe_inspected(model, found, listed)
        if number and not json_:
            out.print()
        if len(models) > 1 and not (json_ or template):
            print_plain(f"{model.shards[0].source}:")
        emit(document, json_, partial(_show_asked, model, listed, found), indent=2 if len(models) == 1 else None)


def _compare(models: Sequence[ModelFiles], other: str, as_json: bool) -> None:
    if len(models) != 1:
        raise UsageError("--diff compares one model with another; name one, and the other behind --diff")
    second = open_source(other)
    found = compare_headers(models[0], second)
    emit(describe_difference(models[0], second, found), as_json, lambda: show_difference(found))
    raise typer.Exit(0 if found.is_equal else 1)


def _show_asked(model: ModelFiles, listed: Listed, loaders: tuple[LoaderVerdict, ...] | None) -> None:
    """What was asked for, or else what the model is."""
    if listed.template_asked:
        _show_template(model, listed.template)
    if listed.tokenizer_asked:
        show_tokenizer(listed.tokenizer)
    if listed.keys is not None:
        show_keys(listed.keys)
    if listed.tensors is not None:
        show_tensors(listed.tensors, shards=len(model.shards) > 1)
    if not listed.is_any:
        _show(model, loaders) if model.kind is MODEL else _show_other(model)
    elif loaders is not None:
        out.print_table(loader_table(loaders))


def _show_template(model: ModelFiles, template: str | None) -> None:
    if template is None:
        raise UsageError(f"{model.shards[0].source} has no chat template")
    # A pipe gets it as it is, to be used; a terminal is protected.
    write_text(template if template.endswith("\n") else f"{template}\n")


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
    columns = ("Role", "Tensors", "Weights", "Bytes", "Bits/weight", "Types")
    table = column_table(*columns, words=("Role", "Types"))
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
    table = column_table("", "", "", words=("",))
    table.show_header = False
    for found in loaders:
        how = "asked" if found.asked else "not asked"
        table.add_row(found.loader, f"{found.verdict} ({how})", escape_controls(found.evidence))
    return table
