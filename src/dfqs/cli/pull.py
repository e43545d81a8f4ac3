"""`dfqs pull`: a model's shards from the Hub straight into one file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dfqs.cli.documents.pull import PullDocument
from dfqs.cli.fetching import fetch, write_pulled_manifest
from dfqs.cli.options import Align, Json
from dfqs.cli.output import emit, note, print_plain, warn
from dfqs.errors import SpaceError, UsageError, printable
from dfqs.integrity.manifest import check_manifest_place
from dfqs.model.hashes import ModelDigest
from dfqs.pull import (
    Hub,
    PullPlan,
    RetryPolicy,
    forget_pull,
    hub_endpoint,
    output_path,
    plan_pull,
    require_room,
)
from dfqs.shards.hub_address import parse_hub_address
from dfqs.storage.atomic import check_output_path
from dfqs.units import format_bytes, parse_size


def command(
    repo: Annotated[
        str,
        typer.Argument(
            help="OWNER/NAME, OWNER/NAME@REVISION, OWNER/NAME:PATTERN, or the address of a page or file of the Hub.",
            show_default=False,
        ),
    ],
    pattern: Annotated[
        str | None, typer.Argument(help="Which model: a part of its name (Q4_K_M), or a pattern with *.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The file to write, or the directory to write it in.")
    ] = Path(),
    plan_only: Annotated[
        bool, typer.Option("--plan", "--dry-run", help="Show what would be fetched and whether it fits; fetch nothing.")
    ] = False,
    connections: Annotated[int, typer.Option("--connections", min=1, max=64, help="Most ranges at once.")] = 8,
    chunk: Annotated[str, typer.Option("--chunk", help="Bytes asked for at once on a connection.")] = "16MiB",
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds without a byte before a retry.")] = 30.0,
    retries: Annotated[int, typer.Option("--retries", min=0, help="Failures in a row before giving up.")] = 8,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Do not look into the local Hub cache.")] = False,
    align: Align = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an unfinished pull of another version fetched.")
    ] = False,
    no_manifest: Annotated[bool, typer.Option("--no-manifest", help="Do not write OUT.manifest.json.")] = False,
    json_: Json = False,
) -> None:
    """Fetch a model from the Hub into one file: each byte written once, to its final place, every shard checked against
    the Hub's hash. Interrupted in any way, the same command goes on. HF_TOKEN and HF_ENDPOINT are honoured.

    Example: dfqs pull teamblobfish/DeepSeek-V4-Flash-GGUF IQ1_S-XL -o v4-flash.gguf
    """
    retry = RetryPolicy(attempts=retries, stall_s=timeout, tell=warn)
    hub = Hub(retry=retry)
    plan = _plan(
        repo, pattern, hub, chunk_bytes=parse_size(chunk), retry=retry, connections=connections, alignment=align
    )
    out_path = output_path(output, plan.choice)
    for line in plan.notes:
        warn(line)
    if plan_only:
        _show_plan(plan, hub, out_path, use_cache=not no_cache, json_=json_)
        return
    if not no_manifest:
        check_manifest_place(out_path)
    recorder = None if no_manifest else ModelDigest
    options: dict[str, Any] = {"connections": connections, "retry": retry, "use_cache": not no_cache}
    result = fetch(plan, hub, out_path, restart=restart, recorder_for=recorder, **options)
    manifest = None if no_manifest else write_pulled_manifest(plan, result)
    forget_pull(out_path)
    found = PullDocument.of(plan, out_path, hub, use_cache=not no_cache, result=result, manifest=manifest)
    emit(found, json_, lambda: _show_result(found))


def _plan(repo: str, pattern: str | None, hub: Hub, **options: Any) -> PullPlan:
    address = parse_hub_address(repo, endpoint=hub_endpoint())
    if pattern is not None and address.pattern is not None:
        raise UsageError(f"'{printable(repo)}' says which model is meant already; leave out '{printable(pattern)}'")
    return plan_pull(hub, address.repo, revision=address.revision, pattern=pattern or address.pattern, **options)


def _show_result(found: PullDocument) -> None:
    did = "done already:" if found.done_already else "wrote"
    where = f"{found.repo}@{found.commit[:12]}"
    print_plain(f"{did} {found.output}: {format_bytes(found.file_bytes)}, every file as {where} has it")
    if found.content_sha256 is not None:
        print_plain(f"content_sha256  {found.content_sha256}")


def _show_plan(plan: PullPlan, hub: Hub, out_path: Path, *, use_cache: bool, json_: bool) -> None:
    if not out_path.parent.is_dir():
        raise UsageError(f"no such directory: {out_path.parent}")
    check_output_path(out_path)
    room = None
    try:
        require_room(plan, out_path)
    except SpaceError as error:
        room = error
    found = PullDocument.of(plan, out_path, hub, use_cache=use_cache, fits=room is None)

    def show() -> None:
        print_plain(f"{found.repo}@{found.revision} (commit {found.commit}):")
        for entry in found.files:
            where = "  (in the local Hub cache)" if entry.cached else ""
            print_plain(f"  {printable(entry.name, 120)}  {format_bytes(entry.bytes)}{where}")
        here = sum(entry.bytes for entry in found.files if entry.cached)
        print_plain(f"would fetch {format_bytes(found.remote_bytes - here)} over the network")
        if found.already_on_disk_bytes:
            note("an unfinished pull is there; what it fetched is checked and not fetched again")
        print_plain(f"would write {found.output}: {format_bytes(found.file_bytes)}, {found.tensors:,} tensors")
        print_plain("it fits" if room is None else f"it does not fit: {room}")

    emit(found, json_, show)
