"""Bills of materials: valid by CycloneDX's own schema, with the report's numbers and intervals."""

import json
from dataclasses import replace
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from dfqs.model.origin import ModelOrigin
from dfqs.report.bom import render_bom
from dfqs.report.card_files import CardOptions
from report_facts import ORIGIN, facts

EVIL = '"}]\n\x1b[2J <script> \u202e \\ NaN'
MINE = CardOptions(repo="me/model-GGUF", base_model="base/model")


def component(text: str) -> Any:
    return json.loads(text)["metadata"]["component"]


def check_valid(text: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_it_is_valid_and_has_what_the_file_is() -> None:
    given = facts()
    text = render_bom(given, MINE)

    check_valid(text)
    found = component(text)
    assert given.hashes is not None
    assert found["type"] == "machine-learning-model"
    assert found["hashes"] == [{"alg": "SHA-256", "content": given.hashes.file_sha256}]
    assert found["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert found["purl"] == "pkg:huggingface/me/model-GGUF"
    assert [base["name"] for base in found["pedigree"]["ancestors"]] == ["base/model"]


def test_metrics_and_intervals_are_the_reports() -> None:
    given = facts()
    reasoning = given.report.details.reasoning
    assert reasoning is not None and reasoning.interval_95 is not None

    metrics = component(render_bom(given, MINE))["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]

    low, high = reasoning.interval_95
    assert metrics[0] == {
        "type": "reasoning_score",
        "value": "0.500000",
        "slice": "n = 2",
        "confidenceInterval": {"lowerBound": f"{low:.6f}", "upperBound": f"{high:.6f}"},
    }
    assert [metric["type"] for metric in metrics[-2:]] == ["cpu_tokens_per_sec", "failure_boundary_tokens"]
    # Fewer than two items have no interval, and none is made up.
    assert "confidenceInterval" not in next(m for m in metrics if m["type"] == "context_stability_curve")


def test_the_same_file_and_report_give_the_same_bytes() -> None:
    given = facts()

    assert render_bom(given, MINE) == render_bom(given, MINE)


@pytest.mark.parametrize("license_", [EVIL, "no such licence", None])
def test_a_strangers_words_leave_it_valid(license_: str | None) -> None:
    given = facts()
    assert given.description is not None
    artifact = given.report.artifact.model_copy(update={"name": EVIL})
    report = given.report.model_copy(
        update={"artifact": artifact, "statement": EVIL, "measured_at": EVIL, "reasons": {"code_score": EVIL}}
    )
    evil = replace(
        given,
        report=report,
        description=given.description.model_copy(update={"architecture": EVIL, "class_": None}),
        origin=ModelOrigin(license_, None, None, EVIL, (EVIL,), EVIL, EVIL, (EVIL,)),
    )

    check_valid(render_bom(evil, CardOptions()))


def test_a_set_of_shards_has_no_hash_of_one_file() -> None:
    given = facts()
    assert given.hashes is not None
    shards = replace(given, hashes=replace(given.hashes, file_sha256=None), files=2, origin=ORIGIN)

    text = render_bom(shards, CardOptions())

    check_valid(text)
    assert "hashes" not in component(text)
