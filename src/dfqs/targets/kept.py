"""What a deployment has changed, kept so that it can be taken back: one directory each, with back-ups and a record.

The record is durable, with all back-ups, before anything is changed; it is written again when all is done. Whatever
happens in between, undoing finds what was there.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dfqs.records import Document, Record, Text, read_json, write_json
from dfqs.storage.cache import state_directory
from dfqs.targets.contract import Edit, Format, Named, Step, Way

RECORD_NAME = "deployment.json"


class NamedStep(Record):
    """A step into a list: the entry whose `key` is `value`."""

    key: str
    value: str


class EditRecord(Record):
    """One value that was put into a configuration."""

    way: tuple[str | NamedStep, ...]
    value: Any
    only_where_missing: bool = False

    @classmethod
    def of(cls, edit: Edit) -> "EditRecord":
        way = tuple(NamedStep(key=s.key, value=s.value) if isinstance(s, Named) else s for s in edit.way)
        return cls(way=way, value=edit.value, only_where_missing=edit.only_where_missing)

    def edit(self) -> Edit:
        way: tuple[Step, ...] = tuple(Named(s.key, s.value) if isinstance(s, NamedStep) else s for s in self.way)
        return Edit(way, self.value, self.only_where_missing)


class PartRecord(Record):
    """One file that a deployment changed or made."""

    path: str
    kind: Literal["config", "file", "link"]
    format: Format | None = None
    """Of a configuration."""
    edits: tuple[EditRecord, ...] = ()
    before: str | None = None
    """Name of the back-up beside this record; null: nothing was there."""
    before_sha256: str | None = None
    after_sha256: str | None = None
    edited: bool = False
    """The user changed the file between two deployments: only the values can be taken back, not the bytes."""
    source: str | None = None
    """Of a link: the model's file."""
    way: Way | None = None
    """How the link was made; null: not yet."""
    inode: int | None = None
    """Of what stands at the link's path; null: not yet known."""
    source_stamp: str | None = None
    """Of a link's source when the link was made."""


class Deployment(Document):
    """A model in a system: what was changed for it, and what was there before."""

    schema_: Literal["dfqs.deployment/1"] = Field(default="dfqs.deployment/1", alias="schema")
    target: Text
    model: Text
    """The file, or the first shard."""
    listed_as: Text
    """The name that the system lists it under."""
    done: bool
    """All of it was written."""
    parts: tuple[PartRecord, ...]
    directories: tuple[str, ...]
    """That did not exist before."""
    undone_by: tuple[tuple[str, ...], ...]
    """Commands that take back what the system itself was told."""
    model_stamp: str
    """Of the model's file when the system was told: a copy of it is not made again."""

    def part_at(self, path: Path) -> PartRecord | None:
        """What was changed at a path."""
        return next((part for part in self.parts if part.path == str(path)), None)

    def with_part(self, record: PartRecord) -> "Deployment":
        """With one part told anew, or added."""
        parts = [record if part.path == record.path else part for part in self.parts]
        if record not in parts:
            parts.append(record)
        return self.model_copy(update={"parts": tuple(parts)})


def deployments_directory() -> Path:
    """Where records of deployments lie, a directory each."""
    return state_directory() / "deployments"


def kept_at(target: str, model: Path, listed_as: str) -> Path:
    """The directory of one deployment: of a model, to a system, under a name."""
    digest = hashlib.sha256(os.fsencode(model) + b"\0" + listed_as.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return deployments_directory() / f"{target}-{digest}"


def read_deployment(directory: Path) -> Deployment | None:
    """The record of a deployment; None where there is none.

    Raises:
        FormatError: it is damaged.
    """
    path = directory / RECORD_NAME
    return read_json(path, Deployment) if path.is_file() else None


def write_deployment(directory: Path, deployment: Deployment) -> None:
    """Keep a record; durable when this returns."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(directory / RECORD_NAME, deployment, overwrite=True)


def find_deployments(target: str | None = None, model: str | None = None) -> Iterator[tuple[Path, Deployment]]:
    """Records of deployments, those of a target and of a model (as its record has it) where they are given."""
    directory = deployments_directory()
    if not directory.is_dir():
        return
    for entry in sorted(directory.iterdir()):
        deployment = read_deployment(entry)
        if deployment is None or (target is not None and deployment.target != target):
            continue
        if model is None or deployment.model == model:
            yield entry, deployment
