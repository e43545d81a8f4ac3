"""What the Hub says of a repository: its files, their hashes, and where their bytes can be fetched for the moment.

Tokens, endpoints and the cache are huggingface_hub's; the questions are asked here, as its client puts no bound on an
answer. This module words the Hub's refusals, and believes nothing of what a repository calls its files before looking
at it.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from dfqs.config import held
from dfqs.errors import DfqsError, FormatError, IntegrityError, NetworkError, UsageError, printable
from dfqs.gguf.numbered_names import may_be_model
from dfqs.pull.metadata import Answer, MetadataClient, origin
from dfqs.pull.retry import BUSY_STATUS, RETRIED_STATUS, RetryPolicy, retry_after_s

METADATA_ATTEMPTS = 4
MAX_FILE_BYTES = (1 << 63) - 1
"""No file system takes a larger file."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")

Found = TypeVar("Found")


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


def hub_endpoint() -> str:
    """`HF_ENDPOINT`, the setting `hub-endpoint`, or the public Hub.

    Raises:
        UsageError: as `held`.
    """
    # The variable is huggingface_hub's, which has read it already.
    own = None if "HF_ENDPOINT" in os.environ else held("hub-endpoint").value
    return str(own or constants.ENDPOINT).rstrip("/")


class Hub:
    """A Hub, as one user sees it.

    Args:
        endpoint: `HF_ENDPOINT` or the public Hub by default.
        token: `HF_TOKEN` or the stored login by default.
        retry: its `stall_s` is also the time for a whole answer about a repository or a file.
    """

    def __init__(self, endpoint: str | None = None, token: str | None = None, retry: RetryPolicy | None = None) -> None:
        self.endpoint = (endpoint or hub_endpoint()).rstrip("/")
        self._token = token or get_token()
        self.retry = retry or RetryPolicy()
        """For its files' ranges too, where they are given no other."""
        self._client = MetadataClient(self._token, self.retry.stall_s)

    def list_repo(self, repo: str, revision: str = "main") -> Listing:
        """The GGUF files of a repository, pinned to a commit.

        Raises:
            UsageError: no such repository or revision, or no permission.
            NetworkError: the Hub cannot be reached, makes no sense, or answers too slowly or too much.
        """
        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise UsageError(f"not a repository's name: {printable(str(error), 200)}") from None
        url = f"{self.endpoint}/api/models/{quote(repo)}/revision/{quote(revision, safe='')}?blobs=true"
        what = f"{repo}@{printable(revision)}"
        info = self._ask(what, "GET", url, _read_info)
        commit = info.get("sha")
        if not isinstance(commit, str) or not _GIT_SHA1.fullmatch(commit):
            raise NetworkError(f"{self.endpoint} gave no commit for {what}; its files cannot be pinned")
        siblings = [entry for entry in info.get("siblings") or [] if isinstance(entry, dict)]
        # What is there twice is described in two ways, of which at most one is true.
        times = Counter(entry["rfilename"] for entry in siblings if isinstance(entry.get("rfilename"), str))
        files, unusable = [], []
        for entry in siblings:
            name = entry.get("rfilename")
            if isinstance(name, str) and not may_be_model(name):
                continue
            file = _checked_file(entry)
            if file is None or times[file.name] > 1:
                unusable.append(printable(str(name)))
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
        answer = self._ask(f"{listing.repo}/{printable(file.name)}", "HEAD", url, lambda answer: answer)
        etag = (answer.headers.get("X-Linked-Etag") or answer.headers.get("ETag") or "").removeprefix("W/").strip('"')
        length = answer.headers.get("X-Linked-Size")
        if length is None and answer.location is None:
            length = answer.headers.get("Content-Length")
        promised = file.sha256 or file.git_sha1
        if (length is not None and length != str(file.size)) or (_is_hash(etag) and etag != promised):
            raise IntegrityError(
                f"{printable(file.name)} changed on the Hub while it was fetched: it was {file.size:,} bytes with "
                f"{file.identity}, now it is {printable(str(length))} bytes with {printable(etag)}; start again"
            )
        location = answer.location or answer.url
        headers = {}
        if self._token and origin(location) == origin(self.endpoint):
            # The token is for the Hub alone, never for the storage that it redirects to.
            headers["Authorization"] = f"Bearer {self._token}"
        return Address(location, headers)

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

    def _ask(self, what: str, method: str, url: str, read: Callable[[Answer], Found]) -> Found:
        """Ask the Hub, patiently; its refusals become sentences."""
        attempt, few = 0, min(self.retry.attempts, METADATA_ATTEMPTS)
        while True:
            told_s, attempts = None, few
            try:
                answer = self._client.ask(method, url)
                if answer.status == 200 or (answer.location is not None and answer.status < 400 and method == "HEAD"):
                    return read(answer)
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
                # A Hub that cannot be reached at all is said soon; ranges under way are waited for longer.
                if attempt >= attempts:
                    raise _unreachable(self.endpoint, error) from None
                problem = f"{self.endpoint} cannot be reached ({_why(error)})"
            except (FormatError, KeyError, TypeError, ValueError) as error:
                raise NetworkError(
                    f"{self.endpoint} answered {what} with something unreadable ({printable(str(error), 120)})"
                ) from None
            except NetworkError as error:
                raise type(error)(f"{self.endpoint}, asked for {what}: {error}") from None
            else:
                refusal = self._refusal(what, answer)
                if refusal is not None:
                    raise refusal
                attempts = self.retry.attempts if answer.status in BUSY_STATUS else few
                problem = f"the Hub answered {what} with HTTP {answer.status}"
                if answer.status not in RETRIED_STATUS or attempt >= attempts:
                    raise NetworkError(f"{problem}; try again later")
                told_s = retry_after_s(answer.headers.get("Retry-After"))
            seconds = self.retry.wait_s(attempt, told_s)
            attempt += 1
            self.retry.tell_wait(problem, seconds, attempt, attempts)
            time.sleep(seconds)

    def _refusal(self, what: str, answer: Answer) -> DfqsError | None:
        """The sentence for a refusal that asking again does not change."""
        code, status = answer.refusal, answer.status
        if code == "GatedRepo":
            page = f"{self.endpoint}/{'/'.join(what.split('@')[0].split('/')[:2])}"
            return UsageError(f"{what} is gated: accept its conditions at {page} and set HF_TOKEN")
        if code == "RevisionNotFound":
            return UsageError(f"there is no revision {what}")
        if code == "RepoNotFound" or (status == 401 and code is None and not self._token):
            # The Hub does not say of a private repository that there is one.
            return UsageError(
                f"there is no repository {what}, or it is private; then HF_TOKEN must be of somebody who may see it"
            )
        if code == "EntryNotFound":
            return IntegrityError(f"{what} is gone from the Hub; start again")
        if status in (401, 403):
            return UsageError(f"the Hub refuses {what} (HTTP {status}); is HF_TOKEN right?")
        return None


def _read_info(answer: Answer) -> dict[str, Any]:
    info = answer.json()
    if not isinstance(info, dict) or not isinstance(info.get("siblings") or [], list):
        raise ValueError("no description of a repository")
    return info


def _unreachable(endpoint: str, error: Exception) -> DfqsError:
    where = "look at this machine's network and at HF_ENDPOINT"
    return NetworkError(f"{endpoint} cannot be reached: {_why(error)}; {where}")


def _why(error: Exception) -> str:
    return printable(str(error) or type(error).__name__, 200)


def _checked_file(entry: dict[str, Any]) -> RemoteFile | None:
    """A file as the Hub describes it (in JSON, so with whatever types), or None when its name, size or hash cannot be
    worked with."""
    name, lfs, git_sha1 = entry.get("rfilename"), entry.get("lfs"), entry.get("blobId")
    size = lfs.get("size") if isinstance(lfs, dict) else entry.get("size")
    if not isinstance(name, str) or not is_safe_name(name) or type(size) is not int or not 0 < size <= MAX_FILE_BYTES:
        return None
    if lfs:
        sha256 = lfs.get("sha256") if isinstance(lfs, dict) else None
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
