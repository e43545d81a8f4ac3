"""One evaluation: its stages one after the other, every result stored before the next is asked for.

The same call goes on where a killed one stopped. A stage that cannot be measured leaves a note with the reason.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dfqs.errors import SandboxUnavailable, UsageError
from dfqs.evaluate.answerer import Answerer, LikelihoodAnswerer
from dfqs.evaluate.asker import Asker
from dfqs.evaluate.boundary import REFINE_STEPS, Boundary, find_boundary
from dfqs.evaluate.conditions import ScoreConditions
from dfqs.evaluate.items import item_sets, measure_items, why_no_humaneval
from dfqs.evaluate.near_misses import set_hash
from dfqs.evaluate.preference import OTHER_NUMERICS, measure_floor, measure_preferences, preference_items
from dfqs.evaluate.prompts import read_context_set
from dfqs.evaluate.sandbox import Sandbox, open_sandbox
from dfqs.evaluate.speed import CPU_ONLY, DEPTH_DECODE_TOKENS, DecodeRun, measure_runs, used_memory
from dfqs.evaluate.stages import BOUNDARY, CODE, CONTEXT, FLOOR, ITEM_STAGES, LIKELIHOOD, NOTES, SPEED, STAGES
from dfqs.evaluate.store import RunRecord, Store, Subject, open_store
from dfqs.evaluate.suites import Suite
from dfqs.hardware import measure_copy_bandwidth, read_machine
from dfqs.model.files import ModelFiles, open_model
from dfqs.processors import default_threads
from dfqs.progress import Progress
from dfqs.quantize.noise_floor import FLOOR_PASSES
from dfqs.runtime.loading import LoadOrder

PROMPT_TOKENS, QUESTION_TOKENS = 150, 100
"""About, for an estimate: of a reasoning or code prompt, and of a question about a document with the answers that are
scored by likelihood."""

REASONING_SETS = 2

StageProgress = Callable[[str], AbstractContextManager[Progress]]
"""Opens a stage by name for drawing; its progress counts items."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to evaluate, and how much.

    Raises:
        UsageError: `max_context` is below the suite's shortest length.
    """

    suite: Suite
    stages: tuple[str, ...] = STAGES
    limit: int | None = None
    """At most so many items of each set, and questions at each length."""
    max_context: int | None = None
    """Longest context that the search for the boundary goes to; None: the suite's longest."""
    threads: int | None = None
    thinking_tokens: int | None = None
    """Budget of thoughts, beside the caps of answers; None: the model is asked not to think."""
    order: LoadOrder = CPU_ONLY
    """How the model's weights come into memory."""
    memory_bytes: int | None = None
    """That is kept to, where there is a limit."""

    def __post_init__(self) -> None:
        shortest = self.suite.context_lengths[0]
        if self.max_context is not None and self.max_context < shortest:
            raise UsageError(f"--context is below the suite's shortest length of {shortest:,}")

    @property
    def sized(self) -> Suite:
        """The suite, cut to the limit."""
        if self.limit is None:
            return self.suite
        return replace(
            self.suite,
            reasoning_items=min(self.limit, self.suite.reasoning_items),
            code_items=min(self.limit, self.suite.code_items),
            gym_items=min(self.limit, self.suite.gym_items),
            humaneval_items=min(self.limit, self.suite.humaneval_items),
            tool_items=min(self.limit, self.suite.tool_items),
            profile_items=min(self.limit, self.suite.profile_items),
            likelihood_items=min(self.limit, self.suite.likelihood_items),
            floor_items=min(self.limit, self.suite.floor_items),
            context_questions=min(self.limit, self.suite.context_questions),
        )

    @property
    def most_tokens(self) -> tuple[int, int]:
        """How many tokens are generated at most, and how many read (prompts, documents) about: what a slow model takes.

        Documents dominate what is read: each once to the longest length, and once for each bisection of the boundary.
        """
        suite, stages = self.sized, self.stages
        sets = [each for each in item_sets(suite) if each.stage in stages]
        context_cap = read_context_set().entry.max_tokens
        lengths = set(suite.context_lengths if CONTEXT in stages else ())
        lengths |= set(self.lengths if BOUNDARY in stages else ())
        bisections = REFINE_STEPS if BOUNDARY in stages else 0
        questions = (len(lengths) + bisections) * suite.context_questions
        repeats = suite.decode_repeats if SPEED in stages else 0
        thinking = self.thinking_tokens or 0
        generated = sum(each.count * (each.max_tokens + thinking) for each in sets)
        generated += questions * (context_cap + thinking) * suite.context_written
        generated += repeats * (suite.decode_tokens + DEPTH_DECODE_TOKENS)
        read = sum(each.count * PROMPT_TOKENS for each in sets)
        read += max(lengths, default=0) * suite.context_documents * (1 + bisections) + questions * QUESTION_TOKENS
        given = suite.likelihood_items if LIKELIHOOD in stages else 0
        given += suite.floor_items * len(OTHER_NUMERICS) if FLOOR in stages else 0
        read += given * REASONING_SETS * PROMPT_TOKENS + (suite.floor_tokens * FLOOR_PASSES if FLOOR in stages else 0)
        return generated, read + repeats * (suite.prefill_tokens + suite.depth_tokens)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The suite's lengths, and doublings of the last up to `max_context`."""
        longest = self.max_context or self.suite.context_lengths[-1]
        lengths = [length for length in self.suite.context_lengths if length <= longest]
        while lengths[-1] * 2 <= longest:
            lengths.append(lengths[-1] * 2)
        return tuple(lengths)

    @property
    def longest(self) -> int:
        """Context that is needed, in tokens."""
        return max(self.suite.context_lengths[-1], self.lengths[-1])


