"""`dfqs publish`: a model to the Hub, with everything that says what it is."""

from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.card import Author, BaseModel, ModelIndex, With, card_options
from dfqs.cli.documents.publish import PublishDocument
from dfqs.cli.drawing import progress_bar
from dfqs.cli.options import DryRun, Json, Model
from dfqs.cli.output import emit, err, note, print_plain, warn
from dfqs.errors import UsageError
from dfqs.pull.hub import hub_endpoint
from dfqs.report.publish import Action, publish, read_remote, require_own_files
from dfqs.report.publish_files import gather_published, open_publishable
from dfqs.report.reading import read_reported
from dfqs.targets.catalogue import usage_lines
from dfqs.units import format_bytes


def command(
    model: Model,
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub.", show_default=False)],
    report: Annotated[
        Path | None,
        typer.Option("--report", help="A directory of dfqs eval, or a report.json: for the card.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it. Without this nothing is uploaded.")] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public. One that is there stays as it is.")
    ] = False,
    author: Author = None,
    base_model: BaseModel = None,
    model_index: ModelIndex = False,
    with_: With = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a card, citation or preset that dfqs did not write.")
    ] = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Publish a model, its manifest and signature, and with --report its card, report and page, in one commit.

    Says what it would do; --yes does it. A new repository is private unless --public. The same command goes on after an
    interruption. HF_TOKEN and HF_ENDPOINT are honoured.

    Example: dfqs publish model.gguf me/model-GGUF --report results --yes
    """
    if yes and dry_run:
        raise UsageError("--yes and --dry-run ask for opposite things; leave one out")
    options = card_options(repo, author, base_model, model_index)
    assert options.repo is not None
    open_publishable(model)
    reported = read_reported(report) if report is not None else None
    # Before a whole file is read for its hash.
    remote = read_remote(options.repo)
    with progress_bar("hashing") as hashing:
        published = gather_published(
            model, reported, options, usage_lines, documents=with_ or (), write=yes, progress=hashing
        )
    if not overwrite:
        require_own_files(remote, published.files)
    pending = any(remote.action(file) is not Action.UNCHANGED for file in published.files)
    commit = None
    if yes and pending:
        try:
            with progress_bar("uploading") as uploading:
                commit = publish(
                    remote, published.files, private=not public, bars=err.is_terminal and not json_, progress=uploading
                )
        except KeyboardInterrupt:
            note("nothing was committed; the same command goes on, and what the Hub's storage has is not sent again")
            raise
    document = PublishDocument.of(hub_endpoint(), remote, published, not public, commit, not yes)
    for line in (*document.notes, *document.warnings):
        warn(line)
    emit(document, json_, lambda: _show(document))


def _show(document: PublishDocument) -> None:
    kind = {True: "private", False: "public", None: "of unknown visibility"}[document.private]
    there = "there already" if document.exists else "new"
    print_plain(f"{document.endpoint}/{document.repo} ({there}, {kind}):")
    for file in document.files:
        print_plain(f"  {file.action:<10}{file.name}  {format_bytes(file.bytes)}")
    if document.done_already:
        print_plain("everything is there already")
    elif document.commit is not None:
        print_plain(f"published {format_bytes(document.upload_bytes)} as commit {document.commit}")
    else:
        print_plain(f"nothing was uploaded; --yes uploads {format_bytes(document.upload_bytes)}")
