"""`dfqs runtime`: the llama.cpp in use, what it leaves unused of this machine, and other builds of it."""

from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.documents.runtime import RuntimeDocument
from dfqs.cli.drawing import progress_bar
from dfqs.cli.options import Json
from dfqs.cli.output import emit, key_value_table, note, out
from dfqs.errors import UsageError
from dfqs.runtime import Worker
from dfqs.runtime.builds import NODE_LLAMA_CPP, PACKAGES, WHEEL
from dfqs.runtime.choice import (
    LIBRARY_VARIABLE,
    PACKAGE,
    WHEEL_NAME,
    chosen_library,
    find_own_library,
    find_package,
    installed_version,
)
from dfqs.runtime.choosing import RuntimeChoice, choose_own, choose_package, write_choice
from dfqs.runtime.features import RuntimeFacts, describe_runtime
from dfqs.runtime.install import install_package
from dfqs.units import format_bytes

app = typer.Typer(add_completion=False)

NoUse = Annotated[bool, typer.Option("--no-use", help="Only install it; what is used stays as it is.")]


@app.callback(invoke_without_command=True)
def show(context: typer.Context, json_: Json = False) -> None:
    """Show which llama.cpp is used, which of this processor's features it uses, and which other builds there are.

    Example: dfqs runtime
    """
    if context.invoked_subcommand is None:
        _show(json_)


@app.command()
def install(
    name: Annotated[str, typer.Argument(help="A package that `dfqs runtime` lists.")] = NODE_LLAMA_CPP.name,
    archive: Annotated[
        Path | None, typer.Option(help="The package's archive, fetched by other means.", show_default=False)
    ] = None,
    library: Annotated[
        Path | None,
        typer.Option(help="Take a build of your own: its libllama.so, or the folder with it.", show_default=False),
    ] = None,
    no_use: NoUse = False,
    json_: Json = False,
) -> None:
    """Fetch a prebuilt llama.cpp that chooses its kernels for this processor, or take a build of your own, and use it
    from now on. Nothing is compiled; what is fetched is pinned by its hash.

    Example: dfqs runtime install
    """
    if library is not None:
        if archive is not None or no_use:
            raise UsageError("--library takes a build where it lies; it goes with neither --archive nor --no-use")
        _use(_checked(find_own_library(library, "--library")))
    else:
        package = next((package for package in PACKAGES if package.name == name), None)
        if package is None:
            raise UsageError(f"no package of the name '{name}'; there is {', '.join(each.name for each in PACKAGES)}")
        with progress_bar("installing") as progress:
            path = install_package(package, archive, progress=progress)
        _ask(path)
        if not no_use:
            _use(choose_package(package))
        else:
            note(f"installed; for one command: {LIBRARY_VARIABLE}={package.name} dfqs ...")
    _show(json_)


@app.command()
def use(
    runtime: Annotated[
        str, typer.Argument(help="`wheel`, an installed package's name, or a path.", show_default=False)
    ],
    json_: Json = False,
) -> None:
    """Use another llama.cpp from now on. It is loaded and checked before anything is written down.

    Example: dfqs runtime use wheel
    """
    package = find_package(runtime)
    if runtime == WHEEL_NAME:
        _use(None)
    elif package is not None:
        choice = choose_package(package)
        _ask(Path(choice.library))
        _use(choice)
    elif any(package.name == runtime for package in PACKAGES):
        raise UsageError(f"{runtime} is not installed; run 'dfqs runtime install {runtime}'")
    else:
        _use(_checked(find_own_library(Path(runtime), "the argument")))
    _show(json_)


def _checked(library: Path) -> RuntimeChoice:
    return choose_own(library, _ask(library).release)


def _ask(library: Path) -> RuntimeFacts:
    """Load it in a worker, where it is held against what is known of its build."""
    with Worker(env={LIBRARY_VARIABLE: str(library)}) as worker:
        return worker.call(describe_runtime)


def _use(choice: RuntimeChoice | None) -> None:
    write_choice(choice)
    used = f"{PACKAGE} {installed_version()} (the wheel)" if choice is None else choice.name
    back = "" if choice is None else "; back: dfqs runtime use wheel"
    note(f"from now on: {used}{back}")


def _show(json_: bool) -> None:
    chosen = chosen_library()
    with Worker() as worker:
        facts = worker.call(describe_runtime)
    document = RuntimeDocument.of(chosen, facts, f"{PACKAGE} {installed_version()}")
    emit(document, json_, lambda: _print(document))


def _print(document: RuntimeDocument) -> None:
    why = {"default": "", "environment": f" (by {LIBRARY_VARIABLE})", "chosen": " (by dfqs runtime use)"}[document.why]
    rows = [
        ("runtime", f"{document.name}{why}"),
        ("llama.cpp", f"{document.release}; it says llama {document.llama_version}, ggml {document.ggml_version}"),
        ("library", document.library),
        ("uses of this CPU", " ".join(document.features) or "nothing beyond the architecture's base"),
        ("leaves unused", " ".join(document.unused) or "nothing that it has kernels for"),
        ("threads", "OpenMP" if document.openmp else "its own"),
    ]
    if document.release != WHEEL.release or document.why != "default":
        rows.append(("serve", f"{document.server}: the wheel's own server, whatever is chosen here"))
    out.print_table(key_value_table(rows))
    for package in document.packages:
        state = "installed" if package.installed else f"{format_bytes(package.download_bytes)} to fetch"
        blocked = f"; cannot run here: {package.blocked}" if package.blocked else ""
        out.print(f"other: {package.name}, {package.release}, {state}: {package.about}{blocked}")
