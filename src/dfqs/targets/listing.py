"""Which systems are here, what each would do with a model, and what is known of the GGUF that it reads."""

import contextlib
from pathlib import Path, PurePath
from typing import Literal

from pydantic import Field

from dfqs.errors import printable
from dfqs.model.files import ModelFiles
from dfqs.planning.loaders import judge_loaders
from dfqs.records import Document, Record, Text
from dfqs.shards.dialects import find_dialects
from dfqs.storage.space import free_bytes
from dfqs.targets.contract import LocalModel, Site, Target


class DialectRecord(Record):
    """Which GGUF a system reads, as far as that is known."""

    names: Text
    """Whose names of keys and tensors: `llama.cpp`, or UNKNOWN."""
    build: Text
    """Which build's architectures: a release, or UNKNOWN."""
    evidence: Text


class TargetRow(Record):
    """One system."""

    target: Text
    title: Text
    takes: Literal["path", "link", "copy", "endpoint", "download"]
    installed: Text | None
    """Where its program is, or the version of its Python package; null: neither was found."""
    state: Literal["ready", "not installed", "blocked"]
    """`not installed` does not stop deploying: what is written waits for the program."""
    reason: Text | None
    """Why it is blocked."""
    disk: Text | None
    """The directory that grows; null: nothing to speak of is written."""
    disk_low_bytes: int | None
    """Beside the model that is there; null: no model was given, or nothing grows."""
    disk_high_bytes: int | None
    disk_free_bytes: int | None
    dialect: DialectRecord | None
    """Null: it reads no file."""
    source: Text
    """Where what is known of it was read."""


class DeployListDocument(Document):
    """The systems that a model can be deployed to, and what stands in the way here."""

    schema_: Literal["dfqs.deploy-list/1"] = Field(default="dfqs.deploy-list/1", alias="schema")
    model: Text | None
    file_bytes: int | None
    targets: tuple[TargetRow, ...]


def list_targets(
    targets: tuple[Target, ...], site: Site, model: LocalModel | None, files: ModelFiles | None
) -> DeployListDocument:
    """A row for each target.

    Args:
        model, files: a model that the rows are about; both or neither.
    """
    rows = tuple(_row(target, site, model, files) for target in targets)
    return DeployListDocument(
        model=str(model.path) if model is not None else None,
        file_bytes=model.file_bytes if model is not None else None,
        targets=rows,
    )


def _row(target: Target, site: Site, model: LocalModel | None, files: ModelFiles | None) -> TargetRow:
    installed = installed_as(target, site)
    reason = why_blocked(target, site, model, files)
    space = target.space(model, site) if model is not None else None
    state: Literal["ready", "not installed", "blocked"] = "ready" if installed is not None else "not installed"
    return TargetRow(
        target=target.name,
        title=target.title,
        takes=target.takes,
        installed=installed,
        state="blocked" if reason is not None else state if target.takes != "download" else "ready",
        reason=reason,
        disk=str(space.directory) if space is not None else None,
        disk_low_bytes=space.low if space is not None else None,
        disk_high_bytes=space.high if space is not None else None,
        disk_free_bytes=free_at(space.directory) if space is not None else None,
        dialect=_dialect(target),
        source=target.source,
    )


def installed_as(target: Target, site: Site) -> str | None:
    """Where a target's program is, or which version of its package; None: not found."""
    for name in target.programs:
        if name in site.programs:
            return str(site.programs[name])
    for name in target.packages:
        if name in site.packages:
            return f"{name} {site.packages[name]}"
    return None


def why_blocked(target: Target, site: Site, model: LocalModel | None, files: ModelFiles | None) -> str | None:
    """What stands in the way of this target here, as far as it is known."""
    if (refusal := site.refusals.get(target.name)) is not None:
        return refusal
    if (reason := target.blocked(model, site)) is not None:
        return reason
    if files is None or target.takes == "endpoint":
        return None
    header = files.header
    architecture = header.metadata.text("general.architecture") or ""
    names = (tensor.name for tensor in files.tensors)
    if target.names == "llama.cpp" and (found := find_dialects(architecture, header.metadata, names)):
        whose = ", ".join(dialect.name for dialect in found)
        return f"the file is written for {printable(whose)}; dfqs repair --dialect upstream makes one for llama.cpp"
    for verdict in judge_loaders(header, files.tensors):
        if verdict.loader == target.loader and verdict.verdict == "FAILED":
            return verdict.evidence
    return None


def free_at(directory: PurePath) -> int | None:
    """Free bytes of the disk that has a directory, or will have it; None where that cannot be told."""
    with contextlib.suppress(OSError):
        for place in (Path(directory), *Path(directory).parents):
            if place.is_dir():
                return free_bytes(place)
    return None


def _dialect(target: Target) -> DialectRecord | None:
    if target.takes == "endpoint":
        return None
    return DialectRecord(names=target.names, build=target.build, evidence=target.dialect_evidence)
