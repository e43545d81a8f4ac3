"""`dfqs deploy`: a model into the systems that people already use, and out of them again."""

import contextlib
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.deploy_text import show_deployment, show_list, show_undone
from dfqs.cli.documents.deploy import DeployDocument, DeployEndpoint, UndoDocument, endpoint_record
from dfqs.cli.drawing import progress_bar
from dfqs.cli.options import ChatTemplate, DryRun, Force, Json, ObtainedModelIfAny, Yes, model_file
from dfqs.cli.output import emit, note, warn
from dfqs.cli.source import find_kept_path, is_local, kept_path, obtain_model, open_source
from dfqs.errors import NetworkError, RuntimeFailure, UsageError, printable
from dfqs.model.files import ModelFiles, open_model
from dfqs.records import readable_text
from dfqs.runtime.template_file import read_template
from dfqs.serving.addresses import DEFAULT_HOST, DEFAULT_PORT, check_address
from dfqs.targets.catalogue import all_targets, find_target
from dfqs.targets.contract import Endpoint, LocalModel, Target
from dfqs.targets.deploy import (
    DEFAULT_ENDPOINT,
    Asked,
    Placing,
    Prepared,
    deploy,
    find_endpoint,
    model_path,
    prepare,
)
from dfqs.targets.kept import find_deployments
from dfqs.targets.listing import list_targets, why_blocked
from dfqs.targets.live import prove_live
from dfqs.targets.look import read_site
from dfqs.targets.model import local_model
from dfqs.targets.serving import Served, run_in_terminal, served
from dfqs.targets.undo import undo_deployment
from dfqs.targets.verify import Verification

TargetName = Annotated[
    str | None, typer.Argument(help="A system that --list shows: ollama, lm-studio, pi, ...", show_default=False)
]
Copy = Annotated[
    bool | None,
    typer.Option(
        "--copy/--link", help="How a system gets its file.", show_default="hard link, else symlink, else copy"
    ),
]
Live = Annotated[
    bool, typer.Option("--live", help="Ask through the client, and hold what it prints against the answer.")
]