def evaluate(
    answerer: Answerer,
    subject: Subject,
    model: Path | ModelFiles | None,
    request: Request,
    out: Path,
    draw: StageProgress,
    *,
    restart: bool = False,
) -> Path:
    """Measure what is still missing; returns the run's directory, of which `dfqs.report.record` makes the report.

    Args:
        model: the local one that is measured, described in the run's record; None behind an endpoint, where speed is
            not measured.
        restart: begin another run beside those in `out`.

    Raises:
        UsageError: a stage that does not exist, or nothing to measure.
        SpaceError, RuntimeFailure, NetworkError, WorkerCrash: what stops the work; the same call goes on after it.
    """
    _require_work(request)
    sandbox, refusal = _find_sandbox() if CODE in request.stages else (None, None)
    opened = None if model is None else open_model(model)
    if opened is not None and subject.model is None:
        subject = subject.model_copy(update={"model": opened.description})
    sets = item_sets(request.sized)
    conditions = score_conditions(answerer, request, sandbox)
    with open_store(out, _plan_run(subject, conditions, request), restart=restart) as store:
        _note(store, "machine", read_machine().model_dump(mode="json"))
        _note(
            store,
            "target",
            {
                "notices": [*answerer.info.notices, *_missing_sets(request)],
                "context_tokens": answerer.info.context_tokens,
            },
        )
        if CODE in request.stages:
            _note(store, "code_unavailable", {"reason": refusal})
        for stage in ITEM_STAGES:
            if stage in request.stages and (stage != CODE or sandbox is not None):
                with draw(stage) as progress:
                    measure_items(answerer, store, stage, sets, sandbox, progress)
        _measure_likelihoods(answerer, store, request, draw, LIKELIHOOD)
        if CONTEXT in request.stages:
            with draw(CONTEXT) as progress:
                asker = Asker(answerer, store, request.sized, progress, request.suite.context_lengths)
                asker.measure_curve(request.suite.context_lengths)
        if BOUNDARY in request.stages:
            with draw(BOUNDARY) as progress:
                _measure_boundary(answerer, store, request, progress)
        _measure_likelihoods(answerer, store, request, draw, FLOOR)
        if SPEED in request.stages and opened is not None:
            # The model's own worker would share the processor and the memory with the one that is timed.
            getattr(answerer, "close", lambda: None)()
            with draw(SPEED) as progress:
                _measure_speed(opened.path, store, request, progress)
        return store.directory


def _measure_likelihoods(answerer: Answerer, store: Store, request: Request, draw: StageProgress, stage: str) -> None:
    """Given answers by likelihood, or the noise floor, where the answerer can tell."""
    suite, numerics = request.sized, answerer.info.numerics
    wanted = suite.likelihood_items if stage == LIKELIHOOD else suite.floor_items or suite.floor_tokens
    if stage not in request.stages or not wanted or numerics is None or not isinstance(answerer, LikelihoodAnswerer):
        return
    with draw(stage) as progress:
        if stage == LIKELIHOOD:
            measure_preferences(answerer, store, suite, progress)
        else:
            measure_floor(answerer, store, suite, numerics, progress)


