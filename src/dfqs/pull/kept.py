"""Models of the Hub that are kept here: pulled once under the name that people use, found by it from then on, offline.

    MODELS/OWNER/NAME/COMMIT-HASH/kept.json     what it is, and under which names it was asked for
                                  MODEL.gguf    there when it is whole, as `pull` publishes it
                                  .lock         held by whoever fetches or removes it

A directory is one model of one commit: a branch that moves does not change what is kept.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dfqs.config import held
from dfqs.errors import DfqsError, UsageError, printable
from dfqs.pull.output import part_path
from dfqs.pull.plan import PullPlan, output_path
from dfqs.records import Document, Record, Text, Whole, read_json, write_json
from dfqs.shards.hub_address import HubAddress
from dfqs.storage.cache import NoHome, cache_directory
from dfqs.storage.locks import is_locked, open_locked
from dfqs.storage.space import allocated_bytes

_RECORD, _LOCK = "kept.json", ".lock"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
"""What the Hub lets an owner or a repository be called; nothing else becomes a directory."""
_FileName = Annotated[str, Field(pattern=r"^[^/\x00.-][^/\x00]*$", max_length=255)]


class Asked(Record):
    """One way in which a model was asked for."""

    revision: Text
    pattern: Text | None


class KeptRecord(Document):
    """A model that is kept: where it came from, and the names that mean it."""

    schema_: Literal["dfqs.kept-model/1"] = Field(default="dfqs.kept-model/1", alias="schema")
    endpoint: Text
    repo: Text
    commit: Text
    model: Text
    """Its name in the repository; the whole set's, of shards."""
    file: _FileName
    """Beside this record."""
    file_bytes: Whole
    asked: tuple[Asked, ...]


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A model that is kept, or began to be."""

    directory: Path
    record: KeptRecord

    @property
    def path(self) -> Path:
        return self.directory / self.record.file

    @property
    def is_whole(self) -> bool:
        """Whether all of it is there: what is pulled gets its name last."""
        return self.path.is_file() and self.path.stat().st_size == self.record.file_bytes

    @property
    def name(self) -> str:
        """What brings it up again: the shortest name that it was asked for by."""
        names = [
            "".join(
                (
                    f"hf:{self.record.repo}",
                    "" if asked.revision == "main" else f"@{asked.revision}",
                    "" if asked.pattern is None else f":{asked.pattern}",
                )
            )
            for asked in self.record.asked
        ]
        return min(names, key=len, default=f"hf:{self.record.repo}@{self.record.commit}")

    @property
    def taken_bytes(self) -> int:
        """Of the disk, whole or not."""
        return sum(allocated_bytes(file) for file in _files(self.directory))

    @property
    def is_busy(self) -> bool:
        """Whether somebody fetches or removes it now."""
        return is_locked(self.directory / _LOCK)


def models_directory() -> Path:
    """The setting `model-folder`, else `models` in the cache. It need not exist.

    Raises:
        UsageError: as `cache_directory` and `held`.
    """
    own = held("model-folder").value
    return cache_directory() / "models" if own is None else Path(str(own))


def list_kept() -> tuple[KeptModel, ...]:
    """Every model that is kept or was begun, by name. What is not of dfqs in the directory is left out."""
    try:
        directory = models_directory()
    except NoHome:
        return ()
    found = [_read(path) for path in _directories(directory, 3)]
    return tuple(sorted((kept for kept in found if kept is not None), key=lambda kept: (kept.name, kept.directory)))


def find_kept(address: HubAddress, endpoint: str) -> KeptModel | None:
    """The model that was pulled under a name, or None; nobody is asked. Of several (a branch that moved) the latest.

    Raises:
        UsageError: it is no repository's name.
    """
    wanted = Asked(revision=address.revision, pattern=address.pattern)
    try:
        directory = _repository_directory(address.repo)
    except NoHome:
        return None
    found = [
        kept
        for path in _directories(directory, 1)
        if (kept := _read(path)) is not None
        and kept.record.endpoint == endpoint
        and kept.is_whole
        and wanted in kept.record.asked
    ]
    return max(found, key=lambda kept: (kept.directory / _RECORD).stat().st_mtime_ns, default=None)


@contextlib.contextmanager
def keeping(plan: PullPlan, address: HubAddress, on_wait: Callable[[], None]) -> Iterator[KeptModel]:
    """The place for a planned model, held by this process; its record says that the address means it.

    Args:
        on_wait: called when another process holds it, which is waited for.

    Raises:
        UsageError: the directory cannot be written.
    """
    listing = plan.listing
    key = hashlib.sha256(plan.choice.name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    directory = _repository_directory(listing.repo) / f"{listing.commit[:12]}-{key}"
    with _held(directory, on_wait):
        asked = Asked(revision=address.revision, pattern=address.pattern)
        record = KeptRecord(
            endpoint=listing.endpoint,
            repo=listing.repo,
            commit=listing.commit,
            model=plan.choice.name,
            file=output_path(directory, plan.choice).name,
            file_bytes=plan.file_bytes,
            asked=(asked,),
        )
        known = _read(directory)
        if known is not None and known.record.model_copy(update={"asked": record.asked}) == record:
            names = tuple(dict.fromkeys((*known.record.asked, asked)))
            record = record.model_copy(update={"asked": names})
        write_json(directory / _RECORD, record, overwrite=True)
        kept = KeptModel(directory, record)
        try:
            yield kept
        except BaseException:
            if not kept.is_whole and not part_path(kept.path).exists():
                # Nothing was begun: nothing stays.
                _clear(kept)
            raise


def remove_kept(kept: KeptModel) -> int:
    """Take a model away, whole or not; returns the bytes that became free.

    Raises:
        UsageError: it is being fetched.
    """
    with _held(kept.directory):
        taken = kept.taken_bytes
        _clear(kept)
    return taken


def _clear(kept: KeptModel) -> None:
    """Take the files away, the lock last, and the directories that are empty then."""
    for file in sorted(_files(kept.directory), key=lambda file: file.name == _LOCK):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        # Where somebody put a directory of his own, or another model is beside it.
        kept.directory.rmdir()
        kept.directory.parent.rmdir()
        kept.directory.parent.parent.rmdir()


def select_kept(address: HubAddress) -> tuple[KeptModel, ...]:
    """Those that a name means, as far as it goes: a repository's, of a revision, with a pattern in the name.

    Raises:
        UsageError: it is no repository's name.
    """
    _repository_directory(address.repo)
    pattern = (address.pattern or "").lower()
    return tuple(
        kept
        for kept in list_kept()
        if kept.record.repo.lower() == address.repo.lower()
        and (
            address.revision in ("main", kept.record.commit)
            or any(asked.revision == address.revision for asked in kept.record.asked)
        )
        and (
            pattern in kept.record.model.lower()
            or any((asked.pattern or "").lower() == pattern for asked in kept.record.asked)
        )
    )


def _repository_directory(repo: str) -> Path:
    owner, _, name = repo.partition("/")
    if not (_PART.fullmatch(owner) and _PART.fullmatch(name)) or ".." in repo:
        raise UsageError(f"'{printable(repo, 200)}' is no repository; write OWNER/NAME")
    return models_directory() / owner / name


def _directories(top: Path, depth: int) -> Iterator[Path]:
    """The directories so many levels below; links are not followed."""
    try:
        entries = sorted(os.scandir(top), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            path = Path(entry.path)
            if depth == 1:
                yield path
            else:
                yield from _directories(path, depth - 1)


def _read(directory: Path) -> KeptModel | None:
    try:
        return KeptModel(directory, read_json(directory / _RECORD, KeptRecord))
    except (DfqsError, OSError):
        return None


def _files(directory: Path) -> list[Path]:
    """Files right in a directory; what they link to is another's."""
    with contextlib.suppress(OSError):
        return [Path(entry.path) for entry in os.scandir(directory) if not entry.is_dir(follow_symlinks=False)]
    return []


@contextlib.contextmanager
def _held(directory: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """The directory, made if need be, with its lock. Without `on_wait` nobody is waited for."""
    handle = None
    wait_s: float | None = 0.0
    while handle is None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            busy = f"another dfqs fetches or removes the model in {directory}; wait for it"
            handle = open_locked(directory / _LOCK, busy, wait_s=wait_s)
        except UsageError:
            if on_wait is None or wait_s is None:
                raise
            on_wait()
            wait_s = None
        except FileNotFoundError:
            # Whoever held it took the directory away.
            continue
        except OSError as error:
            raise UsageError(
                f"cannot keep a model in {directory} ({error.strerror}); DFQS_MODEL_FOLDER or "
                "`dfqs config set model-folder` names another"
            ) from None
    try:
        yield
    finally:
        os.close(handle)
