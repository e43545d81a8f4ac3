"""What the Hub says of a repository: its files, their hashes, and where their bytes can be fetched for the moment.

huggingface_hub does the talking (tokens, endpoints, gated repositories); this module words its refusals, and believes
nothing of what a repository calls its files before looking at it.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_token, hf_hub_url, try_to_load_from_cache
from huggingface_hub import errors as hub_errors
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dfqs.errors import DfqsError, IntegrityError, NetworkError, UsageError, printable
from dfqs.shards.pull.patience import RETRIED_STATUS, Patience, retry_after_s

METADATA_TIMEOUT_S = 20.0
METADATA_ATTEMPTS = 4
MAX_FILE_BYTES = (1 << 63) - 1
"""No file system takes a larger file."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")

# The base of its transport's errors, whichever transport it uses.
TransportTrouble: type[Exception] = hub_errors.HTTPError  # type: ignore[attr-defined]

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository."""

    name: str
    """Path in the repository; checked to be relative and without `..`."""
    size: int
    sha256: str | None
    """Of its bytes, for a file in large-file storage."""
    git_sha1: str | None
    """Of its git blob otherwise (`blob SIZE\\0` and the bytes)."""

    @property
    def identity(self) -> str:
        """The hash that its bytes must have."""
        return f"sha256:{self.sha256}" if self.sha256 else f"git:{self.git_sha1}"


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit."""

    endpoint: str
    repo: str
    revision: str
    """What was asked for."""
    commit: str
    files: tuple[RemoteFile, ...]
    """The GGUF files, by name."""
    unusable: tuple[str, ...]
    """GGUF files with names, sizes or hashes that cannot be worked with."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a file's bytes are for the moment."""

    url: str
    headers: dict[str, str]


