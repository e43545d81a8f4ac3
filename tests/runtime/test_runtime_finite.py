"""Logits that are no numbers are no answer: whatever is chosen or measured by them would be an invention."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import runtime_session_jobs
from cli_processes import run_dfqs
from dfqs.errors import NonFiniteLogits
from dfqs.gguf import read_header
from dfqs.runtime import Worker
from dfqs.runtime.context import check_logits
from dfqs.runtime.requests import Sampling
from fixtures_moe import write_tiny_moe
from runtime_functions import WORKER_ENV

Damage = Callable[[str, float], Path]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Damage:
    """A tiny Mixture-of-Experts with one number of a tensor replaced."""
    directory = tmp_path_factory.mktemp("damaged")
    sound = write_tiny_moe(directory / "sound.gguf", smollm2_gguf, "olmoe")

    def damage(tensor: str, value: float) -> Path:
        path = Path(shutil.copy(sound, directory / f"{tensor}-{value}.gguf"))
        (info,) = (info for info in read_header(path).tensors if info.name == tensor)
        with path.open("r+b") as file:
            file.seek(read_header(path).data_offset + info.offset)
            file.write(np.float32(value).tobytes())
        return path

    return damage


@pytest.mark.parametrize(("tensor", "value"), [("blk.0.attn_norm.weight", np.nan), ("output_norm.weight", np.nan)])
def test_an_answer_by_logits_that_are_no_numbers_is_refused(damaged: Damage, tensor: str, value: float) -> None:
    with Worker(env=WORKER_ENV, threads=1) as worker:
        for sampling in (Sampling(max_tokens=4), Sampling(max_tokens=4, temperature=1.0, seed=1)):
            with pytest.raises(NonFiniteLogits, match=r"logits at position \d+ are NaN.*'dfqs verify --against'"):
                worker.call(runtime_session_jobs.converse, damaged(tensor, value), ["Once upon"], sampling, 64)


def test_run_fails_with_a_sentence_and_not_with_an_empty_answer(damaged: Damage) -> None:
    done = run_dfqs("run", damaged("output_norm.weight", np.nan), "--raw", "-p", "Once upon a time", "--json")

    assert (done.returncode, done.stdout) == (3, "")
    failure = json.loads(done.stderr.splitlines()[-1])
    assert failure["kind"] == "non-finite"
    assert failure["message"].startswith("the model's logits at position")


def test_tokens_that_a_model_rules_out_are_no_damage() -> None:
    row = np.array([[0.5, -np.inf, -np.inf, 1.0]], np.float32)

    check_logits(row, 0)


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf], [-np.inf, np.nan]])
def test_a_row_that_no_token_can_be_chosen_by_is_named(bad: list[float]) -> None:
    rows = np.array([[0.0, 1.0], bad, [0.0, 1.0]], np.float32)

    with pytest.raises(NonFiniteLogits, match="position 8 are"):
        check_logits(rows, 7)
