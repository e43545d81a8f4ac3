"""What is signed of a model: the bytes of its files, and how they were made. Statements as data; pure.

Formats: OpenSSF Model Signing 1.0 (an in-toto statement whose predicate lists files with their hashes), and SLSA
provenance 1 (in-toto's predicate for how an artifact came to be).
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from dfqs.errors import FormatError, printable
from dfqs.integrity.manifest import Provenance
from dfqs.model.making import Making
from dfqs.storage.documents import parse_json

MODEL_PREDICATE = "https://model_signing/signature/v1.0"
DERIVATION_PREDICATE = "https://slsa.dev/provenance/v1"
_BASE = "https://doi.org/10.57967/hf/8853"
QUANTIZE, MERGE = f"{_BASE}#dfqs-quantize-1", f"{_BASE}#dfqs-merge-1"
"""What kind of making a statement speaks of; docs/attest.md says what stands in each."""
CONTENT = "dfqsContentSha256"
"""The kind of digest that `content_sha256` is, beside `sha256` of a file's bytes."""
SOURCE, IMPORTANCE = "source", "importance matrix"


class SignatureRefused(Exception):
    """A signature that a key or certificates do not confirm; says why."""


class _Part(BaseModel):
    """Of a statement from outside: what else stands in it is for others."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Resource(_Part):
    """One of the things that a statement is about."""

    name: str | None = None
    uri: str | None = None
    digest: dict[str, str] = {}
    annotations: dict[str, Any] | None = None


class _Definition(_Part):
    build_type: str
    external_parameters: dict[str, Any] = {}
    resolved_dependencies: list[Resource] = []


class _Builder(_Part):
    id: str
    version: dict[str, str] = {}


class _Details(_Part):
    builder: _Builder
    byproducts: list[Resource] = []


class _Predicate(_Part):
    build_definition: _Definition
    run_details: _Details


class _Statement(_Part):
    subject: list[Resource] = Field(min_length=1)
    predicate: _Predicate


@dataclass(frozen=True, slots=True)
class SignedFile:
    """One file of a model, as it stands in a statement."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Derivation:
    """How a model came to be; None: not known."""

    files: tuple[SignedFile, ...]
    content_sha256: str | None
    manifests: tuple[SignedFile, ...]
    class_name: str | None
    recipe: Any
    """The JSON value that the file holds as text."""
    source_content_sha256: str | None
    imatrix_sha256: str | None
    version: str | None
    """Of the dfqs that quantized it."""
    sources: tuple[Resource, ...] = ()
    """Files that it was made of, where they were recorded with their hashes."""


def derivation_of(
    files: Sequence[SignedFile],
    content_sha256: str,
    manifests: Sequence[SignedFile],
    making: Making | None,
    provenance: Sequence[Provenance],
) -> Derivation | None:
    """What is known of how a model was made; None: neither its header nor a manifest says anything.

    Args:
        provenance: out of the manifests of its files.
    """
    sources = tuple(source for entry in provenance for source in _sources(entry))
    if making is None and not sources:
        return None
    recipe = parse_json(making.recipe) if making is not None and making.recipe is not None else None
    return Derivation(
        tuple(files),
        content_sha256,
        tuple(manifests),
        making.class_name if making else None,
        recipe,
        making.source_content_sha256 if making else None,
        making.imatrix_sha256 if making else None,
        making.version if making else None,
        sources,
    )


def _sources(provenance: Provenance) -> Iterable[Resource]:
    commit = provenance.commit or provenance.revision
    at = f"@{commit}" if commit else ""
    for shard in provenance.shards or ():
        if shard.sha256 is not None:
            uri = f"hf:{provenance.repo}{at}:{shard.name}" if provenance.repo else None
            yield Resource(name=shard.name, uri=uri, digest={"sha256": shard.sha256})


def model_statement(name: str, files: Sequence[SignedFile]) -> dict[str, Any]:
    """What OpenSSF Model Signing signs: every file's hash. A model of one file is the file itself, `.`.

    Args:
        name: of the model, for people.
    """
    entries = [SignedFile(".", files[0].sha256)] if len(files) == 1 else sorted(files, key=lambda file: file.name)
    return {
        "subject": [{"name": name, "digest": {"sha256": _root(file.sha256 for file in entries)}}],
        "predicateType": MODEL_PREDICATE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": file.name, "algorithm": "sha256", "digest": file.sha256} for file in entries],
        },
    }


