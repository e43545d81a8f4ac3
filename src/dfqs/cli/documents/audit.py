"""What `audit` prints."""

from typing import Literal

from pydantic import Field

from dfqs.quantize.audit import Audit, TensorAudit
from dfqs.records import Document, Record, Share, Text

Outcome = Literal["equal", "different", "unknown"]


class AuditedTensor(Record):
    """One tensor that was drawn."""

    name: Text
    type: str
    source_type: str | None
    """Null: the source has no such tensor."""
    verdict: Outcome
    reason: Text | None
    """Why it is not equal."""
    rows: int
    rows_compared: int
    """All of them, where the tensor is not larger than the limit."""
    blocks: int
    """Compared; of a tensor with the source's own type, rows."""
    differing_blocks: int
    rmse: float | None
    """Of the blocks that differ, against the source; null where nothing does, or where it cannot be told."""
    expected_rmse: float | None
    """Of the same blocks, as they come out when they are made again."""

    @classmethod
    def of(cls, tensor: TensorAudit) -> "AuditedTensor":
        """One tensor."""
        return cls(
            name=tensor.name,
            type=tensor.type,
            source_type=tensor.source_type,
            verdict=tensor.verdict.value,
            reason=tensor.reason,
            rows=tensor.rows,
            rows_compared=tensor.rows_compared,
            blocks=tensor.blocks,
            differing_blocks=tensor.differing_blocks,
            rmse=tensor.rmse,
            expected_rmse=tensor.expected_rmse,
        )


class AuditDocument(Document):
    """A quantization spot-checked against its source."""

    schema_: Literal["dfqs.audit/1"] = Field(default="dfqs.audit/1", alias="schema")
    model: Text
    source: Text
    verdict: Outcome
    """`different` where one tensor is, or one side has a tensor that the other has not; `equal` where all are that were
    drawn; else `unknown`."""
    tensors: int
    """That the file has."""
    sampled: int
    equal: int
    different: int
    unknown: int
    seed: int
    """Of the draw: the same one draws the same tensors."""
    confidence: Share
    share: Share
    """Of the tensors: where so many differ, the sample has one of them with that confidence."""
    differing_tensors: int
    """What that share is."""
    detection: Share
    """Probability that at least one of so many is in the sample (hypergeometric)."""
    detection_of_one: Share
    """The same of a single one."""
    class_: Text | None = Field(alias="class")
    """As the file says, like the next three; null where it does not."""
    source_content_sha256: str | None
    imatrix_sha256: str | None
    version: Text | None
    given_imatrix_sha256: str | None
    only_in_model: tuple[Text, ...]
    only_in_source: tuple[Text, ...]
    model_bytes_read: int
    source_bytes_read: int
    results: tuple[AuditedTensor, ...]
    """Of each tensor that was drawn, in the order of the file."""

    @classmethod
    def of(cls, model: str, source: str, found: Audit) -> "AuditDocument":
        """The whole audit."""
        counts = {verdict.value: found.count(verdict) for verdict in type(found.verdict)}
        return cls(
            model=model,
            source=source,
            verdict=found.verdict.value,
            tensors=found.sample.population,
            sampled=len(found.tensors),
            **counts,
            seed=found.sample.seed,
            confidence=found.sample.confidence,
            share=found.sample.share,
            differing_tensors=found.sample.differing,
            detection=found.sample.detection,
            detection_of_one=found.sample.detection_of_one,
            class_=found.making.class_name if found.making else None,
            source_content_sha256=found.making.source_content_sha256 if found.making else None,
            imatrix_sha256=found.making.imatrix_sha256 if found.making else None,
            version=found.making.version if found.making else None,
            given_imatrix_sha256=found.imatrix_sha256,
            only_in_model=found.only_in_model,
            only_in_source=found.only_in_source,
            model_bytes_read=found.model_bytes_read,
            source_bytes_read=found.source_bytes_read,
            results=tuple(AuditedTensor.of(tensor) for tensor in found.tensors),
        )
