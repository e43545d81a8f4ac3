"""The context curve: one prefill with questions as branches, beside every question's own prefill and llama-server.

    python benchmarks/context.py MODEL.gguf [--lengths 256,512,768,1024] [--questions 10] [--rounds 3]

Arms, in turns within a round: `ours`; `llama-server` with its prompt cache, its defaults and its own flash attention;
the same with flash attention off, which is what ours computes; `ours again`, the control; `naive`, each question with
its document through an empty cache, in the batches of ours. All write the same number of tokens after the same tokens.
A process whose turn it is not is stopped, for threads of OpenMP may wait busily. llama-server tells how many tokens of
a prompt it computed (`timings.prompt_n`). Beside the seconds stand those of the processor: with one thread they tell
of a machine that is busy with other things, too.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import psutil

import context_jobs
from dfqs.evaluate import jobs
from dfqs.evaluate.answerer import Asking
from dfqs.evaluate.conditions import Numerics
from dfqs.evaluate.context import DOCUMENTS, GrowingDocument, plan_questions
from dfqs.evaluate.documents import AskedQuestion, DocumentJob
from dfqs.evaluate.jobs import Generated
from dfqs.evaluate.local import LocalAnswerer
from dfqs.evaluate.prompts import read_context_set
from dfqs.evaluate.speed import CPU_ONLY
from dfqs.runtime import Worker
from runtime_functions import WORKER_ENV

Arm = Callable[[], tuple[int, list[str]]]
"""Tokens that were prefilled, and the answers."""


def plan_jobs(model: Path, lengths: list[int], count: int, max_tokens: int) -> list[DocumentJob]:
    """One of each document and length, in the order in which the evaluation asks them."""
    (vocabulary,) = read_context_set().items
    documents = [GrowingDocument(vocabulary, number) for number in range(DOCUMENTS)]
    with LocalAnswerer(model, threads=1, max_context=max(lengths)) as answerer:
        sizes = {length: [answerer.size(document, length).lines for document in documents] for length in lengths}
    found = []
    for document in documents:
        stops: list[int] = []
        for length in lengths:
            lines = sizes[length][document.number]
            questions = [q for q in plan_questions(documents, sizes[length], count) if q.document == document.number]
            asking = Asking(length, document, lines, tuple(stops), tuple(questions), max_tokens)
            pieces = (document.vocabulary.opening, *map(document.line, range(lines)))
            asked = tuple(AskedQuestion(question.text) for question in asking.questions)
            found.append(DocumentJob(pieces, tuple(1 + stop for stop in stops), asked, max_tokens))
            stops.append(lines)
    return found


@contextmanager
def llama_server(model: Path, context_tokens: int, threads: int, flash: str) -> Iterator[tuple[str, int]]:
    """Its address and process."""
    command = [
        sys.executable,
        str(Path(context_jobs.__file__).with_name("plain_llama_server.py")),
        str(model),
        str(context_tokens),
        str(threads),
        flash,
    ]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield next(line.strip() for line in process.stdout if line.startswith("http")), process.pid
        process.kill()


def ask_server(address: str, prompts: list[list[int]], max_tokens: int) -> tuple[int, list[str]]:
    prefilled, answers = 0, []
    for prompt in prompts:
        asked = {"prompt": prompt, "n_predict": max_tokens, "temperature": 0, "cache_prompt": True}
        request = urllib.request.Request(f"{address}/completion", json.dumps(asked).encode())
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        prefilled += answer["timings"]["prompt_n"]
        answers.append(answer["content"])
    return prefilled, answers


@contextmanager
def running(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGCONT)
    yield
    os.kill(pid, signal.SIGSTOP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--lengths", default="256,512,768,1024")
    parser.add_argument("--questions", type=int, default=10, help="at each length, over both documents")
    parser.add_argument("--max-tokens", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--naive-rounds", type=int, default=1, help="how many of the rounds have the naive arm")
    parser.add_argument("--arms", help="some of them, separated by commas; `ours` first")
    options = parser.parse_args()
    lengths = [int(length) for length in options.lengths.split(",")]
    context_tokens = max(lengths) + 64
    asked = plan_jobs(options.model, lengths, options.questions, options.max_tokens)

    with (
        Worker(threads=options.threads, env=WORKER_ENV) as worker,
        llama_server(options.model, context_tokens, options.threads, "auto") as (plain, plain_pid),
        llama_server(options.model, context_tokens, options.threads, "off") as (off, off_pid),
    ):
        worker.call(jobs.open_model, options.model, CPU_ONLY)
        prompts = [prompt for job in asked for prompt in worker.call(context_jobs.read_prompts, job, context_tokens)]

        def ours(afresh: bool) -> tuple[int, list[str]]:
            answers: list[str] = []

            def take(event: object) -> None:
                if isinstance(event, tuple) and isinstance(event[2], Generated):
                    answers.append(event[2].text)

            work = []
            for job in asked:
                calls = worker.reporting(take)
                if afresh:
                    work.append(calls.call(context_jobs.ask_afresh, job, context_tokens))
                else:
                    work.append(calls.call(jobs.ask_document, job, Numerics(), context_tokens))
            return sum(each.document + each.questions for each in work), answers

        arms: dict[str, tuple[int, Arm]] = {
            "ours": (worker.pid, lambda: ours(False)),
            "llama-server": (plain_pid, lambda: ask_server(plain, prompts, options.max_tokens)),
            "the same, flash attention off": (off_pid, lambda: ask_server(off, prompts, options.max_tokens)),
            "ours again": (worker.pid, lambda: ours(False)),
            "naive": (worker.pid, lambda: ours(True)),
        }
        if options.arms:
            arms = {name: arms[name] for name in options.arms.split(",")}
        pids = {pid for pid, _ in arms.values()}
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        cpu: dict[str, list[float]] = {name: [] for name in arms}
        results: dict[str, tuple[int, list[str]]] = {}
        try:
            for number in range(options.rounds):
                for name, (pid, arm) in arms.items():
                    if name == "naive" and number >= options.naive_rounds:
                        continue
                    with running(pid):
                        started, before = time.perf_counter(), processor_s(pid)
                        results[name] = arm()
                        seconds[name].append(time.perf_counter() - started)
                        cpu[name].append(processor_s(pid) - before)
                    print(f"round {number + 1}: {name} {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
    print(f"lengths {lengths}, {DOCUMENTS} documents, {len(prompts)} questions, {options.max_tokens} tokens written")
    show(len(prompts), seconds, cpu, results)


def processor_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def show(
    questions: int,
    seconds: dict[str, list[float]],
    cpu: dict[str, list[float]],
    results: dict[str, tuple[int, list[str]]],
) -> None:
    base, base_cpu = statistics.median(seconds["ours"]), statistics.median(cpu["ours"])
    ours = results["ours"]
    for name, times in seconds.items():
        prefilled, answers = results[name]
        same = sum(one == other for one, other in zip(answers, ours[1], strict=True))
        rounded = [round(each, 2) for each in times]
        print(
            f"{name:30} {prefilled:>9,} tokens prefilled ({prefilled / ours[0]:.2f} x)  median "
            f"{statistics.median(times):7.2f} s ({statistics.median(times) / base:.2f} x) {rounded}  "
            f"processor {statistics.median(cpu[name]):7.2f} s ({statistics.median(cpu[name]) / base_cpu:.2f} x)  "
            f"answers as ours: {same} of {questions}"
        )


if __name__ == "__main__":
    main()