class Hub:
    """A Hub, as one user sees it.

    Args:
        endpoint: `HF_ENDPOINT` or the public Hub by default.
        token: `HF_TOKEN` or the stored login by default.
    """

    def __init__(self, endpoint: str | None = None, token: str | None = None, patience: Patience | None = None) -> None:
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._token = token or get_token()
        self._patience = patience or Patience()

    def list_repo(self, repo: str, revision: str = "main") -> Listing:
        """The GGUF files of a repository, pinned to a commit.

        Raises:
            UsageError: no such repository or revision, or no permission.
            NetworkError: the Hub cannot be reached or makes no sense.
        """
        api = HfApi(endpoint=self.endpoint, token=self._token or False)
        info = self._ask(
            f"{repo}@{revision}",
            lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=METADATA_TIMEOUT_S),
        )
        commit = info.sha or ""
        if not _GIT_SHA1.fullmatch(commit):
            raise NetworkError(f"{self.endpoint} gave no commit for {repo}@{revision}; its files cannot be pinned")
        files, unusable = [], []
        for sibling in info.siblings or []:
            if not str(sibling.rfilename).lower().endswith(".gguf"):
                continue
            size = sibling.lfs.size if sibling.lfs else sibling.size
            file = _checked_file(sibling.rfilename, size, sibling.lfs.sha256 if sibling.lfs else None, sibling.blob_id)
            if file is None:
                unusable.append(str(sibling.rfilename))
            else:
                files.append(file)
        return Listing(
            self.endpoint, repo, revision, commit, tuple(sorted(files, key=lambda f: f.name)), tuple(unusable)
        )

    def resolve(self, listing: Listing, file: RemoteFile) -> Address:
        """Where the file's bytes are now; signed addresses expire, so this is asked again when one does.

        Raises:
            IntegrityError: the Hub now has another file there than was planned.
            UsageError: no permission.
            NetworkError: the Hub cannot be reached.
        """
        url = hf_hub_url(listing.repo, file.name, revision=listing.commit, endpoint=self.endpoint)
        found = self._ask(
            f"{listing.repo}/{printable(file.name)}",
            lambda: get_hf_file_metadata(
                url, token=self._token or False, timeout=METADATA_TIMEOUT_S, endpoint=self.endpoint
            ),
        )
        promised = file.sha256 or file.git_sha1
        if (found.size is not None and found.size != file.size) or (
            found.etag is not None and _is_hash(found.etag) and found.etag != promised
        ):
            raise IntegrityError(
                f"{printable(file.name)} changed on the Hub while it was fetched: it was {file.size:,} bytes with "
                f"{file.identity}, now it is {found.size} bytes with {printable(found.etag or '')}; start again"
            )
        headers = {}
        if self._token and _origin(found.location) == _origin(self.endpoint):
            # The token is for the Hub alone, never for the storage that it redirects to.
            headers["Authorization"] = f"Bearer {self._token}"
        return Address(found.location, headers)

    def cached(self, listing: Listing, file: RemoteFile) -> Path | None:
        """The file in the local Hub cache, if it is there in full (its bytes are hashed later all the same)."""
        try:
            found = try_to_load_from_cache(listing.repo, file.name, revision=listing.commit)
        except (HFValidationError, OSError, ValueError):
            return None
        if not isinstance(found, str):
            return None
        path = Path(found)
        return path if path.is_file() and path.stat().st_size == file.size else None

    def _ask(self, what: str, question: Callable[[], Answer]) -> Answer:
        """Ask the Hub, patiently; its refusals become sentences."""
        attempt = 0
        while True:
            try:
                return question()
            except HFValidationError as error:
                raise UsageError(f"not a repository's name: {printable(str(error), 200)}") from None
            except OfflineModeIsEnabled:
                raise NetworkError("HF_HUB_OFFLINE is set; unset it to fetch from the Hub") from None
            except GatedRepoError:
                page = f"{self.endpoint}/{'/'.join(what.split('@')[0].split('/')[:2])}"
                raise UsageError(f"{what} is gated: accept its conditions at {page} and set HF_TOKEN") from None
            except RevisionNotFoundError:
                raise UsageError(f"there is no revision {what}") from None
            except RepositoryNotFoundError:
                raise UsageError(
                    f"there is no repository {what}, or it is private; then HF_TOKEN must be of somebody who may see it"
                ) from None
            except EntryNotFoundError:
                raise IntegrityError(f"{what} is gone from the Hub; start again") from None
            except HfHubHTTPError as error:
                status = error.response.status_code
                if status in (401, 403):
                    raise UsageError(f"the Hub refuses {what} (HTTP {status}); is HF_TOKEN right?") from None
                if status not in RETRIED_STATUS or attempt >= self._patience.attempts:
                    raise NetworkError(f"the Hub answered {what} with HTTP {status}") from None
                wait_s = retry_after_s(error.response.headers.get("Retry-After"))
            except TransportTrouble as error:
                # A Hub that cannot be reached at all is said soon; ranges under way are waited for longer.
                if attempt >= min(self._patience.attempts, METADATA_ATTEMPTS):
                    raise _unreachable(self.endpoint, error) from None
                wait_s = None
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                raise NetworkError(
                    f"{self.endpoint} answered {what} with something unreadable ({error!r:.80})"
                ) from None
            time.sleep(self._patience.wait_s(attempt, wait_s))
            attempt += 1


def _unreachable(endpoint: str, error: Exception) -> DfqsError:
    return NetworkError(f"{endpoint} cannot be reached: {printable(str(error) or type(error).__name__, 200)}")


def _checked_file(name: object, size: object, sha256: object, git_sha1: object) -> RemoteFile | None:
    """A file as the Hub describes it (in JSON, so with whatever types), or None when its name, size or hash cannot be
    worked with."""
    if not isinstance(name, str) or not is_safe_name(name) or type(size) is not int or not 0 < size <= MAX_FILE_BYTES:
        return None
    if sha256 is not None:
        return RemoteFile(name, size, sha256, None) if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None
    if not isinstance(git_sha1, str) or not _GIT_SHA1.fullmatch(git_sha1):
        return None
    return RemoteFile(name, size, None, git_sha1)


def is_safe_name(name: str) -> bool:
    """Whether a path from a repository is relative, stays inside, and holds nothing that a terminal would obey."""
    path = PurePosixPath(name)
    return (
        name.isprintable()
        and "\\" not in name
        and not path.is_absolute()
        and str(path) == name
        and ".." not in path.parts
    )


def _is_hash(etag: str) -> bool:
    return bool(_SHA256.fullmatch(etag) or _GIT_SHA1.fullmatch(etag))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port
