"""Takes a deployment back: every file as it was, byte for byte, where nobody changed it since.

Where the user did, only our values go, and theirs stay. A model's last name is never removed. Each step can be done
again, so that a killed undo is ended by the same command.
"""

import contextlib
import os
import subprocess
from pathlib import Path

from dfqs.errors import FormatError, UsageError, printable
from dfqs.storage.atomic import atomic_writer, fsync_directory
from dfqs.storage.cache import cache_lock
from dfqs.targets.formats import FORMATS
from dfqs.targets.kept import (
    RECORD_NAME,
    Deployment,
    PartRecord,
    find_deployments,
    read_deployment,
    write_deployment,
)
from dfqs.targets.plan import read_config, sha256
from dfqs.targets.values import take_back_edits
from dfqs.targets.write import Say, clear_partials, say_nothing

Others = list[tuple[Path, Deployment]]
"""Further deployments that are kept, with their directories."""


def undo_deployment(directory: Path, *, say: Say = say_nothing) -> Deployment:
    """Take back what the record in a directory says, and forget it.

    Args:
        say: told a line for each thing that is done, or left as it is.

    Raises:
        UsageError: there is no such deployment.
        FormatError: a configuration does not parse any more, so that nothing can be taken out of it.
    """
    with cache_lock("deploy"):
        deployment = read_deployment(directory)
        if deployment is None:
            raise UsageError("nothing was deployed here, or it was undone already")
        for words in deployment.undone_by:
            _tell_system(words, say)
        others = _others(directory)
        # Configurations before what they point to.
        for part in sorted(deployment.parts, key=lambda part: part.kind == "link"):
            if part.kind == "link":
                _unlink(part, say)
                continue
            _hand_on(part, directory, others)
            _restore(part, directory, others, say)
        _hand_on_directories(deployment, _others(directory))
        for path in sorted(deployment.directories, key=len, reverse=True):
            # Only where nothing is in it.
            with contextlib.suppress(OSError):
                Path(path).rmdir()
        forget(directory)
        return deployment


def forget(directory: Path) -> None:
    """Remove a record, and then its back-ups: without the record they are nobody's."""
    (directory / RECORD_NAME).unlink(missing_ok=True)
    fsync_directory(directory)
    for backup in directory.glob("*.before"):
        backup.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()


def _others(directory: Path) -> Others:
    return [found for found in find_deployments() if found[0] != directory]


def _hand_on_directories(deployment: Deployment, others: Others) -> None:
    """Directories that we made and others use are theirs to remove."""
    for place, other in others:
        used = [
            made
            for made in deployment.directories
            if made not in other.directories and any(Path(part.path).is_relative_to(made) for part in other.parts)
        ]
        if used:
            write_deployment(place, other.model_copy(update={"directories": (*other.directories, *used)}))


def _hand_on(part: PartRecord, directory: Path, others: Others) -> None:
    """Give what was there before to the deployment that found ours there: it is what it will have to restore."""
    for place, other in others:
        later = other.part_at(Path(part.path))
        if later is None or later.before_sha256 is None or later.before_sha256 != part.after_sha256:
            continue
        name = later.before if part.before is not None else None
        if name is not None and part.before is not None:
            with atomic_writer(place / f"handed-{name}", overwrite=True) as file:
                file.write((directory / part.before).read_bytes())
            name = f"handed-{name}"
        # By its bytes it can not be restored any more: there is no state of the file that was its "before".
        changed = {"before": name, "before_sha256": part.before_sha256, "edited": True}
        write_deployment(place, other.with_part(later.model_copy(update=changed)))


def _restore(part: PartRecord, directory: Path, others: Others, say: Say) -> None:
    """A configuration or a file of ours: as it was, or without our values."""
    path = Path(part.path)
    now = path.read_bytes() if os.path.lexists(path) and path.is_file() else None
    clear_partials(path)
    found = sha256(now) if now is not None else None
    if found == part.before_sha256:
        return
    if found == part.after_sha256 and not part.edited:
        if part.before is None:
            path.unlink()
            fsync_directory(path.parent)
            say(f"removed: {path}")
        else:
            _write(path, (directory / part.before).read_bytes())
            say(f"as it was: {path}")
        return
    if now is None or part.kind == "file":
        say(f"left as it is, for it was changed since: {path}")
        return
    claimed = [edit for _, other in others if (shared := other.part_at(path)) is not None for edit in shared.edits]
    kept = part.model_copy(update={"edits": tuple(edit for edit in part.edits if edit not in claimed)})
    _take_values_out(kept, directory, path, now, say)


def _take_values_out(part: PartRecord, directory: Path, path: Path, now: bytes, say: Say) -> None:
    assert part.format is not None
    config = read_config(path)
    assert config is not None
    text, mark = config
    before = None
    if part.before is not None:
        before = (directory / part.before).read_bytes().decode("utf-8-sig")
    edits = [edit.edit() for edit in part.edits]
    try:
        left = take_back_edits(FORMATS[part.format], text, edits, before)
    except FormatError as error:
        why = f"{error.detail}; it was changed since, take our values out by hand and undo again"
        raise FormatError(why, path=path, name=error.name) from None
    after = mark + left.encode("utf-8")
    if part.before is None and FORMATS[part.format].read(left) in ({}, {"": {}}) and not left.strip("{} \t\r\n"):
        path.unlink()
        say(f"removed: {path}")
    elif after != now:
        _write(path, after)
        say(f"our values taken out, what was changed since stays: {path}")
    else:
        say(f"left as it is, for our values are not in it any more: {path}")


def _unlink(part: PartRecord, say: Say) -> None:
    """A name that was given to a model's file; never its last one."""
    path, source = Path(part.path), Path(part.source or "")
    clear_partials(path)
    try:
        state = path.lstat()
    except OSError:
        return
    is_source = False
    with contextlib.suppress(OSError):
        is_source = path.samefile(source)
    if not path.is_symlink() and not source.exists():
        say(f"kept, for {source} is gone and this is the model: {path}")
        return
    dangling = path.is_symlink() and os.readlink(path) == str(source)  # noqa: PTH115
    if state.st_ino != part.inode and not (part.inode is None and is_source) and not dangling:
        say(f"left as it is, for it is another file by now: {path}")
        return
    path.unlink()
    fsync_directory(path.parent)
    say(f"removed: {path}")


def _tell_system(words: tuple[str, ...], say: Say) -> None:
    """Have a system forget what it was told; where it cannot, say so and go on."""
    line = " ".join(words)
    say(f"running: {line}")
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=2, check=False)
    except OSError as error:
        say(f"'{printable(line, 200)}' could not be started ({error.strerror}); run it by hand where it is needed")
        return
    if done.returncode != 0:
        say(f"'{printable(line, 200)}' ended with exit code {done.returncode}; look whether it is needed still")


def _write(path: Path, data: bytes) -> None:
    mode = path.stat().st_mode & 0o7777
    with atomic_writer(path, overwrite=True) as file:
        if hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), mode)
        file.write(data)
