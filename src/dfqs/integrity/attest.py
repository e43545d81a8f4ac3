"""A model signed, and how it was made with it: written, and held against a model later.

Beside `MODEL` stand `MODEL.sig` (OpenSSF Model Signing: every file's hash) and `MODEL.derivation.sigstore.json` (SLSA
provenance: source, recipe, importance matrix, tool). Whose keys are to be trusted only the caller knows: `Signer` and
`Verifier` are `dfqs.integrity.signing`'s, which needs an extra.
"""

import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dfqs.errors import FormatError, IntegrityError, printable
from dfqs.gguf.shard_names import merged_path
from dfqs.integrity.findings import Finding, Severity, has_errors
from dfqs.integrity.manifest import (
    Manifest,
    manifest_findings,
    manifest_of,
    manifest_path,
    read_manifest,
    wants_experts,
    write_manifest,
)
from dfqs.integrity.statements import (
    DERIVATION_PREDICATE,
    MODEL_PREDICATE,
    Derivation,
    SignatureRefused,
    SignedFile,
    derivation_of,
    derivation_statement,
    file_name,
    model_statement,
    read_derivation,
    read_model_statement,
)
from dfqs.integrity.structure import require_one_model
from dfqs.model.files import ModelFiles
from dfqs.model.hashes import ModelHashes
from dfqs.model.making import read_making
from dfqs.progress import Progress, no_progress
from dfqs.receipts import find_receipt, receipt_of, stamp_record
from dfqs.records import readable_text, sha256_of
from dfqs.storage.atomic import partial_path, publish_file, storage_errors, write_bytes_atomic
from dfqs.storage.documents import parse_json
from dfqs.storage.hashing import hash_file
from dfqs.storage.identity import FileStamp

_GET_AGAIN = "Get the model again from where it came from, or the signature that belongs to this one."
_LISTED = 20


class Signer(Protocol):
    """A private key."""

    public_key_sha256: str

    def sign(self, statement: dict[str, Any]) -> bytes:
        """A statement, signed."""
        ...


class Verifier(Protocol):
    """Whom the caller trusts."""

    def verify(self, path: Path) -> dict[str, Any]:
        """The statement in a file, if they signed it.

        Raises:
            SignatureRefused: they did not.
        """
        ...


@dataclass(frozen=True, slots=True)
class Places:
    """Where the two signed statements of a model stand."""

    signature: Path
    derivation: Path


@dataclass(frozen=True, slots=True)
class Attestation:
    """What was signed."""

    places: Places
    files: tuple[SignedFile, ...]
    content_sha256: str
    derivation: Derivation | None
    """None: nothing says how the model was made, and only its bytes were signed."""
    manifests: tuple[Path, ...]
    """One a file, in order."""
    public_key_sha256: str


def attestation_places(model: ModelFiles) -> Places:
    """Where the statements of a model stand when nothing else is said; shards go by the name of their merge."""
    stem = merged_path(model.path) if len(model.paths) > 1 else model.path
    return Places(stem.with_name(f"{stem.name}.sig"), stem.with_name(f"{stem.name}.derivation.sigstore.json"))


