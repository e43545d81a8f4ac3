"""`dfqs inspect`: what a model is, from its header alone."""

import importlib
import itertools
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dfqs.cli.documents.plain import inspected
from dfqs.cli.options import Json
from dfqs.cli.output import column_table, key_value_table, note, out, print_json, print_plain
from dfqs.cli.source import open_source
from dfqs.cli.tables import Table
from dfqs.gguf.kinds import MODEL
from dfqs.model.facts import ModelFacts
from dfqs.model.files import ModelFiles
from dfqs.model.snapshot import snapshot_rows
from dfqs.model.spec import EVERY, RoleSize
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
    if keys is not None or tensors is not None or template or tokenizer or runtimes or diff is not None:
        # Records, listings and the runtime are not on the way of a look at a header.
        detailed = importlib.import_module("dfqs.cli.inspecting")
        if diff is not None:
            detailed.compare(models, diff, json_)
        asked = detailed.Asked(keys, tensors, template=template, tokenizer=tokenizer, runtimes=runtimes)
        detailed.show_asked(models, asked, as_json=json_)
        return
    if json_:
        for model in models:
            print_json(inspected(model), indent=2 if len(models) == 1 else None)
        return
    for number, model in enumerate(models):
        if number:
            out.print()
        if len(models) > 1:
            print_plain(f"{model.shards[0].source}:")
        show_model(model)


def show_model(model: ModelFiles) -> None:
    """What it is, for people: the whole of `dfqs inspect MODEL`."""
    if model.kind is MODEL:
        _show_facts(model)
    else:
        _show_other(model)


def _show_facts(model: ModelFiles) -> None:
    described = model.facts
    out.print_table(snapshot_table(described))
    out.print_table(role_table(model.spec.roles))
    if described.class_deviations:
        out.print(f"Closest class: {described.closest_class}. Deviations:")
        for deviation in described.class_deviations:
            out.print(f"  - {deviation}")
    if not described.chat_template:
        note("no chat template: run continues plain text; --chat-template FILE gives run, chat, serve and eval one")


def _show_other(model: ModelFiles) -> None:
    """What is a GGUF and no model: its kind, and what it is for."""
    kind, metadata = model.kind, model.header.metadata
    name, architecture = (metadata.text(f"general.{key}") for key in ("name", "architecture"))
    rows = [("Kind", kind.word), ("Name", name or "(the file gives no name)"), ("Architecture", architecture or "-")]
    rows += [("Size", format_bytes(model.file_bytes)), ("Tensors", f"{len(model.tensors):,}"), ("Use", kind.use)]
    out.print_table(key_value_table(rows))


def snapshot_table(described: ModelFacts) -> Table:
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
