"""Merges that need no second copy of the model: what they need, said beforehand; starting, resuming, undoing them.

`in-place`: the largest shard becomes the output, its data stays where it is. `consume`: a new file grows while the
shards shrink. Both end with the output alone.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dfqs.errors import DfqsError, IntegrityError, UsageError, printable
from dfqs.gguf.shard_names import parse_shard_name, shard_paths
from dfqs.inplace.execute import WINDOW_BYTES, Place, begin, carry_on, undo
from dfqs.inplace.in_use import refuse_in_use
from dfqs.inplace.job import Freeing, Mode, State
from dfqs.inplace.journal import RESERVED_BYTES, Journal, journal_path, working_path
from dfqs.inplace.plan_consume import plan_consume
from dfqs.inplace.plan_resident import JobPlan, largest_shard, plan_in_place
from dfqs.progress import Progress, no_progress
from dfqs.shards.locks import locked_for_use
from dfqs.shards.plan import MergePlan, MergeResult, refuse_source_as_output
from dfqs.shards.provenance import require_expected_sha256
from dfqs.storage.atomic import check_output_path, storage_errors
from dfqs.storage.disk import Disk, LocalDisk, probe_insert_unit, probe_punch
from dfqs.storage.hashing import hash_file
from dfqs.storage.space import MARGIN_BYTES, require_space
from dfqs.units import format_bytes

MIN_WINDOW_BYTES = 1 << 20
"""For the file system's own notes on freed and moved ranges."""


@dataclass(frozen=True, slots=True)
class InplacePlan:
    """A merge without a second copy, checked, and what it costs."""

    merge: MergePlan
    job: JobPlan
    place: Place
    window_bytes: int
    peak_bytes: int
    """Disk space that it takes beyond what the shards take now, at most."""
    notes: tuple[str, ...]

    @property
    def moved_bytes(self) -> int:
        return self.job.job.moved_bytes


def plan_inplace(
    plan: MergePlan, out: Path, mode: Mode, *, window_bytes: int = WINDOW_BYTES, disk: Disk | None = None
) -> InplacePlan:
    """Check that the shards may be taken apart, find out what the file system can do, and plan.

    Raises:
        UsageError: a shard is a symlink, hard-linked, in use or not ours to change; the file system cannot do it; the
            output exists.
        SpaceError: not even one window fits.
    """
    disk = disk or LocalDisk()
    out = Path(out)
    place = Place(out, plan.shards[0].path.parent)
    refuse_source_as_output(plan.shards, out)
    check_output_path(out)
    if disk.identify(working_path(out)) is not None:
        raise UsageError(f"{working_path(out)} is in the way and belongs to no merge that is known here; move it")
    refuse_in_use(disk, [shard.path for shard in plan.shards])
    with storage_errors(out):
        freeing: Freeing = "punch" if probe_punch(place.shards) else "delete"
    if mode == "in-place":
        job = plan_in_place(plan, _require_insertion(disk, plan, place), freeing)
    else:
        job = plan_consume(plan, freeing)
    window_bytes, peak_bytes = _fit_window(disk, job, place, window_bytes)
    notes = list(plan.notes)
    if freeing == "delete":
        notes.append(
            f"{place.shards} is on a file system without hole punching: shards are deleted one by one as they are "
            f"merged, which takes up to {format_bytes(peak_bytes)} beyond what they take now"
        )
    return InplacePlan(plan, job, place, window_bytes, peak_bytes, tuple(notes))


def merge_inplace(
    plan: InplacePlan, *, hash_first: bool = False, disk: Disk | None = None, progress: Progress = no_progress
) -> MergeResult:
    """Merge, and remove the shards. Cut off at any instant it can be resumed with `resume_merge`.

    Shards whose bytes pass are hashed on the way; the one that stays put is not.

    Args:
        hash_first: read and hash every shard before anything is changed, and compare with what the Hub's tools wrote
            down when they fetched it.
        progress: in bytes moved.

    Raises:
        IntegrityError: a shard's hash is not the one that the Hub's tools wrote down; nothing was changed.
        SpaceError: the disk became full; nothing is lost.
        DfqsError: what stopped it.
    """
    disk = disk or LocalDisk()
    started = time.monotonic()
    known: dict[int, str] = {}
    if hash_first:
        known = _hash_all(plan.merge)
        # That took minutes; whoever opened a shard meanwhile still needs it.
        refuse_in_use(disk, [shard.path for shard in plan.merge.shards])
        plan = replace(plan, job=_with_hashes(plan.job, known))
    with locked_for_use(disk, [plan.merge.shards[0].path]):
        check_output_path(plan.place.out)
        journal = _begin(disk, plan)
        with _closing(journal):
            left = carry_on(
                disk,
                journal,
                plan.place,
                window_bytes=plan.window_bytes,
                hash_sources=not hash_first,
                progress=progress,
            )
    return _result(journal, plan.place.out, started, known, left)