def command(
    target: TargetName = None,
    model: ObtainedModelIfAny = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the systems, and what stands in the way.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take back what deploying wrote, byte for byte.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the model meanwhile, and start the client in this terminal.")
    ] = False,
    copy: Copy = None,
    name: Annotated[
        str | None, typer.Option("--name", help="To list the model under.", show_default="the file's")
    ] = None,
    ctx: Annotated[
        int | None, typer.Option("--ctx", help="Context in tokens.", min=1, show_default="as trained, at most 65536")
    ] = None,
    endpoint: Annotated[str, typer.Option("--endpoint", help="Address of the server for clients.")] = DEFAULT_ENDPOINT,
    api_key: Annotated[
        str | None, typer.Option("--api-key", help="The server's key.", envvar="DFQS_API_KEY", show_default=False)
    ] = None,
    chat_template: ChatTemplate = None,
    yes: Yes = False,
    force: Force = False,
    live: Live = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Bring a model into a system that people already use: llama.cpp, LM Studio, Jan, Ollama, Pi, Hermes and others.
    Entries and comments of your own stay; the model is linked where that is possible and never moved; --undo takes
    everything back.

    Example: dfqs deploy lm-studio model.gguf
    """
    if list_:
        _list(target if model is None else None, json_)
        return
    if target is None or model is None:
        raise UsageError("name a system and a model (dfqs deploy ollama model.gguf); --list shows the systems")
    chosen = find_target(target)
    if undo:
        _undo(chosen, model, json_)
        return
    placing: Placing | None = None if copy is None else "copy" if copy else "link"
    if live and (chosen.takes != "endpoint" or dry_run):
        raise UsageError("--live asks a client's server; it goes with clients, and without --dry-run")
    if chat_template is not None and not serve:
        raise UsageError("--chat-template is for the server that --serve starts; a running one has its own")
    read_template(chat_template)
    files = _obtain(chosen, model, ctx, yes=yes, force=force, dry_run=dry_run)
    local = local_model(files, name=name, context_tokens=ctx)
    if files.label is not None:
        note(f"note: {files.label}")
    if serve:
        serving = partial(served, context_tokens=ctx or local.context_tokens, api_key=api_key)
        serving = partial(serving, Path(local.path), chat_template=chat_template)
        _deploy_served(chosen, files, local, placing, serving, live=live, dry_run=dry_run, json_=json_)
        return
    asked = find_endpoint(endpoint, local, api_key=api_key, context_tokens=ctx)
    if chosen.takes == "endpoint" and not asked.answered:
        warn(f"nothing answers at {asked.endpoint.base_url}; start it with: dfqs serve {model}, or give --serve")
    _deploy(prepare(chosen, files, local, asked, placing=placing), live=live, dry_run=dry_run, json_=json_)


def _obtain(target: Target, source: str, ctx: int | None, *, yes: bool, force: bool, dry_run: bool) -> ModelFiles:
    """The model's files; one of the Hub is fetched, once, where by its headers nothing stands in the way.

    Raises:
        UsageError: the system cannot have it; or it is not kept here, and nothing may be written.
        As `obtain_model`.
    """
    if dry_run or is_local(source) or find_kept_path(source) is not None:
        return open_model(kept_path(source))
    if target.takes != "endpoint":
        headers = open_source(source)
        site = read_site((target,), probe=True)
        if (reason := why_blocked(target, site, local_model(headers, context_tokens=ctx), headers)) is not None:
            raise UsageError(f"{target.title} cannot have {printable(source, 200)} here: {reason}; nothing was fetched")
    return obtain_model(source, context_tokens=ctx, force=force, yes=yes)


def _list(source: str | None, json_: bool) -> None:
    files = open_source(source) if source is not None else None
    local = local_model(files) if files is not None else None
    targets = all_targets()
    document = list_targets(targets, read_site(targets, probe=True), local, files)
    emit(document, json_, lambda: show_list(document))


def _deploy(prepared: Prepared, *, live: bool, dry_run: bool, json_: bool) -> None:
    ways: dict[str, str] = {}
    verification: Verification | None = None
    backups = None
    if not dry_run:
        with progress_bar("copying") as progress:
            deployment, verification = deploy(prepared, progress=progress, say=note)
        if deployment is not None:
            backups = str(prepared.directory)
            ways = {part.path: part.way for part in deployment.parts if part.way is not None}
        if not prepared.plan.is_needed:
            ways = {}
        if live:
            verification = _proved(prepared, verification)
    document = DeployDocument.of(
        prepared.target,
        prepared.model,
        prepared.rendering,
        prepared.plan,
        prepared.site.system,
        endpoint=_endpoint(prepared),
        ways=ways,
        verification=verification,
        backups=backups,
        dry_run=dry_run,
    )
    emit(document, json_, lambda: show_deployment(document))
    if document.wrong or (live and document.level != "live"):
        raise typer.Exit(1)


def _proved(prepared: Prepared, verification: Verification) -> Verification:
    """What is known when a question was asked through the client."""
    note(f"asking through {prepared.target.title}, with a configuration of its own; that can take minutes")
    with tempfile.TemporaryDirectory() as folder:
        proof = prove_live(prepared.target, prepared.model, prepared.asked.endpoint, Path(folder))
    if proof.live:
        return Verification("live", verification.wrong, None)
    return Verification(verification.level, verification.wrong, f"not live: {proof.reason}")


def _endpoint(prepared: Prepared) -> DeployEndpoint | None:
    if prepared.target.takes != "endpoint":
        return None
    return endpoint_record(prepared.asked.endpoint, answered=prepared.asked.answered)


def _deploy_served(
    target: Target,
    files: ModelFiles,
    local: LocalModel,
    placing: Placing | None,
    serving: Callable[..., AbstractContextManager[Served]],
    *,
    live: bool,
    dry_run: bool,
    json_: bool,
) -> None:
    """Serve the model, tell the client, and give it the terminal; the server ends with it."""
    if target.takes != "endpoint":
        raise UsageError(f"--serve is for clients of a server; {target.title} runs the model by itself")
    if dry_run:
        raise UsageError("--serve starts a server, which is more than --dry-run may; leave one of the two out")
    # What the client would refuse is said before a model is loaded for minutes.
    trained = files.spec.context_tokens or local.context_tokens
    expected = Endpoint(DEFAULT_ENDPOINT, local.name, min(local.context_tokens, trained))
    prepare(target, files, local, Asked(expected, answered=True), placing=placing)
    with serving(port=_free_port()) as server:
        prepared = prepare(target, files, local, Asked(server.endpoint, answered=True), placing=placing)
        _deploy(prepared, live=live, dry_run=False, json_=json_)
        first = prepared.rendering.use[0]
        if sys.stdin.isatty() and first.words[0] in prepared.site.programs:
            run_in_terminal(first)
            return
        note("serving until Ctrl-C")
        with contextlib.suppress(KeyboardInterrupt):
            raise RuntimeFailure(f"dfqs serve ended with exit code {server.wait()}")


def _free_port() -> int:
    """The usual one, so that a client's configuration stays the same; 0, any, where it is taken."""
    try:
        check_address(DEFAULT_HOST, DEFAULT_PORT)
    except NetworkError:
        return 0
    return DEFAULT_PORT


def _undo(target: Target, source: str, json_: bool) -> None:
    # The model need not be there any more.
    model = model_file(source)
    found = list(find_deployments(target.name, readable_text(model_path(model))))
    if not found:
        raise UsageError(f"{model} was not deployed to {target.title} from here, or that was undone already")
    lines: list[str] = []
    for directory, _ in found:
        undo_deployment(directory, say=lines.append)
    document = UndoDocument(target=target.name, model=model_path(model), done=tuple(lines))
    emit(document, json_, lambda: show_undone(document))
