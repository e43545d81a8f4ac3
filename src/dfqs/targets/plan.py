"""What deploying would change on this disk, worked out before anything is: bytes of configurations, links, space.

Configurations are anybody's. One that is no text, does not parse, is too large, or is a link out of the user's home is
left alone, with a sentence.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfqs.errors import FormatError, UsageError
from dfqs.storage.documents import read_bounded
from dfqs.storage.space import require_space
from dfqs.targets.contract import ConfigEdits, OwnFile, Placed, Rendering, Space, Way
from dfqs.targets.formats import FORMATS
from dfqs.targets.kept import Deployment
from dfqs.targets.look import CONFIG_LIMIT_BYTES
from dfqs.targets.values import apply_edits
from dfqs.units import format_bytes

_BOM = b"\xef\xbb\xbf"
_PRIVATE = 0o600
_USUAL = 0o644


@dataclass(frozen=True, slots=True)
class Change:
    """A file whose bytes change, or that is made."""

    part: ConfigEdits | OwnFile
    path: Path
    """Where the bytes are: behind the user's own link, where there is one."""
    before: bytes | None
    after: bytes
    mode: int

    @property
    def is_needed(self) -> bool:
        return self.before != self.after


@dataclass(frozen=True, slots=True)
class Placement:
    """A model's file that gets a second name or a copy."""

    source: Path
    path: Path
    ways: tuple[Way, ...]
    """In this order; none: it is there already."""
    bytes: int


@dataclass(frozen=True, slots=True)
class WritePlan:
    """All that would be written."""

    changes: tuple[Change, ...]
    placements: tuple[Placement, ...]
    directories: tuple[Path, ...]
    """To be made, outermost first."""

    @property
    def is_needed(self) -> bool:
        return any(change.is_needed for change in self.changes) or any(place.ways for place in self.placements)


def plan_write(
    rendering: Rendering,
    kept: Deployment | None,
    home: Path,
    *,
    ways: tuple[Way, ...] | None = None,
    secret: bool = False,
) -> WritePlan:
    """Look at everything that a rendering touches, and work out what becomes of it. Nothing is written.

    Args:
        kept: what an earlier deployment of the same model wrote.
        home: links of the user's may lead anywhere below it.
        ways: of placing the model's files, in place of the target's.
        secret: what is made new is for this user's eyes only.

    Raises:
        UsageError: something else is in the way.
        FormatError: a configuration does not parse.
        SpaceError: the model's files would be copied, and there is no room.
    """
    changes: list[Change] = []
    placements: list[Placement] = []
    for part in rendering.parts:
        if isinstance(part, Placed):
            placements.append(_plan_placement(part, kept, ways))
        else:
            changes.append(_plan_change(part, kept, home, secret=secret))
    paths = [change.path for change in changes] + [place.path for place in placements]
    plan = WritePlan(tuple(changes), tuple(placements), tuple(missing_directories(paths)))
    _require_room(plan)
    return plan


def require_room_for(space: Space | None) -> None:
    """Refuse a system's own copy beforehand where its disk cannot hold it.

    Raises:
        SpaceError: with the numbers.
    """
    if space is None or space.high == 0:
        return
    directory = nearest_directory(Path(space.directory))
    low, high = format_bytes(space.low), format_bytes(space.high)
    amount = high if low == high else f"{low} to {high}"
    require_space(directory, space.high, f"it would copy the model ({amount}); free some, or move its store")


def missing_directories(paths: Iterable[Path]) -> list[Path]:
    """Directories above these paths that are not there, outermost first."""
    found: set[Path] = set()
    for path in paths:
        found.update(parent for parent in path.parents if not os.path.lexists(parent))
    return sorted(found, key=lambda path: len(path.parts))


def nearest_directory(path: Path) -> Path:
    """The directory, or the first above it that is there."""
    return next((place for place in (path, *path.parents) if place.is_dir()), Path("/"))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_config(path: Path) -> tuple[str, bytes] | None:
    """A configuration's text, and what stands before it (a byte order mark); None where there is no file.

    Raises:
        UsageError: what is there is no regular file.
        FormatError: too large, or no UTF-8 text.
    """
    if not os.path.lexists(path):
        return None
    data = read_bounded(path, CONFIG_LIMIT_BYTES)
    mark = _BOM if data.startswith(_BOM) else b""
    try:
        return data[len(mark) :].decode("utf-8"), mark
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8 text; left as it is", path=path, offset=error.start) from None


