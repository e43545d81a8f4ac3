"""The manifest: what a model's bytes are and where they came from, written down so that it can be checked later."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs import __version__
from dfqs.errors import FormatError, UsageError
from dfqs.integrity.findings import Finding, Severity
from dfqs.model.hashes import ModelHashes, TensorHash, content_sha256, hash_model
from dfqs.progress import Progress, no_progress
from dfqs.records import Document, Record, Sha256, read_json, write_json
from dfqs.storage.atomic import check_output_path

_FETCH = "Fetch or merge the model again; `dfqs pull` and `dfqs merge` check what they write."
_MAKE_AGAIN = "Make the manifest again (`dfqs manifest MODEL --experts`)."
_LISTED = 20
_FEW = 3
"""Of so few tensors each may be damaged; of more, not all."""
MANIFEST_LIMIT_BYTES = 32 << 20
"""100,000 tensors, or 1,000 with the hashes of 256 experts each."""


class TensorRecord(Record):
    """One tensor's identity."""

    name: str
    type: str
    shape: list[int]
    """GGUF order: fastest axis first."""
    bytes: int = Field(ge=0)
    sha256: Sha256
    expert_sha256: list[Sha256] | None = None
    """Of each expert's slice, where it was asked for."""


class SourceFile(Record):
    """One file that the model was made of."""

    name: str
    bytes: int = Field(ge=0)
    sha256: Sha256 | None
    """Null where it was not computed."""


class Provenance(Record):
    """Where the model came from; null where it is not known."""

    repo: str | None = None
    revision: str | None = None
    """What was asked for: a branch, a tag."""
    commit: str | None = None
    """What that was then."""
    endpoint: str | None = None
    shards: list[SourceFile] | None = None


class Manifest(Document):
    """A model's identity and origin: the record `dfqs.manifest/1`."""

    schema_: Literal["dfqs.manifest/1"] = Field(default="dfqs.manifest/1", alias="schema")
    earlier_keys = (("schema_id", "schema"),)
    file_name: str
    file_bytes: int = Field(ge=0)
    file_sha256: Sha256
    content_sha256: Sha256
    tool: str
    created_at: str
    """UTC, ISO 8601."""
    provenance: Provenance
    tensors: list[TensorRecord]
    """In file order."""


def make_manifest(
    path: Path,
    *,
    provenance: Provenance | None = None,
    experts: bool = False,
    progress: Progress = no_progress,
) -> Manifest:
    """Hash a model and write down what it is.

    Args:
        experts: hash every expert's slice, so that a later check can say which expert changed.
        progress: in bytes of the file.

    Raises:
        FormatError: the file is not in order; a manifest of a broken file would prove nothing.
        UsageError: it cannot be read.
    """
    return manifest_of(path.name, hash_model(path, experts=experts, progress=progress), provenance)


def manifest_of(file_name: str, hashes: ModelHashes, provenance: Provenance | None = None) -> Manifest:
    """The manifest of a model whose hashes are known."""
    assert hashes.file_sha256 is not None
    return Manifest(
        file_name=file_name,
        file_bytes=hashes.file_bytes,
        file_sha256=hashes.file_sha256,
        content_sha256=hashes.content_sha256,
        tool=f"dfqs {__version__}",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        provenance=provenance or Provenance(),
        tensors=[
            TensorRecord(
                name=t.name,
                type=t.type,
                shape=list(t.shape),
                bytes=t.length,
                sha256=t.sha256,
                expert_sha256=list(t.expert_sha256) or None,
            )
            for t in hashes.tensors
        ],
    )


def manifest_path(model: Path) -> Path:
    """Where the manifest of a model goes when nothing else is said."""
    return model.with_name(model.name + ".manifest.json")


def check_manifest_place(model: Path, *, overwrite: bool = False) -> Path:
    """Where the manifest of a model that is being made goes. One of an earlier file of that name makes room for it.

    Raises:
        UsageError: another file is there, and `overwrite` is false.
    """
    path = manifest_path(model)
    check_output_path(path, overwrite=overwrite or _is_manifest_of(path, model.name))
    return path


def write_manifest(model: Path, manifest: Manifest, *, overwrite: bool = False) -> Path:
    """Write the manifest of a model that was just made beside it.

    Raises:
        UsageError: as `check_manifest_place`.
    """
    path = check_manifest_place(model, overwrite=overwrite)
    write_json(path, manifest, overwrite=path.is_file())
    return path


def _is_manifest_of(path: Path, file_name: str) -> bool:
    try:
        return read_manifest(path).file_name == file_name
    except (FormatError, UsageError):
        return False


def read_manifest(path: Path) -> Manifest:
    """Read a manifest, and make sure that it does not contradict itself.

    Raises:
        FormatError: not a manifest.
        UsageError: there is no such file.
    """
    return read_json(path, Manifest, limit_bytes=MANIFEST_LIMIT_BYTES)


