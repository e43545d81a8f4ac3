"""Pull: a model's shards from the Hub straight into one file, every byte written once and to its final place.

Parse, plan, summarise, then fetch. Several connections fetch chunks in order; behind them one reader hashes each remote
file from what was written, in the file's own order, and compares with the hash that the Hub keeps. Only when all files
are right does the model get its header and its name. Whatever interrupts it, the same command goes on.
"""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import IntegrityError, SpaceError, UsageError
from dfqs.progress import Progress, no_progress
from dfqs.shards.pull.headers import read_remote_headers
from dfqs.shards.pull.hub import Hub
from dfqs.shards.pull.journal import Progressed, PullJournal
from dfqs.shards.pull.patience import Patience
from dfqs.shards.pull.plan import CHUNK_BYTES, MIN_CHUNK_BYTES, PullPlan, plan_pull_of
from dfqs.shards.pull.ranges import RangeClient
from dfqs.shards.pull.target import PullTarget, journal_path, part_path, rest_path, taken_bytes
from dfqs.shards.pull.transfer import Transfer
from dfqs.storage import check_writable_target
from dfqs.units import format_bytes

SPACE_MARGIN_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PullResult:
    """What a pull did."""

    path: Path
    file_bytes: int
    fetched_bytes: int
    """Bytes that came over the network, repetitions included; headers read for the plan are not."""
    reused_bytes: int
    """Bytes that an earlier run had fetched, checked again."""
    cached_bytes: int
    """Bytes copied from the local Hub cache."""
    refetched_chunks: tuple[str, ...]
    """Chunks that had come or been written wrongly, and were fetched again."""


def plan_pull(
    hub: Hub,
    repo: str,
    *,
    revision: str = "main",
    pattern: str | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    patience: Patience | None = None,
    connections: int = 8,
) -> PullPlan:
    """Read the headers of the model that is meant, by ranges, and plan where every byte goes.

    Raises:
        UsageError: no such repository, no permission, or several models are meant.
        ShardError: the files do not make one model.
        FormatError: a header lies.
        NetworkError: the Hub cannot be reached.
        IntegrityError: a header larger than any model's.
    """
    if chunk_bytes < MIN_CHUNK_BYTES:
        raise UsageError(f"a chunk has at least {MIN_CHUNK_BYTES:,} bytes")
    listing, choice, headers = read_remote_headers(
        hub, repo, revision=revision, pattern=pattern, patience=patience, connections=connections
    )
    return plan_pull_of(listing, choice, headers, chunk_bytes=chunk_bytes)


def require_room(plan: PullPlan, out: Path) -> None:
    """Make sure that the model fits beside what is on the disk already.

    Raises:
        SpaceError: it does not.
    """
    needed = max(plan.file_bytes + plan.rest_bytes - taken_bytes(out), 0) + SPACE_MARGIN_BYTES
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise SpaceError(
            f"{out.parent} has {format_bytes(free)} free, {format_bytes(needed)} are needed; nothing was fetched"
        )


def pull(
    plan: PullPlan,
    hub: Hub,
    out: Path,
    *,
    connections: int = 8,
    patience: Patience | None = None,
    use_cache: bool = True,
    restart: bool = False,
    progress: Progress = no_progress,
) -> PullResult:
    """Fetch a planned model. What is needed to check it stays until `forget_pull`: a kill before that loses nothing.

    Args:
        use_cache: take files that are complete in the local Hub cache from there.
        restart: throw away what an earlier, unfinished run fetched.
        progress: in bytes of the remote files.

    Raises:
        UsageError: `out` exists, or its directory is not writable, or another pull is at work on it.
        SpaceError: no room.
        NetworkError: the server gave up on us, or we on it; the same command goes on.
        IntegrityError: the bytes are not those that the Hub promises, fetched twice.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise UsageError(f"no such directory: {out.parent}")
    if out.exists() and not journal_path(out).exists():
        check_writable_target(out)
    check_writable_target(part_path(out), overwrite=True)
    if not restart and part_path(out).exists() and not journal_path(out).exists():
        raise UsageError(
            f"{part_path(out)} is in the way and belongs to no pull that is known here (another program's, perhaps); "
            "move it, or give --restart to throw it away"
        )
    journal = PullJournal(journal_path(out))
    try:
        if restart:
            part_path(out).unlink(missing_ok=True)
        listing = plan.listing
        origin = {"repo": listing.repo, "commit": listing.commit, "model": plan.choice.name}
        if _may_be_published(plan, out):
            known = journal.start(plan.identity(), origin, plan.chunk_bytes)
            if len(known.verified) == len(plan.layouts) and rest_path(out).exists():
                return _look_at_published(plan, out)
        check_writable_target(out)
        require_room(plan, out)
        intact = part_path(out).is_file() and part_path(out).stat().st_size == plan.file_bytes
        known = journal.start(plan.identity(), origin, plan.chunk_bytes, fresh=not intact)
        plan = dataclasses.replace(plan, chunk_bytes=known.chunk_bytes)
        return _fetch(plan, hub, out, journal, known, connections, patience or Patience(), use_cache, progress)
    except BaseException:
        if not part_path(out).exists() and not out.exists():
            # Nothing was begun: nothing stays.
            forget_pull(out)
        raise
    finally:
        journal.close()


def forget_pull(out: Path) -> None:
    """Remove what is left of a pull that is over."""
    rest_path(out).unlink(missing_ok=True)
    journal_path(out).unlink(missing_ok=True)


def _fetch(
    plan: PullPlan,
    hub: Hub,
    out: Path,
    journal: PullJournal,
    known: Progressed,
    connections: int,
    patience: Patience,
    use_cache: bool,
    progress: Progress,
) -> PullResult:
    cached = {i: hub.cached(plan.listing, layout.file) if use_cache else None for i, layout in enumerate(plan.layouts)}
    target = PullTarget(plan, out)
    try:
        with RangeClient(hub, plan.listing, patience=patience, connections=connections) as client:
            transfer = Transfer(plan, target, journal, client, known, cached)
            transfer.run(connections, progress)
        target.publish()
        return PullResult(
            out,
            plan.file_bytes,
            client.fetched_bytes,
            transfer.reused_bytes,
            transfer.cached_bytes,
            tuple(transfer.refetched),
        )
    finally:
        target.close()


def _look_at_published(plan: PullPlan, out: Path) -> PullResult:
    """The last run named the file and was killed before it could say so: hash it once more, and say it."""
    target = PullTarget(plan, out, published=True)
    try:
        for layout in plan.layouts:
            if target.identity(layout) != layout.file.identity:
                raise IntegrityError(f"{out} changed since it was pulled; move it away and pull again")
    finally:
        target.close()
    return PullResult(out, plan.file_bytes, 0, plan.fetch_bytes, 0, ())


def _may_be_published(plan: PullPlan, out: Path) -> bool:
    return out.is_file() and not part_path(out).exists() and out.stat().st_size == plan.file_bytes