def _root(digests: Iterable[str]) -> str:
    """SHA-256 over all digests, one after the other."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def derivation_statement(derivation: Derivation) -> dict[str, Any]:
    """SLSA provenance of a derivation."""
    dependencies: list[dict[str, Any]] = []
    if derivation.source_content_sha256 is not None:
        dependencies.append({"name": SOURCE, "digest": {CONTENT: derivation.source_content_sha256}})
    if derivation.imatrix_sha256 is not None:
        dependencies.append({"name": IMPORTANCE, "digest": {"sha256": derivation.imatrix_sha256}})
    dependencies += [source.model_dump(by_alias=True, exclude_none=True) for source in derivation.sources]
    quantized = derivation.class_name is not None
    return {
        "subject": [{"name": file.name, "digest": {"sha256": file.sha256}} for file in derivation.files],
        "predicateType": DERIVATION_PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": QUANTIZE if quantized else MERGE,
                "externalParameters": {"class": derivation.class_name, "recipe": derivation.recipe}
                if quantized
                else {},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {"id": f"{_BASE}#dfqs", "version": {"dfqs": derivation.version or "unknown"}},
                "byproducts": [
                    {
                        "name": manifest.name,
                        "digest": {"sha256": manifest.sha256},
                        "annotations": {"content_sha256": derivation.content_sha256},
                    }
                    for manifest in derivation.manifests
                ],
            },
        },
    }


def read_model_statement(statement: dict[str, Any]) -> tuple[SignedFile, ...] | None:
    """The files that a statement of OpenSSF Model Signing speaks of; None: its hashes are of another kind than SHA-256
    of whole files.

    Raises:
        FormatError: it is none, or contradicts itself.
    """
    try:
        (subject,) = statement["subject"]
        predicate = statement["predicate"]
        kind = predicate["serialization"]
        entries = [(entry["name"], entry["algorithm"], entry["digest"]) for entry in predicate["resources"]]
        files = tuple(SignedFile(str(name), bytes.fromhex(digest).hex()) for name, _, digest in entries)
        if _root(file.sha256 for file in files) != subject["digest"]["sha256"]:
            raise FormatError("the signed list of files is not the one that its own subject has the hash of")
        plain = kind["method"] == "files" and all(algorithm == "sha256" for _, algorithm, _ in entries)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"what is signed is no list of a model's files: {printable(str(error))}") from None
    return files if plain and files else None


def read_derivation(statement: dict[str, Any]) -> Derivation:
    """A derivation out of its statement.

    Raises:
        FormatError: it is none that dfqs writes.
    """
    try:
        found = _Statement.model_validate(statement)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise FormatError(f"no statement of derivation: {printable(where)}: {printable(first['msg'])}") from None
    definition, details = found.predicate.build_definition, found.predicate.run_details
    if definition.build_type not in (QUANTIZE, MERGE):
        raise FormatError(f"a statement about another way of making: {printable(definition.build_type)}")
    inputs = {entry.name: entry.digest for entry in definition.resolved_dependencies}
    contents = {str((entry.annotations or {}).get("content_sha256")) for entry in details.byproducts}
    class_name = definition.external_parameters.get("class")
    version = details.builder.version.get("dfqs")
    return Derivation(
        _files(found.subject),
        contents.pop() if len(contents) == 1 else None,
        _files(details.byproducts),
        class_name if isinstance(class_name, str) else None,
        definition.external_parameters.get("recipe"),
        inputs.get(SOURCE, {}).get(CONTENT),
        inputs.get(IMPORTANCE, {}).get("sha256"),
        None if version == "unknown" else version,
        tuple(entry for entry in definition.resolved_dependencies if entry.name not in (SOURCE, IMPORTANCE)),
    )


def _files(resources: Iterable[Resource]) -> tuple[SignedFile, ...]:
    return tuple(SignedFile(entry.name or "", entry.digest.get("sha256", "")) for entry in resources)


def file_name(name: str) -> str:
    """The last part of a signed path."""
    return PurePosixPath(name).name
