"""What a file is, and whether it is what it was: structure, hashes, manifests. Defects come back as findings.

Checks of a whole file import all that merges and repairs one, and are loaded when they are asked for: whoever holds
bytes against a manifest while a model runs does without.
"""

from typing import TYPE_CHECKING

from dfqs.integrity.findings import Finding, Severity, has_errors
from dfqs.on_demand import names_on_demand

if TYPE_CHECKING:
    from dfqs.integrity.compare import Comparison, verify_against
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

_PLACES = {
    "Comparison": "dfqs.integrity.compare",
    "ModelHashes": "dfqs.model.hashes",
    "Structure": "dfqs.integrity.structure",
    "TensorHash": "dfqs.model.hashes",
    "content_sha256": "dfqs.model.hashes",
    "hash_model": "dfqs.model.hashes",
    "verify_against": "dfqs.integrity.compare",
    "verify_structure": "dfqs.integrity.structure",
}

__getattr__ = names_on_demand(__name__, _PLACES)
