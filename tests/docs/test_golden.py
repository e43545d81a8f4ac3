"""Documents of every form, as they were once written: each is read for ever."""

import json
import re
from pathlib import Path

import pytest

from dfqs.cli.json_reference import SOURCE, WHERE, documents
from dfqs.integrity.manifest import Manifest, read_manifest
from dfqs.model.description import ModelDescription
from dfqs.records import read_json
from dfqs.report import Report
from dfqs.report.markdown import render_markdown
from dfqs.report.page import render_page

GOLDEN = Path(__file__).parents[1] / "golden"
JOURNALS = re.compile(r"dfqs\.(\w+-)?journal/\d+|dfqs\.logits/1")
"""These are no documents: a journal has lines, logits are a GGUF."""


def stem(schema: str) -> str:
    return schema.removeprefix("dfqs.").replace("/", "-")


def test_every_schema_id_in_the_source_is_a_form_with_a_golden_document_and_a_place_in_the_reference() -> None:
    named = {
        schema
        for path in SOURCE.rglob("*.py")
        for schema in re.findall(r'"(dfqs\.[a-z-]+/\d+)"', path.read_text(encoding="utf-8"))
        if not JOURNALS.fullmatch(schema)
    }

    assert named == set(documents()) == set(WHERE)
    assert {path.name.split(".")[0] for path in GOLDEN.glob("*.json")} == {stem(schema) for schema in named}


@pytest.mark.parametrize("schema", documents())
def test_a_golden_document_is_read_and_written_again_as_it_stands(schema: str) -> None:
    text = (GOLDEN / f"{stem(schema)}.json").read_text(encoding="utf-8")

    found = read_json(GOLDEN / f"{stem(schema)}.json", documents()[schema])

    # A key that is taken away, renamed or given another type needs another number.
    assert next(iter(json.loads(text))) == "schema"
    assert found.model_dump(mode="json") == json.loads(text)


@pytest.mark.parametrize("schema", [schema for schema, form in documents().items() if form.earlier_keys])
def test_a_document_of_the_form_of_0_1_is_read_as_todays(schema: str) -> None:
    earlier = GOLDEN / f"{stem(schema)}.earlier.json"
    assert "schema" not in json.loads(earlier.read_text(encoding="utf-8"))

    found = read_json(earlier, documents()[schema])

    assert found == read_json(GOLDEN / f"{stem(schema)}.json", documents()[schema])


def test_a_manifest_that_somebody_published_with_0_1_is_still_one() -> None:
    path = GOLDEN / "manifest-1.published.json"
    assert next(iter(json.loads(path.read_text(encoding="utf-8")))) == "schema_id"

    manifest = read_manifest(path)

    assert manifest.schema_ == "dfqs.manifest/1"
    assert next(iter(manifest.model_dump(mode="json"))) == "schema"
    assert isinstance(manifest, Manifest) and manifest.provenance.shards


def test_a_report_from_before_depths_and_kinds_is_still_one() -> None:
    report = read_json(GOLDEN / "report-1.published.json", documents()["dfqs.report/1"])

    assert report == read_json(GOLDEN / "report-1.json", documents()["dfqs.report/1"])


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["first", "load", "flat"])
def test_a_report_of_before_0_1_is_read_and_nothing_that_it_did_not_tell_is_made_up(form: str) -> None:
    """`first`: without columns of what was not judged; `load`: with a load average; `flat`: seven keys of the model."""
    stored = json.loads((GOLDEN / f"report-1.{form}.json").read_text(encoding="utf-8"))

    report = read_json(GOLDEN / f"report-1.{form}.json", Report)

    assert report.metrics.model_dump(mode="json") == stored["metrics"]
    assert report.artifact.model is None
    assert any("architecture text, parameters 1" in notice for notice in report.notices)
    context, speed = report.details.context, report.details.speed
    assert context is not None and (context.truncated is None) == (form == "first")
    assert speed is not None and (speed.other_cpus is None) == (form != "flat")
    assert "not told" in render_markdown(report) or form != "first"
    assert "Nothing tells whether other processes were busy" in render_page(report) or form == "flat"
    assert read_json_again(report) == report


def read_json_again(report: Report) -> Report:
    return Report.model_validate(report.model_dump(mode="json"))


def test_inspect_prints_every_key_of_a_models_description() -> None:
    keys = [field.alias or name for name, field in ModelDescription.model_fields.items()]

    assert list(json.loads((GOLDEN / "inspect-1.json").read_text(encoding="utf-8")))[-len(keys) :] == keys
