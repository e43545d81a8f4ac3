"""What `attest` prints, and what `verify` says of signatures."""

from typing import Literal

from pydantic import Field

from dfqs.integrity.attest import Attestation, Attested
from dfqs.integrity.statements import Derivation
from dfqs.records import Document, Record, Text


class DerivationRecord(Record):
    """How a model was made, as it was signed; null: not known."""

    class_: Text | None = Field(alias="class")
    source_content_sha256: str | None
    imatrix_sha256: str | None
    version: Text | None
    """Of the dfqs that quantized it."""
    sources: tuple[Text, ...]
    """Files that it was made of, where their hashes were recorded."""

    @classmethod
    def of(cls, derivation: Derivation | None) -> "DerivationRecord | None":
        """One derivation."""
        if derivation is None:
            return None
        return cls(
            class_=derivation.class_name,
            source_content_sha256=derivation.source_content_sha256,
            imatrix_sha256=derivation.imatrix_sha256,
            version=derivation.version,
            sources=tuple(source.name or "" for source in derivation.sources),
        )


class AttestedFile(Record):
    """One file that was signed."""

    name: Text
    sha256: str


class AttestDocument(Document):
    """A model that was signed; what was not written is null."""

    schema_: Literal["dfqs.attest/1"] = Field(default="dfqs.attest/1", alias="schema")
    model: Text
    files: tuple[AttestedFile, ...]
    content_sha256: str
    manifests: tuple[Text, ...]
    """Hashes of every tensor, one document a file."""
    signature: Text | None
    """OpenSSF Model Signing, version 1.0."""
    statement: Text | None
    """SLSA provenance: how it was made, signed with the same key."""
    derivation: DerivationRecord | None
    public_key_sha256: str
    """Of the public key as PEM, which is how signatures name it."""

    @classmethod
    def of(cls, model: str, made: Attestation, *, written: bool) -> "AttestDocument":
        """What came of it."""
        return cls(
            model=model,
            files=tuple(AttestedFile(name=file.name, sha256=file.sha256) for file in made.files),
            content_sha256=made.content_sha256,
            manifests=tuple(made.manifests),
            signature=made.places.signature if written else None,
            statement=made.places.derivation if written and made.derivation is not None else None,
            derivation=DerivationRecord.of(made.derivation),
            public_key_sha256=made.public_key_sha256,
        )


class SigningKeyDocument(Document):
    """A new pair of keys."""

    schema_: Literal["dfqs.signing-key/1"] = Field(default="dfqs.signing-key/1", alias="schema")
    private_key: Text
    public_key: Text
    public_key_sha256: str


class VerifiedSignatures(Record):
    """What signed statements say of the model."""

    files: tuple[Text, ...]
    """The statements."""
    signed: bool
    """The model's bytes are those that were signed."""
    derivation: DerivationRecord | None
    """How it was made, by a statement whose signature holds and that fits the file."""

    @classmethod
    def of(cls, attested: Attested | None) -> "VerifiedSignatures | None":
        """What came of the check."""
        if attested is None:
            return None
        return cls(
            files=tuple(attested.places),
            signed=attested.signed,
            derivation=DerivationRecord.of(attested.derivation),
        )
