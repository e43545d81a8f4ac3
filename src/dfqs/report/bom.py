"""A CycloneDX 1.6 bill of materials of a model (an ML-BOM): what it is, its hashes, and what was measured on it.

cyclonedx-python-lib, an extra, makes everything but the `modelCard`, which its classes do not have; that part is laid
beside what it made, in the form of the same schema.
"""

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from dfqs import __version__
from dfqs.errors import UsageError, printable
from dfqs.model.description import ModelDescription
from dfqs.report.card_files import CardOptions, require_own_report
from dfqs.report.conform_facts import Facts
from dfqs.report.hub_card import base_models, license_words
from dfqs.report.schema import Report

try:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType, Pedigree
    from cyclonedx.model.license import DisjunctiveLicense
    from cyclonedx.output.json import JsonV1Dot6
    from cyclonedx.spdx import fixup_id
    from packageurl import PackageURL
except ImportError:
    raise UsageError(
        "a bill of materials needs cyclonedx-python-lib, which is not installed: pip install 'dfqs[bom]'"
    ) from None

_NAMESPACE = uuid.UUID("5d1f4c9e-6a55-5b0e-9f0a-6f4d1f1d2c11")
"""Of serial numbers: the same file and report have the same one."""


def render_bom(facts: Facts, options: CardOptions) -> str:
    """The document as JSON text. The same input gives the same bytes.

    Raises:
        UsageError: the report is not of this file.
    """
    require_own_report(facts)
    model, hashes, report = facts.description, facts.hashes, facts.report
    assert model is not None and hashes is not None
    component = _component(facts, model, options)
    serial = uuid.uuid5(_NAMESPACE, f"{hashes.content_sha256} {report.measured_at} {options.repo}")
    bom = Bom(
        serial_number=serial,
        metadata=BomMetaData(
            component=component,
            timestamp=_time(report.measured_at),
            tools=[],
            properties=[Property(name="dfqs:report_made_by", value=f"dfqs {printable(report.dfqs_version, 40)}")],
        ),
    )
    bom.metadata.tools.components.add(Component(name="dfqs", version=__version__, type=ComponentType.APPLICATION))
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    document["metadata"]["component"]["modelCard"] = _model_card(report, model, component.bom_ref.value or "model")
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _component(facts: Facts, model: ModelDescription, options: CardOptions) -> Component:
    hashes, origin = facts.hashes, facts.origin
    assert hashes is not None and origin is not None
    stated = license_words(origin)
    purl = None
    if options.repo is not None:
        owner, _, name = options.repo.partition("/")
        purl = PackageURL(type="huggingface", namespace=owner, name=name)
    bases = (options.base_model,) if options.base_model is not None else base_models(origin)
    ancestors = [
        Component(name=base, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref=f"base:{base}") for base in bases
    ]
    digest = [HashType(alg=HashAlgorithm.SHA_256, content=hashes.file_sha256)] if hashes.file_sha256 else []
    licenses = []
    if stated is not None:
        spdx = fixup_id(stated.id)
        licenses = [DisjunctiveLicense(id=spdx) if spdx else DisjunctiveLicense(name=stated.name or stated.id)]
    return Component(
        name=printable(facts.report.artifact.name, 200),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"model:{hashes.content_sha256}",
        purl=purl,
        hashes=digest,
        licenses=licenses,
        pedigree=Pedigree(ancestors=ancestors) if ancestors else None,
        properties=[Property(name=name, value=value) for name, value in _properties(facts, model)],
    )


def _properties(facts: Facts, model: ModelDescription) -> Iterator[tuple[str, str]]:
    """What the form has no place for. Numbers are ours, words from outside are made printable."""
    assert facts.hashes is not None
    conditions = facts.report.conditions
    yield "dfqs:content_sha256", facts.hashes.content_sha256
    yield "dfqs:file_bytes", str(model.file_bytes)
    for path in facts.paths:
        yield "dfqs:file", printable(path.name, 300)
    yield "dfqs:parameters", str(model.parameters)
    yield "dfqs:parameters_active", str(model.parameters_active)
    if model.bits_per_weight is not None:
        yield "dfqs:bits_per_weight", f"{model.bits_per_weight:.4f}"
    if model.class_ is not None:
        yield "dfqs:class", model.class_
    yield "dfqs:score_fingerprint", conditions.score_fingerprint
    if conditions.speed_fingerprint is not None:
        yield "dfqs:speed_fingerprint", conditions.speed_fingerprint


def _model_card(report: Report, model: ModelDescription, reference: str) -> dict[str, Any]:
    card: dict[str, Any] = {
        "bom-ref": f"card:{reference}",
        "modelParameters": {
            "task": "text-generation",
            "architectureFamily": "mixture of experts" if model.is_moe else "transformer",
            "modelArchitecture": printable(model.architecture, 80),
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(report))},
    }
    limits = [f"{name} was not measured: {printable(why, 300)}" for name, why in report.reasons.items()]
    limits.append(printable(report.statement, 600))
    return {**card, "considerations": {"technicalLimitations": limits}}


def _metrics(report: Report) -> Iterator[dict[str, Any]]:
    """The five required metrics, as far as they were measured."""
    details, metrics = report.details, report.metrics
    for name, detail in (("reasoning_score", details.reasoning), ("code_score", details.code)):
        if detail is not None:
            yield _metric(name, f"{detail.right / detail.n:.6f}", f"n = {detail.n}", detail.interval_95)
    context = details.context
    if context is not None:
        rows = zip(context.lengths_tokens, context.right, context.n, context.intervals_95, strict=True)
        for tokens, right, n, interval in rows:
            yield _metric("context_stability_curve", f"{right / n:.6f}", f"{tokens} tokens, n = {n}", interval)
    if metrics.cpu_tokens_per_sec is not None:
        speed = report.conditions.speed
        slice_ = f"{speed.threads} threads, {printable(speed.cpu_model or 'unknown CPU', 80)}" if speed else "CPU"
        yield _metric("cpu_tokens_per_sec", f"{metrics.cpu_tokens_per_sec:.4f}", slice_, None)
    if metrics.failure_boundary_tokens is not None:
        boundary = details.boundary
        found = "nothing failed up to here" if boundary is not None and boundary.censored else "fails here"
        yield _metric("failure_boundary_tokens", str(metrics.failure_boundary_tokens), found, None)


def _metric(type_: str, value: str, slice_: str, interval: tuple[float, float] | None) -> dict[str, Any]:
    metric: dict[str, Any] = {"type": type_, "value": value, "slice": slice_}
    if interval is not None:
        low, high = interval
        metric["confidenceInterval"] = {"lowerBound": f"{low:.6f}", "upperBound": f"{high:.6f}"}
    return metric


def _time(text: str) -> datetime:
    """When the report was made; a stored one may say anything."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
