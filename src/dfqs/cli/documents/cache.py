"""What `cache` prints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs.pull import KeptModel
from dfqs.records import Document, Record, Text


class CachedModel(Record):
    """A model of the Hub that is kept here."""

    name: Text
    """That brings it up again."""
    repo: Text
    commit: Text
    model: Text
    """Its name in the repository."""
    path: Text
    """Of its file; there when `state` is whole."""
    file_bytes: int
    """Of the whole."""
    taken_bytes: int
    """Of the disk now, journal and manifest with it."""
    state: Literal["whole", "unfinished", "being fetched"]


class CacheDocument(Document):
    """The models that are kept here, or those that were fetched or removed."""

    schema_: Literal["dfqs.cache/1"] = Field(default="dfqs.cache/1", alias="schema")
    directory: Text
    taken_bytes: int
    """Of all that are listed."""
    removed: bool
    """They were there, and are not any more."""
    models: tuple[CachedModel, ...]

    @classmethod
    def of(cls, directory: Path, models: Sequence[KeptModel], *, removed: bool = False) -> "CacheDocument":
        """As they are now."""
        listed = tuple(
            CachedModel(
                name=kept.name,
                repo=kept.record.repo,
                commit=kept.record.commit,
                model=kept.record.model,
                path=kept.path,
                file_bytes=kept.record.file_bytes,
                taken_bytes=kept.taken_bytes,
                state="whole" if kept.is_whole else "being fetched" if kept.is_busy else "unfinished",
            )
            for kept in models
        )
        total = sum(model.taken_bytes for model in listed)
        return cls(directory=directory, taken_bytes=total, removed=removed, models=listed)
