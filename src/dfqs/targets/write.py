"""Carries out a planned deployment so that it can be cut off at any instant: nothing of the user's is lost, and the
same command again ends it.

Order: back-ups and the record, durable; directories; the model's files; configurations, each whole or not at all; what
the system itself is told; the record again.
"""

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from dfqs.errors import DfqsError, RuntimeFailure, UsageError, printable
from dfqs.progress import Progress, no_progress
from dfqs.storage.atomic import atomic_writer, fsync_directory, remove_abandoned_partials, storage_errors
from dfqs.storage.cache import cache_lock
from dfqs.storage.copying import RangeWriter
from dfqs.storage.files import open_to_read
from dfqs.storage.space import require_space
from dfqs.targets.contract import Command, ConfigEdits, Rendering, Way
from dfqs.targets.kept import Deployment, EditRecord, PartRecord, read_deployment, write_deployment
from dfqs.targets.plan import Change, Placement, WritePlan, nearest_directory, sha256, stamp_of

Say = Callable[[str], None]


def say_nothing(line: str) -> None:
    """Nobody is told."""


def write_planned(
    plan: WritePlan,
    rendering: Rendering,
    directory: Path,
    fresh: Deployment,
    *,
    register: tuple[Command, ...] = (),
    progress: Progress = no_progress,
    say: Say = say_nothing,
) -> Deployment:
    """Write all of a plan, and keep what was there before.

    Args:
        directory: of this deployment's record and back-ups.
        fresh: the record as it begins; parts and directories are filled in here.
        register: commands to run when the files are there.
        say: told a line for each thing that is done.

    Returns:
        The record of what is there now.

    Raises:
        UsageError: a file was changed while this went on, or cannot be written.
        SpaceError: the disk is full.
        RuntimeFailure: a system refused what it was told.
    """
    with cache_lock("deploy"):
        kept = read_deployment(directory)
        deployment = _begin(plan, directory, fresh, kept)
        for path in plan.directories:
            with storage_errors(path):
                path.mkdir(exist_ok=True)
                fsync_directory(path.parent)
        for place in plan.placements:
            if place.ways:
                deployment, way = _place(place, directory, deployment, progress)
                say(f"{way}: {place.path}")
        for change in plan.changes:
            if change.is_needed:
                _replace(change)
                say(f"written: {change.path}")
        for command in register:
            if kept is None or not kept.done or kept.model_stamp != fresh.model_stamp:
                say(f"running: {' '.join(command.words)}")
                run_command(command)
        done = deployment.model_copy(update={"done": True, "model_stamp": fresh.model_stamp})
        write_deployment(directory, done)
        return done


def run_command(command: Command) -> None:
    """Run a system's own program, its words on our stderr.

    Raises:
        RuntimeFailure: it failed.
    """
    environment = {**os.environ, **command.environment}
    try:
        # Its output is no data of ours.
        done = subprocess.run(command.words, stdin=subprocess.DEVNULL, stdout=2, env=environment, check=False)
    except OSError as error:
        raise RuntimeFailure(f"{printable(command.words[0])} could not be started: {error.strerror}") from None
    if done.returncode != 0:
        raise RuntimeFailure(f"'{printable(' '.join(command.words), 300)}' ended with exit code {done.returncode}")


