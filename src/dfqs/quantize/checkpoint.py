"""What an interrupted measurement of importance has: its sums so far (`OUT.measuring`), and which they are.

A `dfqs.storage.journal` says of each checkpoint how far it goes, with its hash, before the file gets its name. So the
file that is there is one that the journal knows, whenever the power went; any other came from elsewhere. Each record is
sealed: sums cannot be held against anything that is left, and the file lies beside a model.
"""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from dfqs.errors import UsageError
from dfqs.quantize.imatrix_file import Imatrix, read_imatrix, write_imatrix
from dfqs.storage.atomic import publish_file, storage_errors
from dfqs.storage.disk import Disk, LocalDisk
from dfqs.storage.hashing import hash_file
from dfqs.storage.journal import Journal, JournalKind

KIND = JournalKind(
    schema="dfqs.imatrix-journal/1",
    work="measurement",
    busy="another process is measuring this importance matrix",
    give_up="give --restart to throw away what it measured",
    limit_bytes=16 << 20,
    line_bytes=64 << 10,
    purpose="imatrix-journal",
    is_claims=True,
)
LOCK_WAIT_S = 2.0
"""The worker of a killed measurement dies with its caller, but not before its last write to the disk has ended."""


def checkpoint_path(out: Path) -> Path:
    """Where a measurement of `out` keeps what it has."""
    return out.with_name(f"{out.name}.measuring")


def forget_checkpoint(out: Path, fingerprint: str, *, disk: Disk | None = None) -> None:
    """Throw away what a measurement left that was killed when it had written `out`."""
    disk = disk or LocalDisk()
    if any(disk.identify(path) is not None for path in (checkpoint_path(out), KIND.path_beside(out))):
        with Checkpoint(out, fingerprint, restart=True, disk=disk) as left:
            left.forget()


@dataclass(frozen=True, slots=True)
class _Reached:
    """How far a checkpoint goes."""

    chunks: int
    tokens: int


class Checkpoint:
    """The last checkpoint of a measurement of `out`, locked for as long as this is open.

    Args:
        fingerprint: of all that decides the sums.
        restart: throw away what an interrupted measurement left.

    Raises:
        UsageError: it is of another measurement, another process has it, or dfqs 0.1 left it.
        IntegrityError: another version of dfqs left it.
    """

    def __init__(self, out: Path, fingerprint: str, *, restart: bool = False, disk: Disk | None = None) -> None:
        self.path = checkpoint_path(out)
        self._disk = disk = disk or LocalDisk()
        self._fresh = self.path.with_name(self.path.name + ".new")
        self._reached: dict[str, _Reached] = {}
        hidden = out.with_name(f".{out.name}.measuring")
        if restart:
            hidden.unlink(missing_ok=True)
        KIND.refuse_older(hidden)
        with storage_errors(out):
            journal_path = KIND.path_beside(out)
            self._journal = Journal.open_or_create(disk, journal_path, KIND, wait_s=LOCK_WAIT_S)
            try:
                if restart:
                    disk.unlink(self.path)
                # Without its sums a journal says nothing, and nobody loses by it.
                kept = disk.identify(self.path) is not None and self._journal.read(self._take, fingerprint=fingerprint)
                if not kept:
                    self._journal.begin({}, fingerprint=fingerprint)
            except BaseException:
                self._journal.close()
                raise

    def read(self) -> tuple[Imatrix | None, int]:
        """The sums and how many chunks are in them; none where there is no checkpoint.

        Raises:
            UsageError: the file there is no checkpoint of this measurement.
        """
        if self._disk.identify(self.path) is None:
            return None, 0
        reached = self._reached.get(hash_file(self.path))
        if reached is None:
            raise UsageError(
                f"{self.path} is of a measurement of another model, corpus or chunk size, or was changed; give "
                "--restart to throw it away"
            )
        matrix = read_imatrix(self.path)
        matrix.tokens, matrix.extra = reached.tokens, {}
        return matrix, reached.chunks

    def write(self, matrix: Imatrix, chunks: int) -> None:
        """Keep the sums of so many chunks."""
        write_imatrix(self._fresh, matrix, overwrite=True)
        sha256 = hash_file(self._fresh)
        self._journal.append({"checkpoint": sha256, "chunks": chunks, "tokens": matrix.tokens})
        self._reached[sha256] = _Reached(chunks, matrix.tokens)
        publish_file(self._fresh, self.path, overwrite=True)

    def forget(self) -> None:
        """The measurement is over."""
        self._disk.unlink(self.path)
        self._disk.unlink(self._fresh)
        self._journal.remove()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._reached:
            # Nothing was kept: nothing stays.
            self._journal.remove()
        self._journal.close()

    def _take(self, number: int, record: dict[str, Any]) -> bool:
        if number == 0:
            return True
        sha256, chunks, tokens = record.get("checkpoint"), record.get("chunks"), record.get("tokens")
        if not isinstance(sha256, str) or type(chunks) is not int or type(tokens) is not int or min(chunks, tokens) < 0:
            return False
        self._reached[sha256] = _Reached(chunks, tokens)
        return True
