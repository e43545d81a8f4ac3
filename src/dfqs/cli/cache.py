"""`dfqs cache`: models of the Hub that are kept here, and what they take."""

from typing import Annotated

import typer

from dfqs.cli.documents.cache import CacheDocument
from dfqs.cli.fetching import fetch_kept
from dfqs.cli.options import DryRun, Json, Yes
from dfqs.cli.output import column_table, emit, note, out, print_plain
from dfqs.cli.remote import patient_hub
from dfqs.errors import UsageError, printable
from dfqs.pull import KeptModel, hub_endpoint, list_kept, models_directory, plan_pull, remove_kept, select_kept
from dfqs.shards.hub_address import parse_hub_address
from dfqs.units import format_bytes, format_number_of

app = typer.Typer(add_completion=False)

Name = Annotated[str, typer.Argument(help="hf:OWNER/NAME[@REVISION][:PATTERN], as `dfqs cache` shows it.")]


@app.callback(invoke_without_command=True)
def show(context: typer.Context, json_: Json = False) -> None:
    """List the models of the Hub that are kept here: `run`, `chat`, `serve`, `eval` and `tune` fetch one once, when it
    is first named. They lie in `models` of dfqs's cache, or where DFQS_MODEL_FOLDER says.

    Example: dfqs cache
    """
    if context.invoked_subcommand is None:
        _list(json_)


@app.command("list")
def list_(json_: Json = False) -> None:
    """List what is kept, with what it takes; what is not whole too.

    Example: dfqs cache list
    """
    _list(json_)


@app.command()
def add(name: Name, yes: Yes = False, json_: Json = False) -> None:
    """Fetch a model without running it. Of a branch, the newest commit: the Hub is asked again.

    Example: dfqs cache add teamblobfish/DeepSeek-V4-Flash-GGUF:IQ1_S-XL --yes
    """
    address = parse_hub_address(name, endpoint=hub_endpoint())
    hub = patient_hub()
    plan = plan_pull(hub, address.repo, revision=address.revision, pattern=address.pattern)
    kept = fetch_kept(hub, plan, address, load=None, yes=yes)
    found = CacheDocument.of(models_directory(), [kept])
    emit(found, json_, lambda: print_plain(str(kept.path)))


@app.command()
def remove(name: Name, dry_run: DryRun = False, json_: Json = False) -> None:
    """Remove a kept model, or what was begun of it.

    Example: dfqs cache remove hf:teamblobfish/DeepSeek-V4-Flash-GGUF:IQ1_S-XL
    """
    found = select_kept(parse_hub_address(name, endpoint=hub_endpoint()))
    if not found:
        raise UsageError(f"no model of the name '{printable(name, 200)}' is kept here; `dfqs cache` lists them")
    if len({kept.record.model for kept in found}) > 1:
        listed = ", ".join(f"{kept.name} ({kept.record.model})" for kept in found)
        raise UsageError(f"'{printable(name, 200)}' means {len(found)} models; say which: {printable(listed, 600)}")
    _remove(found, dry_run, json_)


@app.command()
def prune(dry_run: DryRun = False, json_: Json = False) -> None:
    """Remove what was begun and never finished, unless it is being fetched now.

    Example: dfqs cache prune
    """
    _remove(tuple(kept for kept in list_kept() if not kept.is_whole and not kept.is_busy), dry_run, json_)


def _list(json_: bool) -> None:
    found = CacheDocument.of(models_directory(), list_kept())

    def show() -> None:
        if not found.models:
            note(f"no models are kept in {found.directory}; `dfqs run hf:OWNER/NAME` fetches one")
            return
        table = column_table("Name", "Size", "Commit", "State", words=("Name", "State"))
        for model in found.models:
            table.add_row(model.name, format_bytes(model.taken_bytes), model.commit[:12], model.state)
        out.print_table(table)
        count = format_number_of(len(found.models), "model")
        print_plain(f"{count}, {format_bytes(found.taken_bytes)} in {found.directory}")

    emit(found, json_, show)


def _remove(models: tuple[KeptModel, ...], dry_run: bool, json_: bool) -> None:
    found = CacheDocument.of(models_directory(), models, removed=not dry_run)
    if not dry_run:
        for kept in models:
            remove_kept(kept)

    def show() -> None:
        would = "would free" if dry_run else "freed"
        for model in found.models:
            print_plain(f"{model.name}: {would} {format_bytes(model.taken_bytes)}")
        if not found.models:
            print_plain("nothing to remove")

    emit(found, json_, show)