def attest(
    model: ModelFiles,
    signer: Signer,
    places: Places,
    *,
    overwrite: bool = False,
    write: bool = True,
    progress: Progress = no_progress,
) -> Attestation:
    """Hash a model once, sign its files and how they were made. Writes manifests where there are none.

    Args:
        write: false: find out everything, sign nothing.
        progress: in bytes of all files.

    Raises:
        FormatError: a file is damaged, or not one model.
        IntegrityError: a manifest beside it is of other bytes.
        UsageError: the signature exists already, and `overwrite` is false.
    """
    for path in model.paths:
        require_one_model(path)
    recorded = [_recorded(path) for path in model.paths]
    experts = any(manifest is not None and wants_experts(manifest) for manifest in recorded)
    parts = model.file_hashes(experts=experts, progress=progress)
    content = model.hashes().content_sha256
    manifests = [_checked(*entry) for entry in zip(model.paths, recorded, parts, strict=True)]
    files = _signed_files(model, parts)
    if write:
        for path, before, manifest in zip(model.paths, recorded, manifests, strict=True):
            if before is None:
                write_manifest(path, manifest)
    places_of_manifests = tuple(manifest_path(path) for path in model.paths)
    described = [SignedFile(readable_text(path.name), hash_file(path)) for path in places_of_manifests if path.exists()]
    provenance = [manifest.provenance for manifest in manifests]
    derivation = derivation_of(files, content, described, read_making(model.header), provenance)
    if write:
        overwrite = overwrite or is_half_written(model, places)
        signed = signer.sign(model_statement(readable_text(model.path.name), files))
        if derivation is None:
            write_bytes_atomic(places.signature, signed, overwrite=overwrite)
        else:
            made = signer.sign(derivation_statement(derivation))
            with receipt_of(_half(model), places.signature) as on_whole:
                write_bytes_atomic(places.signature, signed, overwrite=overwrite, on_whole=on_whole)
            write_bytes_atomic(places.derivation, made, overwrite=overwrite)
    return Attestation(places, tuple(files), content, derivation, places_of_manifests, signer.public_key_sha256)


def is_half_written(model: ModelFiles, places: Places) -> bool:
    """Whether the signature is there of a run that ended before it wrote how the model was made: it may be replaced."""
    return not os.path.lexists(places.derivation) and find_receipt(_half(model), [places.signature]) is not None


def _half(model: ModelFiles) -> str:
    """Of the signature of a model that a second statement belongs to."""
    stamps = [stamp_record(FileStamp.of(path.stat())) for path in model.paths]
    return sha256_of(["attest", stamps])


def _signed_files(model: ModelFiles, parts: Sequence[ModelHashes]) -> list[SignedFile]:
    """Names (of what is no UTF-8 the numbers, as a statement is text) and hashes."""
    pairs = zip(model.paths, parts, strict=True)
    return [SignedFile(readable_text(path.name), str(part.file_sha256)) for path, part in pairs]


def _recorded(path: Path) -> Manifest | None:
    place = manifest_path(path)
    return read_manifest(place) if place.exists() else None


def _checked(path: Path, recorded: Manifest | None, hashes: ModelHashes) -> Manifest:
    if recorded is None:
        return manifest_of(path.name, hashes)
    for finding in manifest_findings(recorded, hashes):
        if finding.severity is Severity.ERROR:
            raise IntegrityError(
                f"{path} is not what {manifest_path(path).name} records, and is not signed: {finding.message}. "
                f"{finding.fix}"
            )
    return recorded


@dataclass(frozen=True, slots=True)
class Attested:
    """What signed statements say of a model, and whether it is so."""

    places: tuple[Path, ...]
    signed: bool
    """Its bytes are those that were signed."""
    derivation: Derivation | None
    """How it was made, by a signed statement that fits it."""
    findings: tuple[Finding, ...]


def statement_files(given: Path) -> tuple[Path, ...]:
    """A signed statement, and the other one of the same model where it stands beside it."""
    for name, other in ((".sig", ".derivation.sigstore.json"), (".derivation.sigstore.json", ".sig")):
        if given.name.endswith(name):
            beside = given.with_name(given.name.removesuffix(name) + other)
            return (given, beside) if beside.exists() else (given,)
    return (given,)


