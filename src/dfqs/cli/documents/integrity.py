"""What `verify` and `find` print."""

from typing import Literal

from pydantic import Field

from dfqs.cli.documents.attest import VerifiedSignatures
from dfqs.find import FindResult, FoundModel
from dfqs.records import Document, Record, Text


class FindingRecord(Record):
    """One thing that a check found."""

    severity: Literal["error", "warning"]
    code: str
    """Which finding, for programs: it never gets another word."""
    message: Text
    fix: Text
    """What to do about it."""
    offset: int | None
    """Byte in the file."""
    name: Text | None
    """Key or tensor."""


class Compared(Record):
    """How much was compared byte by byte."""

    tensors: int
    bytes: int


class VerifyDocument(Document):
    """What came of the checks; what was not done is null."""

    schema_: Literal["dfqs.verify/1"] = Field(default="dfqs.verify/1", alias="schema")
    model: Text
    file_bytes: int
    ok: bool
    """No finding is an error."""
    findings: tuple[FindingRecord, ...]
    file_sha256: str | None
    content_sha256: str | None
    """Of names, types, shapes and bytes of the tensors: equal for the same model however it lies in files."""
    manifest: Text | None
    against: Text | None
    compared: Compared | None
    attestation: VerifiedSignatures | None = None
    class_: Text | None = Field(alias="class")
    """The deployment class that every tensor's type has."""
    closest_class: Text | None
    class_deviations: tuple[Text, ...]


class FoundFile(Record):
    """A file that was found, once however many names it has."""

    path: Text
    names: tuple[Text, ...]
    """All its names: links cost nothing."""
    bytes: int


class FoundEntry(Record):
    """A model that was found."""

    name: Text
    complete: bool
    """All its shards are there."""
    tensors: int | None
    """Null where its header cannot be read."""
    file_bytes: int
    disk_bytes: int
    problem: Text | None
    """Why it is not usable."""
    files: tuple[FoundFile, ...]

    @classmethod
    def of(cls, model: FoundModel) -> "FoundEntry":
        """One entry."""
        files = (FoundFile(path=f.path, names=tuple(f.names), bytes=f.file_bytes) for f in model.files)
        return cls(
            name=model.name,
            complete=model.complete,
            tensors=model.tensors if model.problem is None else None,
            file_bytes=model.file_bytes,
            disk_bytes=model.disk_bytes,
            problem=model.problem,
            files=tuple(files),
        )


class Copies(Record):
    """The same model in several places."""

    content_sha256: str | None
    """Null where headers and samples were compared."""
    paths: tuple[Text, ...]
    defects: tuple[Text | None, ...]
    """For each: why llama.cpp does not load it."""
    freeable_bytes: int


class Siblings(Record):
    """Models of the same tensors that differ in keys which matter: no copies."""

    content_sha256: str | None
    paths: tuple[Text, ...]
    differing_keys: tuple[Text, ...]


class FindDocument(Document):
    """What was found, and which of it could be freed."""

    schema_: Literal["dfqs.find/1"] = Field(default="dfqs.find/1", alias="schema")
    searched: tuple[Text, ...]
    models: tuple[FoundEntry, ...]
    same: tuple[Copies, ...]
    same_tensors: tuple[Siblings, ...]
    freeable_bytes: int
    unreadable: tuple[Text, ...]
    """Directories that may not be looked into."""

    @classmethod
    def of(cls, result: FindResult) -> "FindDocument":
        """The whole result."""
        same = (
            Copies(
                content_sha256=group.content_sha256,
                paths=tuple(model.files[0].path for model in group.models),
                defects=group.defects,
                freeable_bytes=group.freeable_bytes,
            )
            for group in result.same
        )
        siblings = (
            Siblings(
                content_sha256=other.content_sha256,
                paths=tuple(model.files[0].path for model in other.models),
                differing_keys=other.keys,
            )
            for other in result.same_tensors
        )
        return cls(
            searched=tuple(result.searched),
            models=tuple(FoundEntry.of(model) for model in result.models),
            same=tuple(same),
            same_tensors=tuple(siblings),
            freeable_bytes=result.freeable_bytes,
            unreadable=tuple(result.unreadable),
        )
