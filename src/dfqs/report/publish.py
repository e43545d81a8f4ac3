"""Publishes files to a repository on the Hub, through huggingface_hub, in one commit: all of them are there, or none.

Large files go to the Hub's storage first, one after the other, and are committed when all have arrived. What a killed
call had sent is known there by its hash and not sent again; within a file it is the storage that decides how much is
(Xet: by pieces; earlier large-file storage: by files).
"""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

from dfqs import __version__
from dfqs.errors import DfqsError, IntegrityError, NetworkError, UsageError, printable
from dfqs.progress import Progress, no_progress
from dfqs.pull.hub import hub_endpoint
from dfqs.pull.metadata import MetadataClient
from dfqs.report.card import CARD_MARK
from dfqs.report.hub_card import FILE_MARK
from dfqs.report.preset import PRESET_MARK, PRESET_NAME
from dfqs.report.publish_files import PublishFile
from dfqs.storage.identity import describe_change

MARKS = {"README.md": CARD_MARK, "CITATION.cff": FILE_MARK, PRESET_NAME: PRESET_MARK}
"""What begins, or stands in, a file that dfqs wrote: a person's own under that name is not replaced unasked."""
ANSWER_S = 60.0
# huggingface_hub's HTTP library has changed; whichever it is, its errors have this base.
_HTTP_ERROR: type[Exception] = next(
    kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception) and kind.__name__ == "HTTPError"
)
_FAILURES: tuple[type[Exception], ...] = (_HTTP_ERROR, OSError, ValueError, RuntimeError)


class Action(StrEnum):
    """What becomes of a file of the repository."""

    UPLOAD = "upload"
    REPLACE = "replace"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the repository has it."""

    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository as it is now."""

    repo: str
    commit: str | None
    """None: there is no such repository yet."""
    private: bool | None
    files: Mapping[str, RemoteFile]

    def action(self, file: PublishFile) -> Action:
        """What publishing does with a file."""
        found = self.files.get(file.name)
        if found is None:
            return Action.UPLOAD
        same = found.sha256 == file.sha256 or (found.git_sha1 is not None and found.git_sha1 == file.git_sha1)
        return Action.UNCHANGED if same else Action.REPLACE


@dataclass(frozen=True, slots=True)
class Commit:
    """What was published."""

    id: str
    warnings: tuple[str, ...]
    """The Hub's own, on the card."""


def read_remote(repo: str) -> Remote:
    """What a repository has. Asks, and changes nothing.

    Raises:
        UsageError: no permission.
        NetworkError: the Hub cannot be reached, or its answer makes no sense.
    """
    with _hub_errors(repo):
        try:
            info = _api().model_info(repo, files_metadata=True, timeout=ANSWER_S)
        except RepositoryNotFoundError as error:
            # 401 is how the Hub says so to a stranger, who cannot make one either.
            if error.response.status_code != 404:
                raise
            return Remote(repo, None, None, {})
    files = {}
    for entry in info.siblings or []:
        sha256 = getattr(entry.lfs, "sha256", None)
        files[entry.rfilename] = RemoteFile(sha256, entry.blob_id if sha256 is None else None)
    return Remote(repo, info.sha, info.private, files)


def require_own_files(remote: Remote, files: Sequence[PublishFile]) -> None:
    """Make sure that no person's own card, citation or preset is replaced.

    Raises:
        UsageError: one would be.
        NetworkError: it could not be looked at.
    """
    for file in files:
        mark = MARKS.get(file.name)
        if mark is None or remote.action(file) is not Action.REPLACE:
            continue
        url = f"{hub_endpoint()}/{remote.repo}/resolve/{remote.commit}/{quote(file.name)}"
        with _hub_errors(remote.repo):
            answer = MetadataClient(get_token(), ANSWER_S).ask("GET", url)
        if answer.status != 200 or mark.encode() not in answer.body:
            raise UsageError(
                f"{remote.repo} has a {file.name} that dfqs did not write, or that could not be read; --overwrite "
                "replaces it"
            )


