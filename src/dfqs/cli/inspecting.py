"""What `dfqs inspect` shows beyond the model's own table: documents, keys, tensors, how two headers differ."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import typer

from dfqs.cli.documents.inspect import Listed, describe_difference, describe_inspected
from dfqs.cli.inspect import show_model
from dfqs.cli.listing import show_difference, show_keys, show_tensors, show_tokenizer
from dfqs.cli.output import column_table, emit, escape_controls, out, print_plain, write_text
from dfqs.cli.source import open_source
from dfqs.cli.tables import Table
from dfqs.errors import UsageError
from dfqs.gguf.kinds import MODEL
from dfqs.model.difference import compare_headers
from dfqs.model.files import ModelFiles
from dfqs.planning.loaders import LoaderVerdict


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a header is to be shown."""

    keys: str | None
    """A pattern of names; None: not asked. So are tensors."""
    tensors: str | None
    template: bool
    tokenizer: bool
    runtimes: bool


def show_asked(models: Sequence[ModelFiles], asked: Asked, *, as_json: bool) -> None:
    """One model after the other."""
    for number, model in enumerate(models):
        found = importlib.import_module("dfqs.planning.plan").judge_all(model) if asked.runtimes else None
        listed = Listed.of(model, asked.keys, asked.tensors, template=asked.template, tokenizer=asked.tokenizer)
        document = describe_inspected(model, found, listed)
        if number and not as_json:
            out.print()
        if len(models) > 1 and not (as_json or asked.template):
            print_plain(f"{model.shards[0].source}:")
        emit(document, as_json, partial(_show, model, listed, found), indent=2 if len(models) == 1 else None)


def compare(models: Sequence[ModelFiles], other: str, as_json: bool) -> None:
    """How two headers differ; ends with 1 where they do."""
    if len(models) != 1:
        raise UsageError("--diff compares one model with another; name one, and the other behind --diff")
    second = open_source(other)
    found = compare_headers(models[0], second)
    emit(describe_difference(models[0], second, found), as_json, lambda: show_difference(found))
    raise typer.Exit(0 if found.is_equal else 1)


def _show(model: ModelFiles, listed: Listed, loaders: tuple[LoaderVerdict, ...] | None) -> None:
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
        show_model(model)
        if loaders is not None and model.kind is MODEL:
            out.print("Which runtime loads this file?")
    if loaders is not None and (listed.is_any or model.kind is MODEL):
        out.print_table(loader_table(loaders))


def _show_template(model: ModelFiles, template: str | None) -> None:
    if template is None:
        raise UsageError(f"{model.shards[0].source} has no chat template")
    # A pipe gets it as it is, to be used; a terminal is protected.
    write_text(template if template.endswith("\n") else f"{template}\n")


def loader_table(loaders: tuple[LoaderVerdict, ...]) -> Table:
    """Which program loads the file: a row a program."""
    table = column_table("", "", "", words=("",))
    for found in loaders:
        how = "asked" if found.asked else "not asked"
        table.add_row(found.loader, f"{found.verdict} ({how})", escape_controls(found.evidence))
    return table
