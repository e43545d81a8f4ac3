"""What `inspect` and `verify` print of a file's form: keys and values as JSON has them, without what checks documents.

Loading pydantic takes as long as the whole look at a header. The records beside (`inspect`, `integrity`) are made of
these where more was asked for, and a test holds what both print to the same bytes.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqs.gguf.kinds import MODEL
from dfqs.model.classes import ClassMatch
from dfqs.model.facts import ModelFacts, class_name
from dfqs.model.files import ModelFiles
from dfqs.storage.documents import readable_text

if TYPE_CHECKING:
    from dfqs.integrity.compare import Comparison
    from dfqs.integrity.findings import Finding
    from dfqs.model.hashes import ModelHashes

_FACTS = {field.name: field.name.rstrip("_") for field in fields(ModelFacts)}
"""Names of facts, and the keys that they are printed under: `class` is a word of Python's."""
_NOT_ASKED = ("loaders", "keys", "listed_tensors", "tokenizer", "template")


def inspected(model: ModelFiles) -> dict[str, Any]:
    """`dfqs.inspect/1` of a file, model or not; what only further options ask for is null.

    Raises:
        FormatError, UsageError: as `ModelFiles.facts`.
    """
    known: dict[str, Any] = dict.fromkeys(_FACTS.values())
    if model.kind is MODEL:
        known = {key: readable_text(getattr(model.facts, name)) for name, key in _FACTS.items()}
    else:
        metadata = model.header.metadata
        known |= {key: readable_text(metadata.text(f"general.{key}")) for key in ("name", "architecture")}
        known["file_bytes"] = model.file_bytes
    return {
        "schema": "dfqs.inspect/1",
        "source": readable_text(model.shards[0].source),
        "kind": model.kind.code,
        "gguf_version": model.header.version,
        "alignment": model.header.alignment,
        "tensors": len(model.tensors),
        **dict.fromkeys(_NOT_ASKED),
        **known,
    }


def verified(
    model: Path,
    file_bytes: int,
    findings: "Sequence[Finding]",
    hashes: "ModelHashes | None",
    comparison: "Comparison | None",
    match: ClassMatch | None,
    *,
    ok: bool,
    manifest: Path | None,
    against: Path | None,
) -> dict[str, Any]:
    """`dfqs.verify/1` of a file of which no signature was checked; what was not done is null."""
    return {
        "schema": "dfqs.verify/1",
        "model": readable_text(model),
        "file_bytes": file_bytes,
        "ok": ok,
        "findings": [
            {
                "severity": finding.severity.value,
                "code": finding.code,
                "message": readable_text(finding.message),
                "fix": readable_text(finding.fix),
                "offset": finding.offset,
                "name": readable_text(finding.name),
            }
            for finding in findings
        ],
        "file_sha256": hashes.file_sha256 if hashes is not None else None,
        "content_sha256": hashes.content_sha256 if hashes is not None else None,
        "manifest": readable_text(manifest),
        "against": readable_text(against),
        "compared": None if comparison is None else {"tensors": comparison.tensors, "bytes": comparison.compared_bytes},
        "attestation": None,
        "class": class_name(match),
        "closest_class": match.name if match is not None else None,
        "class_deviations": match.deviations if match is not None else (),
    }
