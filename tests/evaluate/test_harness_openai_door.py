"""lm-evaluation-harness through its OpenAI door (`local-completions`): llama-server, and `dfqs serve`, held against a
plain loop of the low-level API.

llama-server takes `echo` and `logprobs` and answers as if neither had been asked for (ggml-org/llama.cpp#27174): what
the harness makes of that is shown here, and that our server's answers are right.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import gguf
import likelihood_jobs
from dfqs.runtime import Worker
from harness_inputs import TASK, items, samples, write_task
from runtime_functions import WORKER_ENV

pytestmark = [
    pytest.mark.harnesses,
    pytest.mark.skipif(
        find_spec("lm_eval") is None or find_spec("transformers") is None,
        reason="lm-evaluation-harness and transformers are not installed; make test-harnesses",
    ),
]

ITEMS = 10
CONTEXT = 512


def write_tokenizer(model: Path, directory: Path) -> Path:
    """The vocabulary of a GGUF file as the harness's client wants it: it has to cut contexts itself."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    fields = gguf.GGUFReader(str(model)).fields
    vocabulary = {text: number for number, text in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # llama.cpp's pre-tokenizer "smollm": each digit by itself, then GPT-2's pattern.
    digits = pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, embedded_model: Path) -> Path:
    return write_tokenizer(embedded_model, tmp_path_factory.mktemp("door") / "tokenizer")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    directory = tmp_path_factory.mktemp("task")
    return directory, write_task(directory, ITEMS)


@pytest.fixture(scope="module")
def truth(task: tuple[Path, list[dict[str, Any]]], embedded_model: Path) -> list[tuple[float, bool]]:
    pairs = [(item["question"], choice) for item in task[1] for choice in item["choices"]]
    with Worker(env=WORKER_ENV, threads=2) as worker:
        scores = worker.call(likelihood_jobs.plain_scores_of_text, embedded_model, pairs)
    return [(sum(logprobs), all(greedy)) for logprobs, greedy in scores]


@pytest.fixture
def llama_server(embedded_model: Path) -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).parents[1] / "plain_llama_server.py"), str(embedded_model)]
    with subprocess.Popen(
        [*command, str(CONTEXT), "2"], stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield next(line.strip() for line in process.stdout if line.startswith("http"))
        finally:
            process.kill()


@pytest.fixture
def dfqs_server(embedded_model: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "dfqs", "serve", str(embedded_model), "--port", "0", "--json"]
    with subprocess.Popen(
        [*command, "--ctx", str(CONTEXT), "--threads", "2"], stdout=-1, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            document = "".join(iter(process.stdout.readline, "}\n")) + "}"
            yield str(json.loads(document)["url"])
        finally:
            process.terminate()


def run_harness(url: str, tokenizer: Path, directory: Path, out: Path) -> subprocess.CompletedProcess[str]:
    arguments = f"base_url={url}/v1/completions,model=m,tokenizer={tokenizer},max_retries=1,max_length={CONTEXT}"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments]
    task = ["--tasks", TASK, "--include_path", str(directory), "--log_samples", "--output_path", str(out)]
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(out.parent / "cache")}
    return subprocess.run(
        [*command, *task], env={**os.environ, **offline}, capture_output=True, text=True, timeout=1200
    )


def test_the_harness_cuts_texts_where_llama_cpp_does(tokenizer: Path, embedded_model: Path) -> None:
    from transformers import AutoTokenizer

    from dfqs.evaluate.likelihood import LikelihoodSession

    texts = [item["question"] + choice for item in items(ITEMS, shots=1) for choice in item["choices"]]
    with LikelihoodSession(embedded_model, context_tokens=64, threads=1) as session:
        ours = session.tokenize(texts)

    assert [AutoTokenizer.from_pretrained(str(tokenizer))(text).input_ids for text in texts] == ours


def test_through_dfqs_serve_every_choice_has_its_likelihood(
    dfqs_server: str,
    tokenizer: Path,
    task: tuple[Path, list[dict[str, Any]]],
    truth: list[tuple[float, bool]],
    tmp_path: Path,
) -> None:
    done = run_harness(dfqs_server, tokenizer, task[0], tmp_path / "out")

    assert done.returncode == 0, done.stderr[-3000:]
    found = [choice for sample in samples(tmp_path / "out") for choice in sample["filtered_resps"]]
    assert len(found) == len(truth) == 4 * ITEMS
    difference = max(abs(float(one[0]) - other[0]) for one, other in zip(found, truth, strict=True))
    assert difference < 1e-4
    assert [str(one[1]) == "True" for one in found] == [greedy for _, greedy in truth]
    print(f"dfqs serve: largest difference over {len(found)} choices: {difference:.2g}")


def test_through_llama_server_no_choice_has_its_likelihood(
    llama_server: str,
    tokenizer: Path,
    task: tuple[Path, list[dict[str, Any]]],
    truth: list[tuple[float, bool]],
    tmp_path: Path,
) -> None:
    """The reason for the door: should this fail, llama-server has learnt it, and the decision can be looked at anew."""
    done = run_harness(llama_server, tokenizer, task[0], tmp_path / "out")

    if done.returncode != 0:
        print("llama-server: the harness fails:", [line for line in done.stderr.splitlines() if "Error" in line][-1:])
        return
    found = [choice for sample in samples(tmp_path / "out") for choice in sample["filtered_resps"]]
    right = sum(abs(float(one[0]) - other[0]) < 1e-4 for one, other in zip(found, truth, strict=True))
    print(f"llama-server: {right} of {len(found)} choices have their likelihood; first: {found[:4]}, {truth[:4]}")
    assert right < len(found) / 10
