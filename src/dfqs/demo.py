"""The whole flow on the embedded model: the story that `dfqs demo` tells.

Each step is a call that a user could make; this module only puts them in order and writes down what came of them.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, Protocol

from dfqs import __version__
from dfqs.demo_record import DemoRecord, DemoStep, describe_scores
from dfqs.embedded import cached_embedded_model
from dfqs.errors import FormatError, IntegrityError, UsageError, printable
from dfqs.evaluate.local import LocalAnswerer
from dfqs.evaluate.run import Request, evaluate
from dfqs.evaluate.speed import CPU_ONLY
from dfqs.evaluate.subject import describe_subject
from dfqs.evaluate.suites import Suite
from dfqs.integrity import ModelHashes, hash_model, verify_against
from dfqs.model.files import ModelFiles, open_model
from dfqs.model.snapshot import snapshot_rows
from dfqs.progress import Progress
from dfqs.records import read_json, write_json
from dfqs.report.evaluation import page_of
from dfqs.report.record import REPORT_NAMES, build_report, find_run, write_report
from dfqs.report.schema import Report
from dfqs.runtime.chat import ChatSession
from dfqs.runtime.memory import measure_memory_curve
from dfqs.runtime.requests import Answer, ContextSettings, Sampling, SessionInfo
from dfqs.shards import merge, plan_merge
from dfqs.shards.split import plan_split, split
from dfqs.storage.atomic import publish_file, storage_errors, write_bytes_atomic
from dfqs.storage.hashing import hash_file
from dfqs.streaming.budget import LoadPlan, choose_load
from dfqs.units import format_bytes, format_count, format_duration

MODEL_NAME = "SmolLM2-135M-MoE.gguf"
SHARD_BYTES = 80_000_000
PROMPT = "What is the capital of France?"
ANSWER_TOKENS = 48
CONTEXTS = (2048, 8192)
"""Context lengths that the memory step asks llama.cpp about; the second is all that the model was trained for."""
WORK_NAME = ".dfqs-demo-work"
WRITTEN = (*REPORT_NAMES, "demo.md")
STEPS = 8
SAMPLE = Suite(
    "demo",
    reasoning_items=3,
    code_items=3,
    context_lengths=(256, 512),
    context_questions=40,
    context_documents=16,
    decode_tokens=128,
    decode_repeats=2,
    prefill_tokens=128,
    depth_tokens=0,
    answer_tokens=160,
    context_written=False,
    likelihood_items=4,
    floor_items=2,
    floor_tokens=130,
)
"""What the demonstration measures: enough to see how it is done, too little to say anything. Answers about documents
are chosen by likelihood, and the documents are short and many: so small a model finds what stands in them, and as many
questions can be asked as the failure boundary needs."""


class Narrator(Protocol):
    """Who tells the story: the command line, or a test."""

    def step(self, number: int, total: int, title: str) -> AbstractContextManager[Progress]:
        """A step begins; its progress is drawn while the block lasts."""
        ...

    def say(self, line: str) -> None:
        """What came of the step, in a line."""
        ...


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demonstration leaves."""

    record: DemoRecord
    report: Report
    model: Path
    story: Path
    report_path: Path


