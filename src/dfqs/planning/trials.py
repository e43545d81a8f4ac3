"""One request measured under given settings, in a worker of its own: what tuning and its benchmark are made of."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dfqs.errors import RuntimeFailure, WorkerCrash
from dfqs.planning.settings import RunSettings
from dfqs.progress import no_progress
from dfqs.quantize.calibration import heldout_text
from dfqs.runtime import Worker
from dfqs.runtime.context import Context, Model
from dfqs.runtime.loading import LoadedModel, LoadOrder
from dfqs.runtime.omp_policy import LoadSample, other_cpus
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.timing import time_decode, time_prefill
from dfqs.runtime.worker_context import WorkerContext

WARM_UP_TOKENS = 32
_LEAST_ANSWER_TOKENS = 4
_TEXT_CHARACTERS = 8000


@dataclass(frozen=True, slots=True)
class Workload:
    """A request: a prompt, and an answer behind it."""

    prompt_tokens: int
    answer_tokens: int
    answer_limit_s: float | None = None
    """Where an answer takes longer, the rest of it is not waited for but reckoned from what there is."""

    @property
    def context_tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True, slots=True)
class Trial:
    """A request measured. Times in seconds."""

    settings: RunSettings
    prompt_s: float
    answer_s: float
    load_s: float
    """Of the model, in this process; reading it from disk included where it was not in the page cache."""
    other_cpus: float
    """CPUs that others kept busy meanwhile."""


def run_trials(
    path: Path, settings: Sequence[RunSettings], workload: Workload, order: LoadOrder | None = None
) -> list[Trial]:
    """Measure a request under each of `settings`; those that want the same process share one, in the order in which
    the first of them stands.

    Args:
        order: how to load a model that does not fit into memory, or lies there; the settings may change how it streams.

    Returns:
        One for each of the settings, but for those that llama.cpp refused or died over.
    """
    processes: dict[tuple[object, ...], list[RunSettings]] = {}
    for one in settings:
        processes.setdefault(one.process, []).append(one)
    return [trial for group in processes.values() for trial in _run_in_one_process(path, group, workload, order)]


def _run_in_one_process(
    path: Path, settings: Sequence[RunSettings], workload: Workload, order: LoadOrder | None
) -> list[Trial]:
    trials: list[Trial] = []
    first = settings[0]
    # Which experts are on the way from disk depends on what is said.
    text = heldout_text()[:_TEXT_CHARACTERS] if order is not None and order.is_streamed else None
    try:
        with Worker(first.threads, first.wait_policy, first.environment) as worker:
            load_s = worker.reporting(doing=f"loading {path}").call(
                open_model, path, first.order_within(order), workload
            )
            for one in settings:
                try:
                    prompt_s, answer_s, others = worker.reporting(doing="measuring").call(
                        measure_request, one.context(workload.context_tokens), one.threads, workload, text
                    )
                except RuntimeFailure:
                    continue
                trials.append(Trial(one, prompt_s, answer_s, load_s, others))
    except (RuntimeFailure, WorkerCrash):
        # What this machine or this model does not do is no candidate.
        return trials
    return trials


def open_model(worker: WorkerContext, path: Path, order: LoadOrder, workload: Workload) -> float:
    """In the worker: load the model for the calls of `measure_request` that follow; returns the seconds it took."""
    library = worker.library
    started = time.perf_counter()
    loaded = order.load(library, path, no_progress)
    load_s = time.perf_counter() - started
    worker.state["loaded"] = loaded
    # The first pass over weights that are mapped brings their pages in.
    prompt = min(WARM_UP_TOKENS, workload.prompt_tokens)
    with Context(loaded.model, prompt + 2, threads=worker.threads) as context:
        time_prefill(context, prompt)
        time_decode(context, prompt, 2)
    return load_s


def measure_request(
    worker: WorkerContext, settings: ContextSettings, threads: int, workload: Workload, text: str | None = None
) -> tuple[float, float, float]:
    """In the worker: seconds for the prompt and for the answer, and CPUs that others kept busy meanwhile.

    Args:
        text: that the request says, over and over; None: tokens of a fixed sequence.
    """
    loaded: LoadedModel = worker.state["loaded"]
    said = None if text is None else _say(loaded.model, text, workload.context_tokens)
    with Context(loaded.model, threads=threads, **asdict(settings)) as context:
        # The graph is made, and its buffers touched, before anything counts.
        time_prefill(context, 1)
        began = LoadSample()
        prompt_s = time_prefill(context, workload.prompt_tokens, said)
        answer_s = _time_answer(context, workload, said)
        others = other_cpus(began)
    return prompt_s, answer_s, others


def _say(model: Model, text: str, count: int) -> list[int] | None:
    try:
        tokens = model.tokenize(text)
    except RuntimeFailure:
        # A model without a tokenizer.
        return None
    return (tokens * (count // len(tokens) + 1))[:count]


def _time_answer(context: Context, workload: Workload, said: Sequence[int] | None) -> float:
    done, seconds = 0, 0.0
    while done < workload.answer_tokens:
        seconds += sum(time_decode(context, workload.prompt_tokens + done, 1, said))
        done += 1
        if workload.answer_limit_s is not None and seconds > workload.answer_limit_s and done >= _LEAST_ANSWER_TOKENS:
            break
    return seconds * workload.answer_tokens / done