def publish(
    remote: Remote,
    files: Sequence[PublishFile],
    *,
    private: bool,
    bars: bool = False,
    progress: Progress = no_progress,
) -> Commit:
    """Upload what is not there yet, and commit it.

    Args:
        files: all of them; those that are unchanged are left as they are.
        private: a repository that is made for this; one that is there stays as it is.
        bars: huggingface_hub may draw its own, where the storage tells no progress.
        progress: in bytes of large files, where they go through this program.

    Raises:
        IntegrityError: a file changed while it was uploaded; nothing was committed.
        UsageError: no permission, or the Hub refuses a file or the card.
        NetworkError: the Hub cannot be reached; the same call goes on.
    """
    pending = [file for file in files if remote.action(file) is not Action.UNCHANGED]
    with _hub_errors(remote.repo), _quiet_hub(bars) as said:
        api = _api()
        if remote.commit is None:
            api.create_repo(remote.repo, private=private, exist_ok=True)
        operations = []
        with contextlib.ExitStack() as opened:
            # huggingface_hub sends what is a stream as earlier storage takes it, and all else as Xet does.
            as_stream = not _speaks_xet(remote.repo)
            for file in pending:
                operation = _operation(file, opened, as_stream=as_stream, progress=progress)
                if file.path is not None:
                    api.preupload_lfs_files(remote.repo, [operation])
                    _require_same(file, operation)
                operations.append(operation)
            words = ", ".join(file.name for file in pending)
            done = api.create_commit(
                remote.repo,
                operations,
                commit_message=f"Publish with dfqs {__version__}",
                commit_description=words,
                parent_commit=remote.commit,
            )
    return Commit(done.oid, tuple(dict.fromkeys(said)))


def _api() -> HfApi:
    return HfApi(endpoint=hub_endpoint(), library_name="dfqs", library_version=__version__)


def _speaks_xet(repo: str) -> bool:
    """Whether the Hub has the storage that takes files in pieces; a mirror often has the earlier one alone."""
    url = f"{hub_endpoint()}/api/models/{repo}/xet-write-token/main"
    return MetadataClient(get_token(), ANSWER_S).ask("GET", url).status != 404


def _operation(
    file: PublishFile, opened: contextlib.ExitStack, *, as_stream: bool, progress: Progress
) -> CommitOperationAdd:
    if file.path is None:
        assert file.data is not None
        return CommitOperationAdd(file.name, io.BytesIO(file.data) if as_stream else file.data)
    if not as_stream:
        return CommitOperationAdd(file.name, file.path)
    # An open file: what is sent is what was hashed, whatever takes its name meanwhile.
    stream = opened.enter_context(_WatchedFile(file.path, progress))
    operation = CommitOperationAdd(file.name, stream)
    stream.watched = True
    return operation


def _require_same(file: PublishFile, operation: CommitOperationAdd) -> None:
    """What was sent has the hash that was checked against the manifest."""
    assert file.path is not None and file.stamp is not None
    change = describe_change(file.path, file.stamp)
    if operation.upload_info.sha256.hex() != file.sha256 or change is not None:
        raise IntegrityError(
            f"{file.path} changed while it was uploaded ({change or 'its hash is another'}); nothing was committed"
        )
    if operation._should_ignore:
        raise UsageError(f"the repository's .gitignore leaves out {file.name}; take that line out")


class _WatchedFile(io.BufferedReader):
    """A file that tells how far it was read, once it is being sent."""

    def __init__(self, path: Path, progress: Progress) -> None:
        # Closed with this reader.
        super().__init__(io.FileIO(path), 1 << 20)
        self._bytes = path.stat().st_size
        self._progress = progress
        self.watched = False

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.watched:
            self._progress(self.tell(), self._bytes)
        return data


@contextlib.contextmanager
def _quiet_hub(bars: bool) -> Iterator[list[str]]:
    """What huggingface_hub would print comes back as words; its bars are drawn where they are wanted."""
    said: list[str] = []
    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    (enable_progress_bars if bars else disable_progress_bars)()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        said += [printable(str(warning.message), 400) for warning in caught if warning.category is UserWarning]
    finally:
        hub_logging.set_verbosity(before)
        enable_progress_bars()


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Failures of huggingface_hub in words of ours: no token in them, and no address that is signed."""
    if constants.HF_HUB_OFFLINE:
        raise NetworkError("HF_HUB_OFFLINE is set; unset it to publish")
    try:
        yield
    except DfqsError:
        raise
    except _FAILURES as error:
        raise _in_words(repo, error) from None


def _in_words(repo: str, error: BaseException) -> DfqsError:
    # Of an upload the true reason stands behind.
    cause: BaseException = error
    while not isinstance(cause, HfHubHTTPError) and cause.__cause__ is not None:
        cause = cause.__cause__
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    told = getattr(cause, "server_message", None) or str(cause) or type(cause).__name__
    words = _without_secrets(told)
    if status in (401, 403):
        return UsageError(f"the Hub refuses {repo} (HTTP {status}); HF_TOKEN must be one that may write there: {words}")
    if status in (400, 404, 409, 412, 413, 422):
        return UsageError(f"the Hub refuses {repo} (HTTP {status}): {words}")
    if status is None and isinstance(cause, ValueError):
        return UsageError(f"the Hub refuses {repo}: {words}")
    what = f"HTTP {status}: " if status is not None else ""
    return NetworkError(f"publishing to {repo} failed ({what}{words}); the same command goes on with what is missing")


def _without_secrets(text: str) -> str:
    token = get_token()
    if token:
        text = text.replace(token, "***")
    return printable(re.sub(r"\?[^\s'\"<>]*", "?...", " ".join(text.split())), 300)
