"""`dfqs config`: defaults that the user keeps, and where each comes from."""

from typing import Annotated

import typer

from dfqs.cli.documents.config import ConfigDocument
from dfqs.cli.options import Json
from dfqs.cli.output import column_table, emit, note, out, print_plain
from dfqs.config import KNOWN, change_file, config_path, find_known, held, held_settings

app = typer.Typer(add_completion=False)

Key = Annotated[str, typer.Argument(help=f"One of {', '.join(known.key for known in KNOWN)}.")]


@app.callback(invoke_without_command=True)
def show(context: typer.Context, json_: Json = False) -> None:
    """Show the defaults that hold, and where each comes from: an option comes first, then the environment, then the
    file, then what dfqs does by itself. What is measured (eval, forecast, tune) takes its options alone.

    Example: dfqs config
    """
    if context.invoked_subcommand is None:
        _show(json_)


@app.command("set")
def set_(
    key: Key, value: Annotated[str, typer.Argument(help="As `threads 4`, `context 8k`.")], json_: Json = False
) -> None:
    """Keep a default in the file; its other lines stay as they are.

    Example: dfqs config set threads 4
    """
    note(f"wrote {change_file(find_known(key).key, value)}")
    _say_if_hidden(key)
    if json_:
        _show(json_)


@app.command()
def unset(key: Key, json_: Json = False) -> None:
    """Take a default out of the file.

    Example: dfqs config unset threads
    """
    note(f"wrote {change_file(find_known(key).key, None)}")
    _say_if_hidden(key)
    if json_:
        _show(json_)


@app.command()
def path(json_: Json = False) -> None:
    """Print where the file is, or would be.

    Example: dfqs config path
    """
    if json_:
        _show(json_)
    else:
        print_plain(str(config_path()))


def _show(json_: bool) -> None:
    found = ConfigDocument.of(config_path(), held_settings())

    def show() -> None:
        table = column_table("Setting", "Value", "From", "Meaning", words=("Setting", "Value", "From", "Meaning"))
        for one in found.settings:
            origin = one.origin if one.where is None else f"{one.origin} ({one.where})"
            table.add_row(one.key, one.default if one.value is None else str(one.value), origin, one.meaning)
        out.print_table(table)
        print_plain(f"file: {found.path}{'' if found.exists else ' (not there)'}")

    emit(found, json_, show)


def _say_if_hidden(key: str) -> None:
    """A variable comes before the file: what was set there does not hold."""
    now = held(key)
    if now.origin == "environment":
        note(f"note: {now.where} is set, and comes before the file")