def is_unfinished(out: Path) -> bool:
    """Whether a merge to `out` was begun and neither finished nor undone."""
    return os.path.lexists(journal_path(Path(out)))


def resume_merge(
    first_shard: Path,
    out: Path,
    mode: Mode,
    *,
    window_bytes: int = WINDOW_BYTES,
    hash_sources: bool = True,
    trust_journal: bool = False,
    trust_shards: bool = False,
    disk: Disk | None = None,
    progress: Progress = no_progress,
) -> MergeResult | None:
    """Go on with a merge to `out` that was cut off.

    Args:
        trust_journal: go on though the journal is not sealed by this user's dfqs on this machine.
        trust_shards: go on though shards were touched since, where nothing can tell that their bytes are the same.

    Returns:
        What was done; None when nothing had been moved yet: then all was put back, and the merge may begin anew.

    Raises:
        UsageError: another process works on it, or it was begun in another mode.
        IntegrityError: the journal is damaged or not ours, or a shard is not the one it speaks of.
        SpaceError: the disk is full.
    """
    disk = disk or LocalDisk()
    started = time.monotonic()
    place = Place(Path(out), Path(first_shard).parent)
    with _opened(disk, place, first_shard, trusted=trust_journal) as journal:
        if journal is None:
            return None
        if journal.job.mode != mode:
            raise UsageError(f"the unfinished merge of {out} was begun with --{journal.job.mode}; go on with that")
        if journal.position.state < State.READY:
            undo(disk, journal, place)
            return None
        window_bytes = min(window_bytes, max(disk.free_bytes(place.out.parent) // 2, MIN_WINDOW_BYTES))
        left = carry_on(
            disk,
            journal,
            place,
            window_bytes=window_bytes,
            hash_sources=hash_sources,
            trust_shards=trust_shards,
            progress=progress,
        )
        return _result(journal, place.out, started, {}, left)


def abort_merge(first_shard: Path, out: Path, *, trust_journal: bool = False, disk: Disk | None = None) -> None:
    """Put the shards back as they were, where that is still possible.

    Args:
        trust_journal: though the journal is not sealed by this user's dfqs on this machine.

    Raises:
        UsageError: there is no unfinished merge to `out`.
        IntegrityError: the journal is damaged or not ours; says what to do with it.
        DfqsError: bytes were freed already; says what is where, and that the merge can be finished.
    """
    disk = disk or LocalDisk()
    place = Place(Path(out), Path(first_shard).parent)
    with _opened(disk, place, first_shard, trusted=trust_journal) as journal:
        if journal is None:
            raise UsageError(f"there is no unfinished merge of {out} to abort")
        undo(disk, journal, place)


def _require_insertion(disk: Disk, plan: MergePlan, place: Place) -> int:
    """The unit in which ranges can be inserted into the shard that would stay."""
    shard = plan.shards[largest_shard(plan)]
    if _device(disk, shard.path) != _device(disk, place.out.parent):
        raise UsageError(
            f"{place.out} is on another file system than {shard.path}; in place, a file only changes its name"
        )
    with storage_errors(place.out):
        unit = probe_insert_unit(place.out.parent)
    if unit is None:
        raise UsageError(
            f"the file system of {place.out.parent} cannot insert ranges into a file (ext4 and XFS can); use --consume"
        )
    file = disk.open(shard.path)
    try:
        file.sync()
        holes = file.holes()
    finally:
        file.close()
    if holes:
        raise UsageError(
            f"{shard.path} is sparse ({len(holes):,} holes), so that a gap in it could not be told from them after a "
            "crash; use --consume"
        )
    return unit


def _fit_window(disk: Disk, plan: JobPlan, place: Place, window_bytes: int) -> tuple[int, int]:
    """The window that the free space allows, and the most space that the merge will take with it."""
    job = plan.job
    written_header = job.header_bytes - (job.resident.insert_at if job.resident else 0)
    fixed = written_header + RESERVED_BYTES + MARGIN_BYTES
    by_shard: dict[int, int] = {}
    for copy in job.copies:
        by_shard[copy.shard] = by_shard.get(copy.shard, 0) + copy.length
    largest = max(by_shard.values(), default=0)
    free = disk.free_bytes(place.out.parent)
    if _device(disk, place.shards) != _device(disk, place.out.parent):
        # What is freed there is no room here.
        window = min(window_bytes, largest)
        least = job.file_bytes
        fixed = fixed - written_header
    elif job.freeing == "delete":
        least = window = largest
    else:
        window = min(window_bytes, largest)
        least = min(window, MIN_WINDOW_BYTES)
        window = max(min(window, free - fixed), least)
    advice = f"a merge with --{job.mode} takes no less: free some, or write to another disk"
    require_space(place.out.parent, fixed + least - MARGIN_BYTES, advice, free=free)
    return max(window, 1), fixed + max(window, least)


def _device(disk: Disk, directory: Path) -> int | None:
    found = disk.identify(directory.resolve())
    return found.device if found is not None else None


def _begin(disk: Disk, plan: InplacePlan) -> Journal:
    """Begin; what goes wrong before anything is moved has been put back when this raises, or is by the same command."""
    out = plan.place.out
    try:
        return begin(disk, plan.job, plan.place, plan.merge.shards)
    except OSError as error:
        left = "the same command puts it right" if is_unfinished(out) else "the shards are as they were"
        raise DfqsError(f"the merge to {out} could not begin ({error.strerror or error}); {left}") from error


@contextmanager
def _opened(disk: Disk, place: Place, first_shard: Path, *, trusted: bool) -> Iterator[Journal | None]:
    """The journal of an unfinished merge of these shards to this place, if there is one; other merges are kept away."""
    if not is_unfinished(place.out):
        yield None
        return
    with locked_for_use(disk, [Path(first_shard), place.working]):
        journal = Journal.open(disk, place.out, trusted=trusted)
        if journal is None:
            yield None
            return
        with _closing(journal):
            _require_set(journal, Path(first_shard), place.out)
            yield journal


def _require_set(journal: Journal, first_shard: Path, out: Path) -> None:
    """Make sure that a journal speaks of exactly the shards of the set that was named, and of no other file.

    Raises:
        UsageError: it is of another set.
        IntegrityError: it names files that are no shards of the set.
    """
    names = [source.name for source in journal.job.sources]
    if names[0] != first_shard.name:
        first = printable(names[0])
        raise UsageError(f"the unfinished merge to {out} is of {first}; give that, or another output")
    if parse_shard_name(names[0]) is None or names != [path.name for path in shard_paths(first_shard, len(names))]:
        raise IntegrityError(
            f"{journal.path} names other files than the {len(names):,} shards of {first_shard.name}; nothing was "
            "changed. It was not left by a merge: delete it"
        )


def _hash_all(plan: MergePlan) -> dict[int, str]:
    hashes = {}
    for index, shard in enumerate(plan.shards):
        hashes[index] = hash_file(shard.path)
        require_expected_sha256(shard, hashes[index])
    return hashes


def _with_hashes(plan: JobPlan, known: dict[int, str]) -> JobPlan:
    """The job with the shards' hashes, by which they are known again when somebody touched them."""
    sources = tuple(replace(source, sha256=known[index]) for index, source in enumerate(plan.job.sources))
    return replace(plan, job=replace(plan.job, sources=sources))


def _result(journal: Journal, out: Path, started: float, known: dict[int, str], left: tuple[Path, ...]) -> MergeResult:
    job, found = journal.job, {**journal.position.sha256, **known}
    hashes = tuple(found.get(index) for index in range(len(job.sources)))
    return MergeResult(out, job.file_bytes, job.moved_bytes, time.monotonic() - started, hashes, left)


@contextmanager
def _closing(journal: Journal) -> Iterator[None]:
    """Let go of the journal; say how to go on when the work was interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"nothing is lost. The same command goes on from {journal.path.name}, --abort says what can be put back"
        ) from None
    except OSError as error:
        raise DfqsError(
            f"{error.strerror or error}, with a merge under way ({journal.path}). Nothing is lost: when that is seen "
            "to, the same command goes on"
        ) from error
    finally:
        journal.close()


class Interrupted(DfqsError):
    """Ctrl-C during a merge that can be resumed. `kept` says what became of the work."""

    exit_code = 130
    kind = "interrupted"

    def __init__(self, kept: str) -> None:
        self.kept = kept
        super().__init__(f"interrupted; {kept}")
