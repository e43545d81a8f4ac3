"""`dfqs card`: a model card for the Hub, of measured values alone."""

import importlib
from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.drawing import progress_bar
from dfqs.cli.guard import check_output
from dfqs.cli.options import DryRun, Json, Model, Overwrite
from dfqs.cli.output import emit, note, print_plain, print_text, warn
from dfqs.report.card import CARD_MARK
from dfqs.report.card_files import CardFiles, CardOptions, card_document, make_card
from dfqs.report.conform_facts import gather_facts
from dfqs.report.hub_card import FILE_MARK, checked_repo
from dfqs.report.reading import read_reported
from dfqs.storage.atomic import write_bytes_atomic
from dfqs.targets.catalogue import usage_lines

BOM_MARK = b'"dfqs:content_sha256"'
_HEAD_BYTES = 1 << 18

Report = Annotated[
    Path, typer.Option("--report", help="A directory of dfqs eval, or a report.json.", show_default=False)
]
With = Annotated[
    list[Path] | None,
    typer.Option(
        "--with",
        help="A document to judge by: --json of plan, route check or route diff. Those that lie beside the report are "
        "taken by themselves.",
        show_default=False,
    ),
]
Author = Annotated[
    str | None,
    typer.Option("--author", help="Whose file it is, for the citation.", show_default="the repository's owner"),
]
BaseModel = Annotated[
    str | None,
    typer.Option("--base-model", help="OWNER/NAME that it was made of.", show_default="as the file says"),
]
ModelIndex = Annotated[
    bool, typer.Option("--model-index", help="Scores in the front matter too, in the Hub's earlier form.")
]


def command(
    model: Model,
    report: Report,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="README.md to write; CITATION.cff and .eval_results go beside it.", show_default=False
        ),
    ] = None,
    repo: Annotated[
        str | None, typer.Option("--repo", help="OWNER/NAME that it will be published under.", show_default=False)
    ] = None,
    bom: Annotated[
        Path | None, typer.Option("--bom", help="Write a CycloneDX bill of materials too.", show_default=False)
    ] = None,
    author: Author = None,
    base_model: BaseModel = None,
    model_index: ModelIndex = False,
    with_: With = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Write a model card for the Hub out of a report: only what was measured, section by section of the specification,
    with front matter, citation and a line for each system. Without --out it is printed.

    Example: dfqs card model.gguf --report results --repo me/model-GGUF --out README.md
    """
    options = card_options(repo, author, base_model, model_index)
    inputs = [model, report if report.is_file() else None, *(with_ or ())]
    for path in (out, bom):
        if path is not None:
            check_output(path, inputs, overwrite=overwrite or _is_ours(path))
    reported = read_reported(report)
    # Before the whole file is read for its hash.
    renderer = importlib.import_module("dfqs.report.bom") if bom is not None else None
    with progress_bar("hashing") as progress:
        facts = gather_facts(model, reported, with_ or (), progress=progress)
    for stranger in facts.strangers:
        warn(f"{stranger}, and was left out")
    files = make_card(facts, options, usage_lines)
    bill = renderer.render_bom(facts, options) if renderer is not None else None
    targets = _targets(files, out, inputs, overwrite=overwrite)
    if bom is not None and bill is not None:
        targets[bom] = bill
    if not dry_run:
        for path, text in targets.items():
            path.parent.mkdir(exist_ok=True)
            write_bytes_atomic(path, text.encode(), overwrite=True)
            note(f"wrote {path}")
    written = () if dry_run else tuple(map(str, targets))
    found = card_document(facts, files, repo=options.repo, bom=str(bom) if bom else None, written=written)
    emit(found, json_, lambda: print_text(files.readme) if out is None else _summary(found.not_measured))


def card_options(repo: str | None, author: str | None, base_model: str | None, model_index: bool) -> CardOptions:
    """What a user says of a card, checked.

    Raises:
        UsageError: a name that is no repository's.
    """
    return CardOptions(
        repo=checked_repo(repo) if repo is not None else None,
        author=author,
        base_model=checked_repo(base_model) if base_model is not None else None,
        model_index=model_index,
    )


def _summary(not_measured: tuple[str, ...]) -> None:
    print_plain(f"sections not measured: {', '.join(not_measured) or 'none'}")


def _targets(files: CardFiles, out: Path | None, inputs: list[Path | None], *, overwrite: bool) -> dict[Path, str]:
    """Where each file goes, refused before one of them is written."""
    if out is None:
        return {}
    found = {out: files.readme}
    for name, text in files.beside.items():
        path = out.parent / name
        if path.parent.is_dir():
            check_output(path, inputs, overwrite=overwrite or _is_ours(path))
        found[path] = text
    return found


def _is_ours(path: Path) -> bool:
    """Whether a card, a citation, results or a bill of materials of an earlier call stand there."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return head.startswith(FILE_MARK.encode()) or any(mark in head for mark in (CARD_MARK.encode(), BOM_MARK))
