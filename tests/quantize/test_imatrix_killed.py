"""A measurement of importance that was killed at its end is done, or goes on: its own file never "exists already"."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfqs.cli.main import run
from dfqs.errors import WorkerCrash
from dfqs.quantize.calibration import read_corpus
from dfqs.quantize.imatrix import ImatrixJob, measure_imatrix
from dfqs.quantize.imatrix_file import write_imatrix
from dfqs.runtime import Worker
from quantize_inputs import vector_imatrix, write_model
from receipts_killed import PLACES, measure_and_die
from runtime_functions import WORKER_ENV

TEXT = Path(__file__).parents[1] / "vectors" / "quantize" / "calibration.txt"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("imatrix") / "model.gguf")


def job(model: Path, out: Path) -> ImatrixJob:
    return ImatrixJob(model, out, read_corpus([TEXT]), 128, 100, 8192, 512, (), 1, checkpoint_s=0.0)


def command(model: Path, out: Path) -> list[str]:
    return ["imatrix", str(model), "-o", str(out), "--corpus", str(TEXT), "--chunk", "128", "--max-tokens", "512"]


@pytest.mark.parametrize("place", PLACES)
def test_a_measurement_killed_at_its_end_is_done_already_or_ends_the_same(
    place: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "i.gguf"
    with Worker(threads=1) as worker:
        worker.call(measure_imatrix, job(model, tmp_path / "whole.gguf"))
    expected = (tmp_path / "whole.gguf").read_bytes()
    with pytest.raises(WorkerCrash, match="SIGKILL"), Worker(threads=1, env=WORKER_ENV) as worker:
        worker.call(measure_and_die, job(model, out), place)
    named = place != "whole, not named"
    assert out.exists() is named

    assert run([*command(model, out), "-t", "1", "--json"]) == 0

    said = capsys.readouterr()
    assert json.loads(said.out)["done_already"] is named and ("done already" in said.err) is named
    assert out.read_bytes() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i.gguf", "whole.gguf"]


def test_another_measurement_or_a_changed_file_exists_and_is_not_called_done(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "i.gguf"
    with Worker(threads=1) as worker:
        worker.call(measure_imatrix, job(model, out))
    assert run(command(model, out)) == 0

    for changed in (["--min-samples", "7"], ["--max-tokens", "256"], ["--chunk", "64"]):
        assert run([*command(model, out), *changed]) == 2
        assert "exists already" in capsys.readouterr().err
    out.write_bytes(out.read_bytes())
    assert run(command(model, out)) == 2


def test_a_sum_of_matrices_is_done_already_the_second_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, out = tmp_path / "one.gguf", tmp_path / "sum.gguf"
    write_imatrix(one, vector_imatrix())
    add: list[Any] = ["imatrix", "--add", str(one), "--add", str(one), "-o", str(out)]
    assert run(add) == 0
    assert "wrote" in capsys.readouterr().out

    assert run(add) == 0
    assert "done already" in capsys.readouterr().out
    matrix = vector_imatrix()
    write_imatrix(one, replace(matrix, tokens=matrix.tokens + 512), overwrite=True)
    assert run(add) == 2