def manifest_findings(manifest: Manifest, hashes: ModelHashes, *, content_only: bool = False) -> tuple[Finding, ...]:
    """Where a model differs from its manifest.

    Args:
        content_only: tensors decide alone; another header or order is a warning. The header holds the tokenizer and the
            chat template, so by default it counts.
    """
    if own := _contradiction(manifest):
        return (own,)
    if other := _another_model(manifest, hashes):
        return (other,)
    findings = [*_tensor_findings(manifest.tensors, hashes.tensors)]
    if not manifest.tensors and not hashes.tensors and (content_only or hashes.file_sha256 is None):
        # Nothing compared is no agreement; without `--content` the hash of the file decides.
        message = "neither it nor the model has a tensor, so nothing was compared"
        findings.append(Finding("no-tensors", message, "Leave --content out: then the whole file is compared."))
    if not findings and hashes.file_sha256 not in (None, manifest.file_sha256):
        findings.append(
            Finding(
                "layout",
                "every tensor is as recorded, but the file is not: another header (tokenizer, chat template), or order",
                "If it was merged in another way, `--content` leaves the header out; else fetch or merge it again.",
                severity=Severity.WARNING if content_only else Severity.ERROR,
            )
        )
    return tuple(findings)


def wants_experts(manifest: Manifest) -> bool:
    """Whether the manifest has hashes of single experts to compare with."""
    return any(tensor.expert_sha256 for tensor in manifest.tensors)


def _contradiction(manifest: Manifest) -> Finding | None:
    lines = (TensorHash(t.name, t.type, tuple(t.shape), t.bytes, t.sha256, zeroes=False) for t in manifest.tensors)
    if content_sha256(lines) == manifest.content_sha256:
        return None
    message = "its content_sha256 is not that of the tensors it lists; it was edited or damaged"
    return Finding("manifest", message, "Get the manifest again from where the model came from.")


def _another_model(manifest: Manifest, hashes: ModelHashes) -> Finding | None:
    """The manifest is not of this model at all: hardly a tensor has the name, type and shape that it records."""
    recorded = {(record.name, record.type, tuple(record.shape)) for record in manifest.tensors}
    found = {(tensor.name, tensor.type, tuple(tensor.shape)) for tensor in hashes.tensors}
    shared = recorded & found
    if not found:
        return None
    if 2 * len(shared) >= max(len(recorded), len(found)):
        digests = {(t.name, t.type, tuple(t.shape)): t.sha256 for t in hashes.tensors}
        records = ((r.name, r.type, tuple(r.shape)) for r in manifest.tensors)
        equal = sum(digests.get(key) == r.sha256 for key, r in zip(records, manifest.tensors, strict=True))
        if equal or len(recorded) < _FEW:
            return None
        how = f"none of its {len(recorded):,} tensors has the bytes that are recorded"
    else:
        how = f"of {len(recorded):,} tensors that it records, {len(shared):,} are here with the same type and shape"
    message = f"it is the manifest of another model ({manifest.file_name}): {how}"
    return Finding("another-model", message, "Give the manifest of this model, or the model of this manifest.")


def _tensor_findings(recorded: Sequence[TensorRecord], found: Sequence[TensorHash]) -> list[Finding]:
    findings: list[Finding] = []
    present = {tensor.name: tensor for tensor in found}
    for record in recorded:
        tensor = present.pop(record.name, None)
        if tensor is None:
            findings.append(
                Finding("missing-tensor", "the manifest has it, the model does not", _FETCH, name=record.name)
            )
        elif (tensor.type, list(tensor.shape)) != (record.type, record.shape):
            message = f"is {tensor.type} {list(tensor.shape)}, recorded as {record.type} {record.shape}"
            findings.append(Finding("description", message, _FETCH, name=record.name))
        elif tensor.sha256 != record.sha256:
            message = f"its bytes are not those recorded{_which_experts(record, tensor)}"
            findings.append(Finding("differs", message, _FETCH, name=record.name))
        elif which := _which_experts(record, tensor):
            # Both are hashes of the same bytes, so the manifest contradicts itself; streaming goes by the experts'.
            message = f"its bytes are those recorded, and the hashes of single experts are not theirs{which}"
            findings.append(Finding("manifest", message, _MAKE_AGAIN, name=record.name))
    for name in present:
        findings.append(Finding("extra-tensor", "the model has it, the manifest does not", _FETCH, name=name))
    if len(findings) > _LISTED:
        more = Finding("differs", f"and {len(findings) - _LISTED:,} more tensors likewise", _FETCH)
        findings = [*findings[:_LISTED], more]
    return findings


def _which_experts(record: TensorRecord, tensor: TensorHash) -> str:
    if not record.expert_sha256 or len(record.expert_sha256) != len(tensor.expert_sha256):
        return ""
    pairs = zip(record.expert_sha256, tensor.expert_sha256, strict=True)
    experts = [str(index) for index, (then, now) in enumerate(pairs) if then != now]
    shown = ", ".join(experts[:8]) + (f" and {len(experts) - 8} more" if len(experts) > 8 else "")
    return f" (expert {shown})" if experts else ""
