"""Logits are computed where somebody looks at them, and not otherwise: the product with the output matrix is a fifth of
the work of a small model, and more where the vocabulary is large."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import counted_logits
from dfqs.quantize.activations import MIN_ROWS
from dfqs.quantize.calibration import read_corpus
from dfqs.quantize.imatrix import ImatrixJob, measure_imatrix
from dfqs.quantize.imatrix_file import read_imatrix
from dfqs.quantize.perplexity import PerplexityJob, measure_losses
from dfqs.runtime import Worker
from quantize_inputs import write_model

TEXT = Path(__file__).parents[1] / "vectors" / "quantize" / "calibration.txt"
COUNTED = counted_logits.Counted()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=1, env={"PYTHONPATH": str(Path(__file__).parents[1])}) as worker:
        yield worker


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("logits") / "model.gguf")


def test_an_importance_matrix_takes_no_logits_but_of_the_few_tokens_that_show_whether_they_are_numbers(
    model: Path, worker: Worker, tmp_path: Path
) -> None:
    out = tmp_path / "i.gguf"
    outcome = worker.call(
        measure_imatrix, ImatrixJob(model, out, read_corpus([TEXT]), 128, 1000, 1000, None, (), 1, order=COUNTED)
    )

    assert outcome.tokens >= 6 * 128
    assert worker.call(counted_logits.take_counts) == [MIN_ROWS]
    assert read_imatrix(out).entries["output.weight"].counts.tolist() == [outcome.tokens], "summed all the same"


def test_perplexity_takes_logits_of_what_it_scores_and_not_of_what_only_comes_before_it(
    model: Path, worker: Worker
) -> None:
    """Windows of 128 score 127 tokens at first and then 64, told by 65 rows; rows come in fours, at least eight."""
    tokens = 128 + 2 * 64 + 3
    measured = worker.call(
        measure_losses, PerplexityJob(model, TEXT.read_text(), 128, 64, tokens, threads=1, order=COUNTED)
    )

    assert len(measured.losses.nll) == tokens - 1
    assert worker.call(counted_logits.take_counts) == [128, 68, 68, 8]
