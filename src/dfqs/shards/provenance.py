"""What the Hub's own tools left beside a downloaded shard: its commit, and the SHA-256 that its bytes must have.

Two places: in the Hub's cache a file is a symlink to `blobs/<sha256>`; a download to a directory leaves
`.cache/huggingface/download/<file>.metadata` with commit, ETag (the SHA-256 of large files) and time, one a line.
Source: huggingface_hub, `_local_folder.py` and the cache's documentation.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import IntegrityError
from dfqs.gguf.shard import Shard

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_RECORD_LIMIT_BYTES = 4096
_DEPTH = 4
"""Folders of a repository that a shard may lie below the download's directory."""


@dataclass(frozen=True, slots=True)
class HubRecord:
    """What is known of a downloaded file; None where it is not."""

    commit: str | None
    sha256: str | None


def read_hub_record(path: Path) -> HubRecord | None:
    """The record of a file that the Hub's tools fetched, or None."""
    try:
        if path.is_symlink():
            blob = path.readlink()
            if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
                return HubRecord(None, blob.name)
            return None
        absolute = path.absolute()
        for folder in list(absolute.parents)[:_DEPTH]:
            record = folder / ".cache/huggingface/download" / f"{absolute.relative_to(folder)}.metadata"
            if record.is_file() and record.stat().st_size <= _RECORD_LIMIT_BYTES:
                commit, etag, *_ = [*record.read_text(errors="replace").splitlines(), "", ""]
                return HubRecord(
                    commit if _COMMIT.fullmatch(commit) else None, etag if _SHA256.fullmatch(etag) else None
                )
    except OSError:
        return None
    return None


def provenance_notes(shards: Sequence[Shard]) -> Iterator[str]:
    """Say when local shards were fetched from different commits: another model with the same layout looks like this."""
    commits: dict[str, str] = {}
    for shard in shards:
        record = read_hub_record(shard.path)
        if record is not None and record.commit is not None:
            commits.setdefault(record.commit, shard.path.name)
    if len(commits) > 1:
        found = ", ".join(f"{name} from {commit[:12]}" for commit, name in list(commits.items())[:3])
        yield f"the shards were fetched from different commits ({found}); make sure that they are one model (--hash)"


def require_expected_sha256(shard: Shard, sha256: str) -> None:
    """Compare a shard's hash with what the Hub said of it.

    Raises:
        IntegrityError: they differ.
    """
    record = read_hub_record(shard.path)
    if record is not None and record.sha256 is not None and record.sha256 != sha256:
        raise IntegrityError(
            f"{shard.source} has the SHA-256 {sha256}, the Hub's record of it says {record.sha256}; it is damaged or "
            "of another model. Fetch it again"
        )
