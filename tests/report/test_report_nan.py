"""A model that computes no numbers agrees with nothing, however sound its file is."""

import json
from pathlib import Path

import pytest

from dfqs.cli.main import run
from nan_model import write_all_nan

AGREEMENT = ("3.2", "3.3", "3.4", "9.2", "10.1", "10.2", "10.3", "10.4", "10.5", "15.1", "15.3", "15.4")
"""Clauses that speak of what a model computes."""
UNTOLD = ("3.3", "10.1", "10.2", "10.3", "10.5")
"""Of them, those that a document of another verb, or a curve, would tell: of such a model there is none."""


@pytest.mark.thorough
def test_a_model_of_nothing_but_nan_passes_no_clause_about_what_it_computes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, results = write_all_nan(tmp_path / "nan.gguf"), tmp_path / "results"
    # Tools have prompts that are longer than its context, and are no answers either.
    only = ["--only", "reasoning,tools", "--suite", "quick", "--limit", "2"]
    run(["eval", str(model), "-o", str(results), *only])
    assert run(["route", "check", str(model), "--out", str(results / "route-check.json")]) == 3
    assert not (results / "route-check.json").exists()
    capsys.readouterr()

    assert run(["conform", str(model), "--report", str(results), "--json"]) == 1

    document = json.loads(capsys.readouterr().out)
    found = {clause["id"]: clause for clause in document["clauses"]}
    for id_ in AGREEMENT:
        assert found[id_]["verdict"] == ("NOT TESTED" if id_ in UNTOLD else "FAIL"), found[id_]
    assert "NaN" in found["3.2"]["evidence"]
    assert found["I.1"]["verdict"] == "PASS" and not document["conforms"]