def run_demo(out: Path, narrator: Narrator) -> DemoResult:
    """Build, split, merge, verify, inspect, plan, run, measure; then write down what was done.

    Leaves the merged model, the shards that it was merged of, the evaluation's report and the story in `out`. What an
    earlier run left there is replaced, and nothing else.

    Raises:
        UsageError: a file of somebody else stands under the name of one of its own.
        DfqsError: whatever stops a step.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a directory, which is made where there is none")
    earlier = _earlier_files(out)
    story = _Story(narrator)
    with _work_directory(out) as work:
        built = _build(story)
        shards = _split(story, built, work)
        first_shard = shards[0]
        merged = _merge(story, first_shard, work)
        hashes = _verify(story, merged, first_shard)
        placed = out / MODEL_NAME
        placed_files = _place(merged, {placed.name: hashes.file_sha256 or ""}, placed, earlier)
        for shard in shards:
            placed_files |= _place(shard, {shard.name: hash_file(shard)}, out / shard.name, earlier)
        model = _inspect(story, placed)
        plan = _plan_memory(story, model)
        answered = _run(story, model, plan)
        report = _measure(story, model, hashes, plan, work / "evaluation")
        record = _write_down(out, work, _describe(story.steps, model, hashes, answered, placed_files), report)
    return DemoResult(record, report, placed, out / "demo.md", out / "report.html")


def _describe(
    steps: list[DemoStep],
    model: ModelFiles,
    hashes: ModelHashes,
    answered: tuple[Answer, SessionInfo],
    files: dict[str, str],
) -> DemoRecord:
    answer, session = answered
    return DemoRecord(
        dfqs_version=__version__,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model.description,
        file_sha256=hashes.file_sha256,
        content_sha256=hashes.content_sha256,
        prompt=PROMPT,
        answer=answer.text,
        answer_tokens=answer.generated_tokens,
        decode_tokens_per_s=answer.decode_tokens_per_s,
        prompt_tokens_per_s=answer.prompt_tokens_per_s,
        threads=session.threads,
        omp_wait_policy=session.omp_wait_policy,
        steps=steps,
        files=files,
    )


def _write_down(out: Path, work: Path, described: DemoRecord, report: Report) -> DemoRecord:
    """Report, story and record. Cut off anywhere, what stands there is known by the record beside it."""
    made = work / "written"
    made.mkdir()
    write_report(report, page_of(report, find_run(work / "evaluation")), made)
    write_bytes_atomic(made / "demo.md", render_story(described).encode())
    written = {name: hash_file(made / name) for name in WRITTEN}
    record = described.model_copy(update={"files": {**described.files, **written}})
    with storage_errors(out):
        for name in WRITTEN:
            (out / name).unlink(missing_ok=True)
        write_json(out / "demo.json", record, overwrite=True)
        for name in WRITTEN:
            publish_file(made / name, out / name)
    return record


def _earlier_files(out: Path) -> dict[str, str]:
    """What an earlier demonstration left in `out`, with its SHA-256.

    Raises:
        UsageError: a file of another origin is in the way.
    """
    known: dict[str, str] = {}
    if (out / "demo.json").exists():
        try:
            known = read_json(out / "demo.json", DemoRecord).files
        except FormatError:
            _refuse_stranger(out / "demo.json")
    for name in WRITTEN:
        path = out / name
        if os.path.lexists(path) and not _is_known(path, known):
            _refuse_stranger(path)
    return known


def _place(file: Path, built: dict[str, str], placed: Path, earlier: dict[str, str]) -> dict[str, str]:
    """Give a file of the model its name; the same file, which a killed run left, makes room for it. Returns `built`."""
    if os.path.lexists(placed) and not any(_is_known(placed, known) for known in (built, earlier)):
        _refuse_stranger(placed)
    publish_file(file, placed, overwrite=True)
    return built


def _is_known(path: Path, known: dict[str, str]) -> bool:
    return path.is_file() and not path.is_symlink() and known.get(path.name) == hash_file(path)


def _refuse_stranger(path: Path) -> NoReturn:
    raise UsageError(f"{path} is not of an earlier demonstration and is not replaced; choose another --out, or move it")


def render_story(record: DemoRecord) -> str:
    """The record as Markdown."""
    rows = "\n".join(
        f"| {i} | {s.title} | {_cell(s.outcome)} | {s.wall_s:.1f} s |" for i, s in enumerate(record.steps, 1)
    )
    snapshot = "\n".join(f"| {name} | {_cell(value)} |" for name, value in snapshot_rows(record.model))
    snapshot = f"| property | value |\n|---|---|\n{snapshot}"
    return f"""# What `dfqs demo` did

{record.made_at}, dfqs {record.dfqs_version}, {record.threads} threads ({record.omp_wait_policy} OpenMP wait policy).

| | step | what came of it | time |
|---|---|---|---|
{rows}

## The model it left

{snapshot}

{record.model.file_bytes:,} bytes.

- SHA-256 of the file: `{record.file_sha256}`
- SHA-256 of its content, whatever its layout: `{record.content_sha256}`

{record.model.description or ""}