def real_place(path: Path, home: Path) -> Path:
    """Where a configuration's bytes are: people keep theirs elsewhere and link to them.

    Raises:
        UsageError: the link leads out of the user's home, or nowhere.
    """
    if not path.is_symlink():
        return path
    try:
        target = path.resolve(strict=True)
        inside = target.is_relative_to(home.resolve())
    except (OSError, RuntimeError):
        raise UsageError(f"{path} is a link that leads nowhere; remove it") from None
    if not inside:
        raise UsageError(f"{path} is a link to {target}, outside {home}; nothing is written through it")
    return target


def _plan_change(part: ConfigEdits | OwnFile, kept: Deployment | None, home: Path, *, secret: bool) -> Change:
    named = Path(part.path)
    path = real_place(named, home)
    mode = _mode_of(path, secret=secret)
    if isinstance(part, OwnFile):
        after = part.text.encode("utf-8")
        found = read_bounded(path, CONFIG_LIMIT_BYTES) if os.path.lexists(path) else None
        if found is not None and found != after:
            earlier = kept.part_at(path) if kept is not None else None
            if earlier is None or earlier.after_sha256 != sha256(found):
                raise UsageError(
                    f"{path} is there already and was not written by dfqs, or was changed since; give another --name"
                )
        return Change(part, path, found, after, mode)
    config = read_config(path)
    text, mark = config if config is not None else ("", b"")
    try:
        changed = apply_edits(FORMATS[part.format], text, part.edits)
    except FormatError as error:
        why = f"{error.detail}; the file is left as it is, nothing was written"
        raise FormatError(why, path=path, name=error.name) from None
    before = mark + text.encode("utf-8") if config is not None else None
    return Change(part, path, before, mark + changed.encode("utf-8"), mode)


def _mode_of(path: Path, *, secret: bool) -> int:
    with contextlib.suppress(OSError):
        return stat.S_IMODE(path.stat().st_mode)
    return _PRIVATE if secret else _USUAL


def _plan_placement(part: Placed, kept: Deployment | None, ways: tuple[Way, ...] | None) -> Placement:
    source, path = Path(part.source), Path(part.path)
    size = source.stat().st_size
    wanted = ways if ways is not None else part.ways
    if not os.path.lexists(path):
        return Placement(source, path, _possible(source, path, wanted), size)
    state = placed_as(source, path, kept)
    if state == "foreign":
        raise UsageError(f"{path} is there already and is another file; give another --name or remove it")
    if state == "stale":
        return Placement(source, path, _possible(source, path, wanted), size)
    return Placement(source, path, (), size)


def placed_as(source: Path, path: Path, kept: Deployment | None) -> Literal["same", "copy", "stale", "foreign"]:
    """What stands where a model's file is to be: it, a copy of ours, what we made of a file that was replaced since, or
    something of somebody's."""
    with contextlib.suppress(OSError):
        if path.samefile(source):
            return "same"
    earlier = kept.part_at(path) if kept is not None else None
    if earlier is None or earlier.inode != path.lstat().st_ino:
        return "foreign"
    return "copy" if earlier.way == "copy" and earlier.source_stamp == stamp_of(source) else "stale"


def stamp_of(path: Path) -> str:
    """Tells that a file is still the one it was: size and time of change."""
    with contextlib.suppress(OSError):
        state = path.stat()
        return f"{state.st_ino}:{state.st_size}:{state.st_mtime_ns}"
    return ""


def _possible(source: Path, path: Path, ways: tuple[Way, ...]) -> tuple[Way, ...]:
    """Without a hard link where the two are on different disks."""
    other_disk = nearest_directory(path.parent).stat().st_dev != source.stat().st_dev
    possible = tuple(way for way in ways if way != "hard link" or not other_disk)
    if not possible:
        raise UsageError(f"{path} would be on another disk than {source}, where only a copy is possible: give --copy")
    return possible


def _require_room(plan: WritePlan) -> None:
    needed: dict[Path, int] = {}
    for place in plan.placements:
        if place.ways[:1] == ("copy",):
            directory = nearest_directory(place.path.parent)
            needed[directory] = needed.get(directory, 0) + place.bytes
    for directory, amount in needed.items():
        require_space(directory, amount, "the model would be copied there; free some, or leave --copy out")
