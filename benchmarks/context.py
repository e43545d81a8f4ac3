"""The context curve: one prefill with questions as branches, beside every question's own prefill and llama-server.

    python benchmarks/context.py MODEL.gguf [--lengths 256,512,768,1024] [--questions 10] [--rounds 3]

Arms, in turns within a round: `ours`; `llama-server` with its prompt cache, its defaults and its own flash attention;
the same with flash attention off, which is what ours computes; `ours again`, the control; `naive`, each question with
its document through an empty cache, in the batches of ours. All write the same number of tokens after the same tokens.
A server is started for each of its turns, and asked for something else before the clock runs: in a second round it
would find the prompts of the first in its cache. A process whose turn it is not is stopped, for threads of OpenMP may
wait busily. llama-server tells how many tokens of a prompt it computed (`timings.prompt_n`). Beside the seconds stand
those of the processor: with one thread they tell of a machine that is busy with other things, too.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import psutil

import context_jobs
from dfqs.evaluate import jobs
from dfqs.evaluate.conditions import Numerics
from dfqs.evaluate.context import GrowingDocument, plan_questions
from dfqs.evaluate.documents import AskedAnswer, AskedQuestion, DocumentJob
from dfqs.evaluate.local import LocalAnswerer
from dfqs.evaluate.prompts import read_context_set
from dfqs.evaluate.speed import CPU_ONLY
from dfqs.evaluate.suites import QUICK
from dfqs.runtime import Worker
from runtime_functions import WORKER_ENV

SERVERS = {"llama-server": "auto", "llama-server -fa off": "off"}
ARMS = ("ours", *SERVERS, "ours again", "naive")


def plan_jobs(model: Path, lengths: list[int], count: int, max_tokens: int) -> list[DocumentJob]:
    """One of each document and length, in the order in which the evaluation asks them."""
    (vocabulary,) = read_context_set().items
    documents = [GrowingDocument(vocabulary, number) for number in range(QUICK.context_documents)]
    with LocalAnswerer(model, threads=1, max_context=max(lengths)) as answerer:
        sizes = {length: [answerer.size(document, length).lines for document in documents] for length in lengths}
    found = []
    for document in documents:
        stops: list[int] = []
        for length in lengths:
            lines = sizes[length][document.number]
            questions = [q for q in plan_questions(documents, sizes[length], count) if q.document == document.number]
            pieces = (document.vocabulary.opening, *map(document.line, range(lines)))
            asked = tuple(AskedQuestion(question.text, document.stem(question.kind)) for question in questions)
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
    """Tokens that were prefilled, and the answers."""
    prefilled, answers = 0, []
    for prompt in prompts:
        asked = {"prompt": prompt, "n_predict": max_tokens, "temperature": 0, "cache_prompt": True}
        request = urllib.request.Request(f"{address}/completion", json.dumps(asked).encode())
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        prefilled += answer["timings"]["prompt_n"]
        answers.append(answer["content"])
    return prefilled, answers


def ask_worker(worker: Worker, asked: list[DocumentJob], context_tokens: int, *, afresh: bool) -> tuple[int, list[str]]:
    """The same of our worker, which reads every document once, or for every question."""
    answers: list[str] = []
    prefilled = 0

    def take(event: object) -> None:
        if isinstance(event, AskedAnswer):
            answers.append(event.written.text)

    calls = worker.reporting(take)
    for job in asked:
        if afresh:
            work = calls.call(context_jobs.ask_afresh, job, context_tokens)
        else:
            work = calls.call(jobs.ask_document, job, Numerics(), context_tokens)
        prefilled += work.document + work.questions
    return prefilled, answers


@contextmanager
def awake(worker: Worker) -> Iterator[int]:
    """Its process, which is stopped otherwise."""
    os.kill(worker.pid, signal.SIGCONT)
    try:
        yield worker.pid
    finally:
        os.kill(worker.pid, signal.SIGSTOP)


@contextmanager
def timed(pid: int, seconds: list[float], cpu: list[float]) -> Iterator[None]:
    started, before = time.perf_counter(), processor_s(pid)
    yield
    seconds.append(time.perf_counter() - started)
    cpu.append(processor_s(pid) - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--lengths", default="256,512,768,1024")
    parser.add_argument("--questions", type=int, default=10, help="at each length, over both documents")
    parser.add_argument("--max-tokens", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--naive-rounds", type=int, default=1, help="how many of the rounds have the naive arm")
    parser.add_argument("--arms", default=",".join(ARMS), help="some of them, separated by commas; `ours` first")
    options = parser.parse_args()
    lengths = [int(length) for length in options.lengths.split(",")]
    context_tokens = max(lengths) + 64
    asked = plan_jobs(options.model, lengths, options.questions, options.max_tokens)
    arms = options.arms.split(",")
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    results: dict[str, tuple[int, list[str]]] = {}

    with Worker(threads=options.threads, env=WORKER_ENV) as worker:
        worker.call(jobs.open_model, options.model, CPU_ONLY)
        prompts = [prompt for job in asked for prompt in worker.call(context_jobs.read_prompts, job, context_tokens)]
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            for number, name in ((number, name) for number in range(options.rounds) for name in arms):
                if name == "naive" and number >= options.naive_rounds:
                    continue
                if name in SERVERS:
                    running = llama_server(options.model, context_tokens, options.threads, SERVERS[name])
                    with running as (address, pid):
                        ask_server(address, [prompts[0][:1] * 32], options.max_tokens)
                        with timed(pid, seconds[name], cpu[name]):
                            results[name] = ask_server(address, prompts, options.max_tokens)
                else:
                    with awake(worker) as pid, timed(pid, seconds[name], cpu[name]):
                        results[name] = ask_worker(worker, asked, context_tokens, afresh=name == "naive")
                spent = f"{seconds[name][-1]:.1f} s, processor {cpu[name][-1]:.1f} s"
                print(f"round {number + 1}: {name} {spent}", file=sys.stderr, flush=True)
        finally:
            os.kill(worker.pid, signal.SIGCONT)
    size = f"{QUICK.context_documents} documents, {len(prompts)} questions, {options.max_tokens} tokens written"
    print(f"lengths {lengths}, {size}")
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