The measurement's report, with its conditions: [report.html](report.html) to look at, and
[report.md](report.md).
"""


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return printable(text, 400).replace("|", "\\|")


class _Story:
    """Tells each step as it happens, and keeps it for the record."""

    def __init__(self, narrator: Narrator) -> None:
        self.narrator = narrator
        self.steps: list[DemoStep] = []

    @contextmanager
    def step(self, title: str) -> Iterator["_Step"]:
        started = time.monotonic()
        with self.narrator.step(len(self.steps) + 1, STEPS, title) as progress:
            step = _Step(progress)
            yield step
        self.steps.append(DemoStep(title=title, outcome=step.outcome, wall_s=time.monotonic() - started))
        for line in (step.outcome, *step.details):
            self.narrator.say(line)


@dataclass(slots=True)
class _Step:
    progress: Progress
    outcome: str = ""
    details: list[str] = field(default_factory=list)
    """Told after the outcome, and not kept with it."""


def _build(story: _Story) -> Path:
    with story.step("Build a small Mixture-of-Experts model") as step:
        path = cached_embedded_model(progress=step.progress)
        built = open_model(path).description
        step.outcome = (
            f"SmolLM2-135M made into {built.experts} experts a layer, {built.experts_used} used: "
            f"{format_count(built.parameters)} parameters, {format_bytes(built.file_bytes)}"
        )
    return path


def _split(story: _Story, model: Path, work: Path) -> list[Path]:
    with story.step("Split it into shards, as large models come") as step:
        shards = split(plan_split(model, work / Path(MODEL_NAME).stem, max_bytes=SHARD_BYTES), progress=step.progress)
        step.outcome = f"{len(shards)} shards of at most {format_bytes(max(path.stat().st_size for path in shards))}"
    return list(shards)


def _merge(story: _Story, first_shard: Path, work: Path) -> Path:
    with story.step("Merge the shards into one file") as step:
        result = merge(plan_merge(first_shard), work / MODEL_NAME, progress=step.progress)
        rate = format_bytes(result.moved_bytes / result.wall_s)
        step.outcome = f"{format_bytes(result.file_bytes)} in {format_duration(result.wall_s)} ({rate}/s, durable)"
    return result.path


def _verify(story: _Story, model: Path, first_shard: Path) -> ModelHashes:
    with story.step("Verify it against the shards, byte by byte") as step:
        comparison = verify_against(model, first_shard, progress=step.progress)
        if not comparison.equal:
            raise IntegrityError(f"the merged file is not its shards: {comparison.findings[0].message}")
        hashes = hash_model(model, progress=step.progress)
        step.outcome = f"all {comparison.tensors} tensors equal; content SHA-256 {hashes.content_sha256[:16]}..."
    return hashes


def _inspect(story: _Story, path: Path) -> ModelFiles:
    with story.step("Inspect what it is, from its header alone") as step:
        model = open_model(path)
        found = model.description
        step.details = [f"{name:<17}{printable(value)}" for name, value in snapshot_rows(found)]
        # Never null: the model that was just built has weights.
        assert found.bits_per_weight is not None
        step.outcome = (
            f"{format_count(found.parameters)} parameters, {format_count(found.parameters_active)} of them active for "
            f"a token, {found.bits_per_weight:.2f} bits each"
        )
    return model


def _plan_memory(story: _Story, model: ModelFiles) -> LoadPlan:
    """How it is loaded within the memory that is free.

    Raises:
        SpaceError: it does not fit.
    """
    with story.step("Ask llama.cpp how much memory it needs") as step:
        needs = measure_memory_curve(model, CONTEXTS)
        step.outcome = "; ".join(
            f"{format_bytes(need.total_bytes)} at {need.context_tokens:,} tokens of context" for need in needs
        )
        plan = choose_load(model, ContextSettings(n_ctx=CONTEXTS[-1]), None, whole=CPU_ONLY)
        step.details = [line] if (line := plan.describe()) else []
    return plan


def _run(story: _Story, model: ModelFiles, plan: LoadPlan) -> tuple[Answer, SessionInfo]:
    with (
        story.step("Ask it something") as step,
        ChatSession(model, order=plan.order, progress=step.progress) as session,
    ):
        answer = session.answer([{"role": "user", "content": PROMPT}], Sampling(max_tokens=ANSWER_TOKENS))
        rate = answer.decode_tokens_per_s
        step.outcome = f"{PROMPT} -> {' '.join(answer.text.split())} ({answer.generated_tokens} tokens" + (
            f" at {rate:.1f} tokens/s)" if rate is not None else ")"
        )
        return answer, session.info


def _measure(story: _Story, model: ModelFiles, hashes: ModelHashes, plan: LoadPlan, directory: Path) -> Report:
    with story.step("Measure it on a small sample") as step:

        @contextmanager
        def draw(stage: str) -> Iterator[Progress]:
            yield lambda done, total=None, note="": step.progress(done, total, stage)

        subject = describe_subject(model, hashes)
        request = replace(Request(SAMPLE), order=plan.order, memory_bytes=plan.limit_bytes)
        with LocalAnswerer(model, max_context=SAMPLE.context_lengths[-1], order=plan.order) as answerer:
            evaluate(answerer, subject, model, request, directory, draw)
        report = build_report(directory)
        step.outcome = describe_scores(report)
    return report


@contextmanager
def _work_directory(out: Path) -> Iterator[Path]:
    """A directory inside `out` for what is not kept; also clears what a killed run left."""
    work = out / WORK_NAME
    made_here = not out.exists()
    with storage_errors(out):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if made_here:
            with suppress(OSError):  # It is not empty: something was made.
                out.rmdir()
