"""What a file is, and whether it is what it was: structure, hashes, manifests. Defects come back as findings."""

from dfqs.integrity.compare import Comparison, verify_against
from dfqs.integrity.findings import Finding, Severity, has_errors
from dfqs.integrity.structure import Structure, verify_structure
from dfqs.model.hashes import ModelHashes, TensorHash, content_sha256, hash_model

__all__ = [
    "Comparison",
    "Finding",
    "ModelHashes",
    "Severity",
    "Structure",
    "TensorHash",
    "content_sha256",
    "has_errors",
    "hash_model",
    "verify_against",
    "verify_structure",
]
