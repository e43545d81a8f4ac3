"""inspect_ai with our model provider: a local task through its own command line, its log against our own computing."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import likelihood_jobs
from dfqs.evaluate.likelihood import GenerationRequest, LikelihoodSession
from dfqs.runtime import Worker
from runtime_functions import WORKER_ENV

pytestmark = [
    pytest.mark.harnesses,
    pytest.mark.skipif(find_spec("inspect_ai") is None, reason="inspect_ai is not installed; make test-harnesses"),
]

WORDS = ("river", "mountain", "seven", "Paris", "green", "winter", "copper", "Tuesday")
TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

@task
def repeat():
    samples = [Sample(input=f"Repeat this word: {word}", target=word) for word in %r]
    return Task(dataset=samples, solver=generate(), scorer=includes(),
                config=GenerateConfig(max_tokens=16, temperature=0, logprobs=True, top_logprobs=3, prompt_logprobs=1))
"""
TOOL_TASK = '''
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool

@tool
def add():
    async def execute(x: int, y: int):
        """Add two numbers.

        Args:
            x: First.
            y: Second.
        """
        return x + y
    return execute

@task
def addition():
    return Task(dataset=[Sample(input="What is 1 + 1?", target="2")],
                solver=[use_tools(add()), generate(tool_calls="none", max_tokens=24)], scorer=includes())
'''


def inspect_eval(directory: Path, task: str, model: Path, *options: str) -> Any:
    """Run a task by the harness's own command line; returns its log, read by the harness."""
    from inspect_ai.log import read_eval_log

    (directory / "task.py").write_text(task)
    logs = directory / "logs"
    base = [sys.executable, "-m", "inspect_ai", "eval", "task.py", "--model", f"dfqs/{model}"]
    given = ["-M", "context=512", "-M", "chunk=16", "-M", "threads=2", "--log-dir", str(logs), "--display", "plain"]
    done = subprocess.run([*base, *given, *options], cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = logs.glob("*.eval")
    return read_eval_log(str(path))


def test_a_local_task_scores_what_we_compute_ourselves(tmp_path: Path, embedded_model: Path) -> None:
    log = inspect_eval(tmp_path, TASK % (WORDS,), embedded_model)

    assert log.status == "success", log.error
    with LikelihoodSession(embedded_model, context_tokens=512, chunk_tokens=16, threads=2) as session:
        asked = [[{"role": "user", "content": f"Repeat this word: {word}"}] for word in WORDS]
        rendered = [session.render_chat(messages) for messages in asked]
        prompts = session.tokenize(rendered, add_special=True)
        written = session.generate([GenerationRequest(tuple(prompt), 16) for prompt in prompts])
    right = [word.lower() in each.text.lower() for word, each in zip(WORDS, written, strict=True)]
    samples = sorted(log.samples, key=lambda sample: int(sample.id))
    assert [sample.output.completion for sample in samples] == [each.text for each in written]
    assert [sample.scores["includes"].value == "C" for sample in samples] == right
    (score,) = log.results.scores
    assert score.metrics["accuracy"].value == pytest.approx(sum(right) / len(right))
    # Tokens as the prompt was read, and the likelihoods that a loop of the low-level API finds for it.
    with Worker(env=WORKER_ENV, threads=2) as worker:
        pairs = [(prompt[:1], prompt[1:]) for prompt in prompts]
        truth = worker.call(likelihood_jobs.plain_scores, embedded_model, pairs)
    for sample, prompt, (logprobs, _) in zip(samples, prompts, truth, strict=True):
        (choice,) = sample.output.choices
        assert sample.output.usage.input_tokens == len(prompt)
        assert [each.logprob for each in choice.prompt_logprobs.content] == pytest.approx(logprobs, abs=1e-4)
        assert len(choice.logprobs.content) == sample.output.usage.output_tokens
        assert all(len(each.top_logprobs) == 3 for each in choice.logprobs.content)
        # Greedy: what was written is what was likeliest.
        assert all(each.token == each.top_logprobs[0].token for each in choice.logprobs.content)
    print(f"accuracy {sum(right)} of {len(right)}")


def test_tools_reach_the_model_and_what_cannot_be_done_is_refused(tmp_path: Path, embedded_model: Path) -> None:
    log = inspect_eval(tmp_path, TOOL_TASK, embedded_model)

    (sample,) = log.samples
    assert log.status == "success"
    assert sample.output.stop_reason in ("tool_calls", "stop", "max_tokens")
    with LikelihoodSession(embedded_model, context_tokens=512, threads=2) as session:
        (plain,) = session.tokenize([session.render_chat([{"role": "user", "content": "What is 1 + 1?"}])])
    # The tool's schema was in the prompt, in words, for this template has no field for it.
    assert sample.output.usage.input_tokens > len(plain) + 60


def test_a_request_that_would_be_answered_otherwise_is_an_error(tmp_path: Path, embedded_model: Path) -> None:
    log = inspect_eval(tmp_path, TASK.replace("temperature=0", "temperature=1") % (WORDS[:1],), embedded_model)

    assert log.status == "error"
    assert "temperature has to be 0" in log.error.message


def test_the_provider_is_found_by_its_entry_point(tmp_path: Path, embedded_model: Path) -> None:
    code = (
        "from inspect_ai.model import get_model\n"
        f"model = get_model({f'dfqs/{embedded_model}'!r}, context=64, threads=1)\n"
        "import json; print(json.dumps([str(model), type(model.api).__name__]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout.splitlines()[-1]) == [f"dfqs/{embedded_model}", "DfqsAPI"]
