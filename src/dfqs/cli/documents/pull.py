"""What `pull` prints."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs.integrity.manifest import Manifest
from dfqs.pull import Hub, PullPlan, PullResult
from dfqs.pull.output import taken_bytes
from dfqs.records import Document, Record, Text


class PulledFile(Record):
    """One file of the Hub."""

    name: Text
    bytes: int
    sha256: str | None
    cached: bool
    """It lies in the local Hub cache, so that it is not fetched; known before a pull."""


class PullDocument(Document):
    """A pull, planned or done; what is not known is null."""

    schema_: Literal["dfqs.pull/1"] = Field(default="dfqs.pull/1", alias="schema")
    repo: Text
    revision: Text
    commit: Text
    endpoint: Text
    output: Text
    dry_run: bool
    file_bytes: int
    remote_bytes: int
    """Of all files that the model is made of."""
    tensors: int
    fits: bool | None
    """Whether there is room for it; known of a plan."""
    done_already: bool | None
    already_on_disk_bytes: int | None
    """What an unfinished pull takes."""
    fetched_bytes: int | None
    reused_bytes: int | None
    """Kept from an unfinished pull."""
    cached_bytes: int | None
    """Taken out of the local Hub cache."""
    refetched: tuple[Text, ...] | None
    """What was damaged and fetched again."""
    file_sha256: str | None
    content_sha256: str | None
    files: tuple[PulledFile, ...]

    @classmethod
    def of(
        cls,
        plan: PullPlan,
        output: Path,
        hub: Hub,
        *,
        use_cache: bool,
        result: PullResult | None = None,
        manifest: Manifest | None = None,
        fits: bool | None = None,
    ) -> "PullDocument":
        """Plan and outcome."""
        listing = plan.listing
        return cls(
            repo=listing.repo,
            revision=listing.revision,
            commit=listing.commit,
            endpoint=listing.endpoint,
            output=output,
            dry_run=result is None,
            file_bytes=plan.file_bytes,
            remote_bytes=plan.fetch_bytes,
            tensors=plan.tensors,
            fits=fits,
            done_already=result.done_already if result else None,
            already_on_disk_bytes=taken_bytes(output) if result is None else None,
            fetched_bytes=result.fetched_bytes if result else None,
            reused_bytes=result.reused_bytes if result else None,
            cached_bytes=result.cached_bytes if result else None,
            refetched=result.refetched_chunks if result else None,
            file_sha256=manifest.file_sha256 if manifest else None,
            content_sha256=manifest.content_sha256 if manifest else None,
            files=tuple(
                PulledFile(
                    name=layout.file.name,
                    bytes=layout.file.size,
                    sha256=layout.file.sha256,
                    cached=use_cache and result is None and hub.cached(listing, layout.file) is not None,
                )
                for layout in plan.layouts
            ),
        )
