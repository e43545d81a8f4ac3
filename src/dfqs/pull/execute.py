"""Pull: a model's shards from the Hub straight into one file, every byte written once and to its final place.

Parse, plan, summarise, then fetch. Several connections fetch chunks in order; behind them one reader hashes each remote
file from what was written, in the file's own order, and compares with the hash that the Hub keeps. Only when all files
are right does the model get its header, is read once more as it then stands, and gets its name. Whatever interrupts it,
the same command goes on.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import IntegrityError, UsageError
from dfqs.progress import Progress, no_progress
from dfqs.pull.finished import (
    FinishedModel,
    PlanIsWrong,
    Recorder,
    RecorderFor,
    Stored,
    check_finished,
)
from dfqs.pull.headers import read_remote_headers
from dfqs.pull.hub import Hub
from dfqs.pull.journal import KIND, Progressed, PullJournal
from dfqs.pull.output import PullOutput, journal_path, older_journal_path, part_path, rest_path, taken_bytes
from dfqs.pull.plan import CHUNK_BYTES, MAX_CHUNKS, MIN_CHUNK_BYTES, PullPlan, plan_pull_of, require_few_chunks
from dfqs.pull.ranges import RangeClient
from dfqs.pull.retry import RetryPolicy
from dfqs.pull.transfer import Transfer
from dfqs.storage.atomic import check_output_path
from dfqs.storage.space import require_space


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
    recorder: Recorder | None = None
    """What was asked to take down the model's bytes; it was given those that were found right, and no others."""
    done_already: bool = False
    """The finished model was there before; nothing was fetched."""


def plan_pull(
    hub: Hub,
    repo: str,
    *,
    revision: str = "main",
    pattern: str | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    retry: RetryPolicy | None = None,
    connections: int = 8,
    alignment: int | None = None,
) -> PullPlan:
    """Read the headers of the model that is meant, by ranges, and plan where every byte goes.

    Args:
        alignment: as `plan_pull_of` takes it.

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
        hub, repo, revision=revision, pattern=pattern, retry=retry, connections=connections
    )
    plan = plan_pull_of(listing, choice, headers, chunk_bytes=chunk_bytes, alignment=alignment)
    require_few_chunks(plan)
    return plan


def require_room(plan: PullPlan, out: Path) -> None:
    """Make sure that the model fits beside what is on the disk already.

    Raises:
        SpaceError: it does not.
    """
    needed = max(plan.file_bytes + plan.rest_bytes - taken_bytes(out), 0)
    require_space(out.parent, needed, "nothing was fetched")


def pull(
    plan: PullPlan,
    hub: Hub,
    out: Path,
    *,
    connections: int = 8,
    retry: RetryPolicy | None = None,
    use_cache: bool = True,
    restart: bool = False,
    recorder_for: RecorderFor | None = None,
    progress: Progress = no_progress,
    checking: Progress = no_progress,
) -> PullResult:
    """Fetch a planned model. What is needed to check it stays until `forget_pull`: a kill before that loses nothing.

    Args:
        use_cache: take files that are complete in the local Hub cache from there.
        restart: throw away what an earlier, unfinished run fetched.
        recorder_for: makes what takes down the finished model's bytes, in the pass that checks them before they are
            published.
        progress: of fetching, in bytes of the remote files.
        checking: of that last pass, likewise.

    Raises:
        UsageError: `out` exists and is another file, its directory is not writable, or another pull is at work on it.
        SpaceError: no room.
        NetworkError: the server gave up on us, or we on it; the same command goes on.
        IntegrityError: the bytes are not those that the Hub promises, fetched twice; or another program wrote to them.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise UsageError(f"no such directory: {out.parent}")
    finish = _Finish(recorder_for, checking)
    if out.exists():
        # Killed after the model got its name, or asked for twice: the files themselves say whether it is all there.
        return finish.look_at_published(plan, out)
    check_output_path(part_path(out), overwrite=True)
    _refuse_foreign_parts(out, restart)
    journal = PullJournal(journal_path(out))
    try:
        if restart:
            part_path(out).unlink(missing_ok=True)
        check_output_path(out)
        require_room(plan, out)
        known = _start_journal(journal, plan, out)
        plan = dataclasses.replace(plan, chunk_bytes=known.chunk_bytes)
        client = RangeClient(hub, plan.listing, retry=retry, connections=connections)
        return _fetch(plan, client, out, journal, known, connections, hub if use_cache else None, progress, finish)
    except PlanIsWrong:
        part_path(out).unlink(missing_ok=True)
        forget_pull(out)
        raise
    except BaseException:
        if not part_path(out).exists() and not out.exists():
            # Nothing was begun: nothing stays.
            forget_pull(out)
        raise
    finally:
        journal.close()


