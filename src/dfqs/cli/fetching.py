"""A model of the Hub, here: pulled to where the user says, or once to where models are kept under their name."""

import importlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dfqs.cli.asking import confirm
from dfqs.cli.drawing import progress_bar
from dfqs.cli.output import note, warn
from dfqs.cli.remote import patient_hub
from dfqs.errors import NetworkError, UsageError, printable
from dfqs.integrity.manifest import (
    Manifest,
    Provenance,
    SourceFile,
    manifest_of,
    manifest_path,
    write_manifest,
)
from dfqs.model.hashes import ModelDigest
from dfqs.progress import Progress, no_progress
from dfqs.pull import (
    Hub,
    KeptModel,
    PullPlan,
    PullResult,
    find_kept,
    forget_pull,
    hub_endpoint,
    keeping,
    plan_pull,
    pull,
    require_room,
    select_kept,
)
from dfqs.pull.output import journal_path, part_path, taken_bytes
from dfqs.shards.hub_address import HubAddress, parse_hub_address
from dfqs.storage.space import free_bytes
from dfqs.units import format_bytes, format_number_of

ASKED_ABOVE_BYTES = 2_000_000_000
"""To be fetched: more is not begun without a word of the user."""


def find_local(source: str) -> KeptModel | None:
    """The model that was kept under this name; nobody is asked.

    Raises:
        UsageError: it is no name of a model.
    """
    return find_kept(parse_hub_address(source, endpoint=hub_endpoint()), hub_endpoint())


def keep_model(
    source: str, *, context_tokens: int | None = None, ram: str | None = None, force: bool = False, yes: bool = False
) -> Path:
    """The file of a model of the Hub: as it is kept here, or pulled now, after a look at memory and disk.

    Args:
        context_tokens, ram, force: with which it will be loaded.
        yes: fetch it however large it is.

    Raises:
        UsageError: no such model, several, or the user does not want it.
        SpaceError: it fits neither into memory nor onto the disk, as far as headers tell.
        DfqsError: as `plan_pull` and `pull`.
    """
    kept = find_local(source)
    if kept is None:
        address = parse_hub_address(source, endpoint=hub_endpoint())
        hub = patient_hub()
        try:
            plan = plan_pull(hub, address.repo, revision=address.revision, pattern=address.pattern)
        except NetworkError as error:
            return _only_kept(address, error).path
        load = None if force else (context_tokens, ram)
        kept = fetch_kept(hub, plan, address, load=load, yes=yes)
    note(f"{kept.name}: {kept.path}")
    return kept.path


def fetch_kept(
    hub: Hub, plan: PullPlan, address: HubAddress, *, load: tuple[int | None, str | None] | None, yes: bool
) -> KeptModel:
    """A planned model, fetched to where models are kept, unless it is there already.

    Args:
        load: how it will be loaded, for a look at memory beforehand; None: nobody is going to load it, or at any price.
        yes: do not ask.

    Raises:
        As `keep_model`.
    """
    for line in plan.notes:
        warn(line)
    with keeping(plan, address, lambda: note("another dfqs is fetching it; waiting for that")) as kept:
        if kept.is_whole:
            return kept
        _look_ahead(plan, kept, load, yes=yes)
        # In a directory of ours what belongs to no journal is what a kill left before there was one.
        restart = part_path(kept.path).exists() and not journal_path(kept.path).exists()
        result = fetch(plan, hub, kept.path, restart=restart, recorder_for=ModelDigest)
        write_pulled_manifest(plan, result)
        forget_pull(kept.path)
    return kept


def _look_ahead(plan: PullPlan, kept: KeptModel, load: tuple[int | None, str | None] | None, *, yes: bool) -> None:
    """Say in a line what is going to be fetched and whether it fits, and ask where it is much."""
    require_room(plan, kept.path)
    here, files = taken_bytes(kept.path), format_number_of(len(plan.layouts), "file")
    parts = [f"{format_bytes(plan.file_bytes)} in {files}"]
    if here:
        parts.append(f"{format_bytes(here)} of it here already")
    parts.append(f"{format_bytes(free_bytes(kept.directory))} free on the disk")
    if load is not None:
        # Who only fetches does not wait for what knows about memory.
        parts.append(importlib.import_module("dfqs.cli.foreseeing").memory_words(plan, *load))
    note(f"{kept.name}: {'; '.join(parts)}")
    missing = max(plan.fetch_bytes - here, 0)
    if yes or missing <= ASKED_ABOVE_BYTES:
        return
    if not confirm(f"fetch {format_bytes(missing)} to {kept.directory}?", f"fetch {format_bytes(missing)}"):
        raise UsageError("not fetched")


def _only_kept(address: HubAddress, error: NetworkError) -> KeptModel:
    """Without the Hub: what is kept, where it can be no other."""
    found = [kept for kept in select_kept(address) if kept.is_whole]
    if len(found) != 1:
        raise error
    warn(f"{error}; taking the one that is kept")
    return found[0]


def fetch(plan: PullPlan, hub: Hub, out_path: Path, **options: Any) -> PullResult:
    """Pull with bars; what is interrupted says how it goes on."""
    with _Bars() as bars:
        try:
            result = pull(plan, hub, out_path, progress=bars.of("pulling"), checking=bars.of("checking"), **options)
        except KeyboardInterrupt:
            note(f"what was fetched is kept in {out_path.name}.part; the same command goes on from there")
            raise
    for line in result.refetched_chunks:
        warn(f"fetched again: {printable(line, 200)}")
    return result


def write_pulled_manifest(plan: PullPlan, result: PullResult) -> Manifest:
    """What was fetched and from where, beside the model."""
    listing = plan.listing
    provenance = Provenance(
        repo=listing.repo,
        revision=listing.revision,
        commit=listing.commit,
        endpoint=listing.endpoint,
        shards=[SourceFile(name=x.file.name, bytes=x.file.size, sha256=x.file.sha256) for x in plan.layouts],
    )
    # The hashes of the very bytes that were checked before the model got its name.
    assert isinstance(result.recorder, ModelDigest)
    manifest = manifest_of(result.path.name, result.recorder.result(), provenance)
    if not (result.done_already and manifest_path(result.path).is_file()):
        note(f"wrote {write_manifest(result.path, manifest)}")
    return manifest


class _Bars:
    """One bar after the other: the one that is drawn is that of the work that reports."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._label: str | None = None
        self._draw: Progress = no_progress

    def of(self, label: str) -> Progress:
        """Draws the work of that name; the bar of another is taken away."""

        def draw(done: int, total: int | None = None, note: str = "") -> None:
            if label != self._label:
                self._stack.close()
                self._label, self._draw = label, self._stack.enter_context(progress_bar(label))
            self._draw(done, total, note)

        return draw

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
