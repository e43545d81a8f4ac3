"""A task of lm-evaluation-harness with local data, through its own command line, against a plain loop."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import likelihood_jobs
from dfqs.runtime import Worker
from harness_inputs import TASK, samples, write_task
from runtime_functions import WORKER_ENV

pytestmark = pytest.mark.harnesses


def test_every_choice_has_the_likelihood_that_a_plain_loop_finds(tmp_path: Path, embedded_model: Path) -> None:
    if find_spec("lm_eval") is None:
        pytest.skip("lm-evaluation-harness is not installed; make test-harnesses")
    items = write_task(tmp_path, 40)
    arguments = ["--model", "dfqs", "--model_args", f"model={embedded_model},context=512,chunk=16,threads=2"]
    task = ["--tasks", TASK, "--include_path", str(tmp_path), "--log_samples", "--output_path", str(tmp_path / "out")]
    command = [sys.executable, "-m", "dfqs.evaluate.harnesses.lm_eval", "run", *arguments, *task]
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}

    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, timeout=1200)

    assert done.returncode == 0, done.stderr[-3000:]
    with Worker(env=WORKER_ENV, threads=2) as worker:
        pairs = [(item["question"], choice) for item in items for choice in item["choices"]]
        truth = worker.call(likelihood_jobs.plain_scores_of_text, embedded_model, pairs)
    found = [choice for sample in samples(tmp_path / "out") for choice in sample["filtered_resps"]]
    assert len(found) == len(truth) == 160
    difference = max(abs(float(one[0]) - sum(other[0])) for one, other in zip(found, truth, strict=True))
    assert difference < 1e-4
    assert [str(one[1]) == "True" for one in found] == [all(other[1]) for other in truth]
    print(f"largest difference over {len(truth)} choices: {difference:.2g}")