def verify_attestation(
    model: ModelFiles,
    parts: Sequence[ModelHashes],
    content_sha256: str,
    places: Sequence[Path],
    verifier: Verifier,
) -> Attested:
    """Hold a model against what was signed of it.

    Args:
        parts: hashes of each of its files.
        places: the signed statements.

    Raises:
        FormatError: a file is no signed statement.
        UsageError: there is no such file.
    """
    files = _signed_files(model, parts)
    findings: list[Finding] = []
    signed, derivation = False, None
    for place in places:
        try:
            statement = verifier.verify(place)
        except SignatureRefused as error:
            message = f"the signature in {place.name} does not hold: {error}"
            findings.append(_finding("signature", message, "Give the key of whoever signed it, or get it again."))
            continue
        kind = statement.get("predicateType")
        if kind == MODEL_PREDICATE:
            found = list(_signature_findings(read_model_statement(statement), files, place))
            signed = not has_errors(found)
        elif kind == DERIVATION_PREDICATE:
            said = read_derivation(statement)
            found = list(_derivation_findings(said, model, files, content_sha256))
            derivation = None if has_errors(found) else said
        else:
            raise FormatError(f"a statement about something else: {printable(str(kind))}", path=place)
        findings += found
    return Attested(tuple(places), signed, derivation, tuple(findings[:_LISTED]))


def _signature_findings(
    listed: tuple[SignedFile, ...] | None, files: Sequence[SignedFile], place: Path
) -> Iterable[Finding]:
    if listed is None:
        message = f"{place.name} has hashes of another kind than SHA-256 of whole files, which are not computed here"
        yield _finding("signature", message, "`model_signing verify` computes them.")
        return
    alone = len(listed) == len(files) == 1
    by_name = {file_name(entry.name): entry.sha256 for entry in listed}
    for file in files:
        sha256 = listed[0].sha256 if alone else by_name.get(file.name)
        if sha256 is None:
            yield _finding("unsigned", f"{file.name} is not among the files that were signed", _GET_AGAIN)
        elif sha256 != file.sha256:
            yield _finding("signed", f"{file.name} has not the bytes that were signed", _GET_AGAIN)
    names = {file.name for file in files}
    others = 0 if alone else sum(1 for name in by_name if name not in names)
    if others:
        message = f"the signature is of {others:,} more files, which were not looked at"
        yield Finding("signed-more", message, "`model_signing verify` looks at all.", severity=Severity.WARNING)


def _derivation_findings(
    said: Derivation, model: ModelFiles, files: Sequence[SignedFile], content_sha256: str
) -> Iterable[Finding]:
    if sorted(file.sha256 for file in said.files) != sorted(file.sha256 for file in files):
        yield _finding("derivation", "the statement of derivation is of other files", _GET_AGAIN)
        return
    making = read_making(model.header)
    pairs: list[tuple[str, object, object]] = []
    if said.content_sha256 is not None:
        pairs.append(("the content hash", said.content_sha256, content_sha256))
    if making is not None:
        recipe = parse_json(making.recipe) if making.recipe is not None else None
        pairs += [
            ("the class", said.class_name, making.class_name),
            ("the recipe", said.recipe, recipe),
            ("the source's content hash", said.source_content_sha256, making.source_content_sha256),
            ("the importance matrix's hash", said.imatrix_sha256, making.imatrix_sha256),
            ("the version of dfqs", said.version, making.version),
        ]
    elif said.class_name is not None:
        yield _finding("derivation", "it is said to be quantized by dfqs, and its header does not say so", _GET_AGAIN)
    for what, signed, found in pairs:
        if signed != found:
            yield _finding("derivation", f"{what} in the statement of derivation is not the file's", _GET_AGAIN)
    hashes = {manifest.sha256 for manifest in said.manifests}
    for path in map(manifest_path, model.paths):
        if hashes and path.exists() and hash_file(path) not in hashes:
            yield _finding("derivation", f"{path.name} is not the manifest that was signed with it", _GET_AGAIN)


def _finding(code: str, message: str, fix: str) -> Finding:
    return Finding(code, message, fix)


def write_private(path: Path, data: bytes) -> None:
    """A new file that this user alone can read, whole or not at all.

    Raises:
        UsageError: there is one already.
    """
    temporary = partial_path(path, secrets.token_hex(4))
    with storage_errors(path):
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(handle)
            publish_file(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
