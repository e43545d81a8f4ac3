"""What `publish` prints."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from dfqs.records import Document, Record, Sha256, Text, Whole
from dfqs.report.publish import Commit, Remote
from dfqs.report.publish_files import Published


class PublishedFile(Record):
    """One file of the repository."""

    name: Text
    bytes: Whole
    sha256: Sha256
    action: Literal["upload", "replace", "unchanged"]


class PublishDocument(Document):
    """What is, or would be, in the repository."""

    schema_: Literal["dfqs.publish/1"] = Field(default="dfqs.publish/1", alias="schema")
    endpoint: Text
    repo: Text
    exists: bool
    """Before the call."""
    private: bool | None
    """Of a new repository as it is made; null: the Hub did not say."""
    files: tuple[PublishedFile, ...]
    upload_bytes: Whole
    """Of files that are not there yet; what an earlier call had sent is not sent again."""
    notes: tuple[Text, ...]
    dry_run: bool
    done_already: bool
    """Everything is there as it is here."""
    commit: Text | None
    """That was made; null where none was."""
    warnings: tuple[Text, ...]
    """The Hub's, on the card."""

    @classmethod
    def of(
        cls, endpoint: str, remote: Remote, published: Published, private: bool, commit: Commit | None, dry_run: bool
    ) -> "PublishDocument":
        """Plan and outcome."""
        files = _files(remote, published)
        return cls(
            endpoint=endpoint,
            repo=remote.repo,
            exists=remote.commit is not None,
            private=remote.private if remote.commit is not None else private,
            files=files,
            upload_bytes=sum(file.bytes for file in files if file.action != "unchanged"),
            notes=published.notes,
            dry_run=dry_run,
            done_already=all(file.action == "unchanged" for file in files),
            commit=commit.id if commit is not None else None,
            warnings=commit.warnings if commit is not None else (),
        )


def _files(remote: Remote, published: Published) -> tuple[PublishedFile, ...]:
    found: Sequence[PublishedFile] = [
        PublishedFile(name=file.name, bytes=file.size_bytes, sha256=file.sha256, action=remote.action(file).value)
        for file in published.files
    ]
    return tuple(found)