def _plan_run(subject: Subject, conditions: ScoreConditions, request: Request) -> RunRecord:
    return RunRecord(
        subject=subject,
        conditions=conditions,
        threads=request.threads,
        curve_lengths=request.suite.context_lengths,
        decode_repeats=request.suite.decode_repeats,
        load_mode="streamed" if request.order.is_streamed else request.order.load_mode,
        memory_bytes=request.memory_bytes,
    )


def _require_work(request: Request) -> None:
    unknown = set(request.stages) - set(STAGES)
    if unknown or not request.stages:
        raise UsageError(f"no stage '{', '.join(sorted(unknown))}'; there are {', '.join(STAGES)}")
    if request.limit is not None and request.limit < 1:
        raise UsageError("--limit must be at least 1")


def score_conditions(answerer: Answerer, request: Request, sandbox: Sandbox | None) -> ScoreConditions:
    """What the scores will depend on, besides the model."""
    suite, info = request.sized, answerer.info
    sets = item_sets(suite)
    context = read_context_set().entry
    entries = [*(each.set_.entry for each in sets), context]
    prompt_sets = {entry.name: entry.set_sha256 for entry in entries}
    items = {**{each.set_.name: each.count for each in sets}, CONTEXT: suite.context_questions}
    if suite.likelihood_items and isinstance(answerer, LikelihoodAnswerer):
        prompt_sets[LIKELIHOOD] = set_hash()
        items[LIKELIHOOD] = len(preference_items(suite.likelihood_items))
    return ScoreConditions(
        suite=suite.name,
        prompt_sets=prompt_sets,
        items=items,
        context_lengths=request.lengths,
        max_tokens={**{each.set_.name: each.max_tokens for each in sets}, context.name: context.max_tokens},
        thinking=info.thinking,
        thinking_tokens=request.thinking_tokens,
        tools="template" if info.offers_tools else None,
        template_sha256=info.template_sha256,
        numerics=info.numerics,
        runtime=info.runtime,
        code_python=sandbox.python_version if sandbox is not None else None,
    )


def _missing_sets(request: Request) -> tuple[str, ...]:
    missing = why_no_humaneval() if CODE in request.stages and request.sized.humaneval_items else None
    return (f"code was measured without HumanEval: {missing}",) if missing is not None else ()


def _measure_speed(path: Path, store: Store, request: Request, progress: Progress) -> None:
    machine = read_machine()
    here = {**machine.speed_conditions(), **used_memory(store.record.load_mode, store.record.memory_bytes)}
    # Repeats from before a move, or under another CPU limit, are no repeats of this.
    have = sum(repeat["machine"] == here for repeat in store.stage(SPEED).values())
    total = request.suite.decode_repeats
    progress(have, total, "")
    threads = request.threads or default_threads()
    done = have

    def keep(run: DecodeRun) -> None:
        nonlocal done
        done += 1
        key = f"repeat-{len(store.stage(SPEED)) + 1}"
        store.append(SPEED, key, {**asdict(run), "machine": here})
        progress(done, total, f"repeat {done}")

    if have < total:
        measure_runs(path, request.suite, threads, have, keep, request.order)
    bandwidth = store.get(NOTES, "bandwidth")
    if bandwidth is None or bandwidth["machine"] != here:
        measured = measure_copy_bandwidth(threads)
        store.append(NOTES, "bandwidth", {"bytes_per_s": measured, "threads": threads, "machine": here})


def _measure_boundary(answerer: Answerer, store: Store, request: Request, progress: Progress) -> None:
    longest = answerer.info.context_tokens
    lengths = [length for length in request.lengths if longest is None or length <= longest]
    if not lengths:
        reason = f"its longest context of {longest:,} tokens is below the shortest length of {request.lengths[0]:,}"
        _store_boundary(store, Boundary(None, False, "undecided", reason, (), 0.0))
        return
    asker = Asker(answerer, store, request.sized, progress, lengths)
    _store_boundary(store, find_boundary(asker.measure, lengths))


def _store_boundary(store: Store, boundary: Boundary) -> None:
    found = json.loads(json.dumps(asdict(boundary)))
    if store.get(BOUNDARY, "boundary") != found:
        store.append(BOUNDARY, "boundary", found)


def _find_sandbox() -> tuple[Sandbox | None, str | None]:
    try:
        return open_sandbox(), None
    except SandboxUnavailable as error:
        return None, str(error)


def _note(store: Store, key: str, data: dict[str, Any]) -> None:
    if store.get(NOTES, key) != data:
        store.append(NOTES, key, data)