def _refuse_foreign_parts(out: Path, restart: bool) -> None:
    """What lies beside the output and is of an older version, or of nobody that is known, is thrown away only if told.

    Raises:
        UsageError: there is such a thing, and it was not told.
    """
    if restart:
        older_journal_path(out).unlink(missing_ok=True)
    KIND.refuse_older(older_journal_path(out))
    if not restart and part_path(out).exists() and not journal_path(out).exists():
        raise UsageError(
            f"{part_path(out)} is in the way and belongs to no pull that is known here (another program's, perhaps); "
            "move it, or give --restart to throw it away"
        )


def _start_journal(journal: PullJournal, plan: PullPlan, out: Path) -> Progressed:
    """What an earlier run fetched, as far as it can be used."""
    origin = {"repo": plan.listing.repo, "commit": plan.listing.commit, "model": plan.choice.name}
    intact = part_path(out).is_file() and part_path(out).stat().st_size == plan.file_bytes
    known = journal.start(plan.identity(), origin, plan.chunk_bytes, fresh=not intact)
    if plan.all_chunks(known.chunk_bytes) > MAX_CHUNKS:
        known = journal.start(plan.identity(), origin, plan.chunk_bytes, fresh=True)
    return known


def forget_pull(out: Path) -> None:
    """Remove what is left of a pull that is over."""
    rest_path(out).unlink(missing_ok=True)
    journal_path(out).unlink(missing_ok=True)


def _fetch(
    plan: PullPlan,
    client: RangeClient,
    out: Path,
    journal: PullJournal,
    known: Progressed,
    connections: int,
    cache: Hub | None,
    progress: Progress,
    finish: "_Finish",
) -> PullResult:
    cached = {i: cache.cached(plan.listing, layout.file) if cache else None for i, layout in enumerate(plan.layouts)}
    output = PullOutput(plan, out)
    try:
        with client:
            transfer = Transfer(plan, output, journal, client, known, cached)
            transfer.run(connections, progress)
        output.plan = transfer.plan
        output.publish(lambda: finish.check(transfer.plan, output))
        return PullResult(
            out,
            plan.file_bytes,
            client.fetched_bytes,
            transfer.reused_bytes,
            transfer.cached_bytes,
            tuple(transfer.refetched),
            finish.recorder,
        )
    finally:
        output.close()


class _Finish:
    """The last look at a model, and who takes down what it sees."""

    def __init__(self, recorder_for: RecorderFor | None, progress: Progress) -> None:
        self._recorder_for = recorder_for
        self._progress = progress
        self.recorder: Recorder | None = None

    def check(self, plan: PullPlan, stored: Stored) -> None:
        """Raises IntegrityError as `check_finished`."""
        self.recorder = check_finished(plan, stored, self._recorder_for, self._progress)

    def look_at_published(self, plan: PullPlan, out: Path) -> PullResult:
        """Say that the model is there already, if it is: every byte of it is read.

        Raises:
            UsageError: it is another file.
            IntegrityError: it is what an unfinished pull had published, and has changed since.
        """
        if not out.is_file() or out.stat().st_size != plan.file_bytes:
            check_output_path(out)
        try:
            with FinishedModel(plan, out) as stored:
                self.check(plan, stored)
        except IntegrityError:
            if journal_path(out).exists() and not part_path(out).exists():
                raise IntegrityError(f"{out} changed since it was pulled; move it away and pull again") from None
            check_output_path(out)
            raise
        return PullResult(out, plan.file_bytes, 0, plan.fetch_bytes, 0, (), self.recorder, done_already=True)