def _begin(plan: WritePlan, directory: Path, fresh: Deployment, kept: Deployment | None) -> Deployment:
    """Keep everything that is about to be changed, durably, and say so in the record."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    parts: list[PartRecord] = list(kept.parts) if kept is not None else []
    for change in plan.changes:
        earlier = next((part for part in parts if part.path == str(change.path)), None)
        record = _change_record(change, earlier, directory, len(parts))
        if earlier is not None:
            parts[parts.index(earlier)] = record
        elif change.is_needed:
            parts.append(record)
    for place in plan.placements:
        # Before there is a link, so that a killed process leaves none that nobody knows of.
        if place.ways and not any(part.path == str(place.path) for part in parts):
            parts.append(_placed_record(place))
    directories = [*(kept.directories if kept is not None else ()), *map(str, plan.directories)]
    deployment = fresh.model_copy(
        update={
            "done": False,
            "parts": tuple(parts),
            "directories": tuple(dict.fromkeys(directories)),
            "model_stamp": kept.model_stamp if kept is not None else "",
        }
    )
    write_deployment(directory, deployment)
    return deployment


def _change_record(change: Change, earlier: PartRecord | None, directory: Path, number: int) -> PartRecord:
    """What is kept of a file; of one that was deployed to before, what was there before that stays kept."""
    config = change.part if isinstance(change.part, ConfigEdits) else None
    edits = tuple(map(EditRecord.of, config.edits)) if config is not None else ()
    record = PartRecord(
        path=str(change.path),
        kind="config" if config is not None else "file",
        format=config.format if config is not None else None,
        edits=edits,
        after_sha256=sha256(change.after),
    )
    if earlier is not None:
        now = sha256(change.before) if change.before is not None else None
        gone_on = now not in (earlier.before_sha256, earlier.after_sha256)
        known = [edit for edit in earlier.edits if edit.way not in [new.way for new in edits]]
        return record.model_copy(
            update={
                "before": earlier.before,
                "before_sha256": earlier.before_sha256,
                "edited": earlier.edited or gone_on,
                "edits": (*known, *edits),
            }
        )
    if change.before is None:
        return record
    name = f"{number}.before"
    _write(directory / name, change.before, 0o600)
    return record.model_copy(update={"before": name, "before_sha256": sha256(change.before)})


def _replace(change: Change) -> None:
    """One file, whole or not at all, if it is still as it was planned with."""
    try:
        found = change.path.read_bytes()
    except FileNotFoundError:
        found = None
    if found != change.before:
        raise UsageError(f"{change.path} was changed while this went on; run the same command again")
    _write(change.path, change.after, change.mode)


def _write(path: Path, data: bytes, mode: int) -> None:
    with atomic_writer(path, overwrite=True) as file:
        # Keys may stand in it: nobody sees more of the new file than of the old one.
        if hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), mode)
        file.write(data)


def _place(place: Placement, directory: Path, deployment: Deployment, progress: Progress) -> tuple[Deployment, Way]:
    """Give a model's file its second name, by the first way that can be gone, and say so in the record."""
    if os.path.lexists(place.path):
        # Ours, of a file that was replaced since.
        place.path.unlink()
    for number, way in enumerate(place.ways):
        try:
            if way == "copy":
                return _copy(place, directory, deployment, progress), way
            if way == "hard link":
                os.link(place.source, place.path)
            else:
                place.path.symlink_to(place.source)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, FileExistsError):
                raise UsageError(f"{place.path} appeared while this went on; run the same command again") from None
            if number + 1 < len(place.ways):
                continue
            with storage_errors(place.path):
                raise
        fsync_directory(place.path.parent)
        deployment = deployment.with_part(_placed_record(place, way, place.path.lstat().st_ino))
        write_deployment(directory, deployment)
        return deployment, way
    raise AssertionError("there is a way")


def _copy(place: Placement, directory: Path, deployment: Deployment, progress: Progress) -> Deployment:
    """The bytes once more. The record knows the copy before it has its name."""
    require_space(
        nearest_directory(place.path.parent),
        place.bytes,
        "the model would be copied there, for it cannot be linked; free some",
    )
    told = deployment

    def tell(handle: int) -> None:
        nonlocal told
        told = deployment.with_part(_placed_record(place, "copy", os.fstat(handle).st_ino))
        write_deployment(directory, told)

    source = open_to_read(place.source)
    try:
        with atomic_writer(place.path, overwrite=True, on_whole=tell) as file:
            RangeWriter(file.fileno(), place.bytes, progress).copy(source, 0, 0, place.bytes)
    finally:
        os.close(source)
    return told


def _placed_record(place: Placement, way: Way | None = None, inode: int | None = None) -> PartRecord:
    return PartRecord(
        path=str(place.path),
        kind="link",
        source=str(place.source),
        way=way,
        inode=inode,
        source_stamp=stamp_of(place.source),
    )


def clear_partials(path: Path) -> None:
    """Remove what a killed copy left beside a path."""
    with contextlib.suppress(OSError, DfqsError):
        remove_abandoned_partials(path)
