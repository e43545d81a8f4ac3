"""`dfqs eval`: the five required metrics of a file or of an endpoint."""

import importlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.documents.evaluate import EvalPlan
from dfqs.cli.drawing import SHARE, progress_bar
from dfqs.cli.loading import Checking, Loading, note_streaming
from dfqs.cli.options import (
    ChatTemplate,
    Check,
    CheckManifest,
    DryRun,
    Force,
    Json,
    ObtainedModelIfAny,
    Ram,
    Threads,
    Yes,
)
from dfqs.cli.output import emit, note, print_plain, print_text, warn
from dfqs.cli.source import obtain_model
from dfqs.errors import UsageError
from dfqs.evaluate.answerer import Answerer
from dfqs.evaluate.endpoint import EndpointAnswerer
from dfqs.evaluate.local import LocalAnswerer, answer_contexts
from dfqs.evaluate.run import Request, evaluate
from dfqs.evaluate.speed import CPU_ONLY, speed_context
from dfqs.evaluate.stages import SPEED, STAGES
from dfqs.evaluate.store import Subject, has_results, read_run
from dfqs.evaluate.subject import describe_subject, known_subject
from dfqs.evaluate.suites import SUITES, find_suite
from dfqs.model.files import ModelFiles
from dfqs.progress import Progress
from dfqs.report.evaluation import publish_report
from dfqs.report.markdown import render_summary
from dfqs.report.record import build_report, check_report_place
from dfqs.runtime.checks import check_model
from dfqs.runtime.loading import StreamFigures
from dfqs.runtime.template_file import read_template
from dfqs.units import format_duration, parse_tokens

API_KEY_VARIABLE = "DFQS_API_KEY"
UNITS = {"speed": "repeats", "context": SHARE, "boundary": SHARE}


ThinkingBudget = Annotated[
    int | None,
    typer.Option(
        "--thinking-budget", help="Let the model think, with so many tokens beside those of the answer.", min=1
    ),
]


EndpointOption = Annotated[
    str | None,
    typer.Option("--endpoint", help=f"OpenAI-compatible server; its key in {API_KEY_VARIABLE}."),
]
Restart = Annotated[bool, typer.Option("--restart", help="Begin another run, beside those in DIRECTORY, which stay.")]
Blame = Annotated[
    Path | None,
    typer.Option(
        "--blame",
        help="Say what makes MODEL answer otherwise than this file (or the model of this evaluation's directory, or of "
        "the report in it): template, tokenizer, engine numerics, quantization, or another checkpoint. Measures that "
        "and nothing else.",
        show_default=False,
    ),
]


def command(
    model: ObtainedModelIfAny = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Directory for results and report; the same command resumes in it."),
    ] = None,
    suite: Annotated[str, typer.Option("--suite", help=f"How much: {' or '.join(SUITES)}.")] = "standard",
    limit: Annotated[
        int | None, typer.Option("--limit", help="At most so many items of each set and questions a length.", min=1)
    ] = None,
    only: Annotated[str | None, typer.Option("--only", help=f"Stages to run, of {','.join(STAGES)}.")] = None,
    context: Annotated[
        str | None,
        typer.Option(
            "--context", "--max-context", help="Longest context to look for the boundary at, in tokens: 128k, 1M."
        ),
    ] = None,
    endpoint: EndpointOption = None,
    model_name: Annotated[str, typer.Option("--model", help="Model name at the endpoint.", show_default=False)] = "",
    thinking_budget: ThinkingBudget = None,
    chat_template: ChatTemplate = None,
    blame: Blame = None,
    threads: Threads = None,
    ram: Ram = None,
    check: Check = None,
    manifest: CheckManifest = None,
    force: Force = False,
    yes: Yes = False,
    restart: Restart = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Measure reasoning, code, context stability, speed and the failure boundary, and write a report.

    Example: dfqs eval model.gguf -o results --suite quick
    """
    _check_subject(model, endpoint, ram, chat_template)
    loading = Loading(ram, force, Checking(check, manifest), read_template(chat_template))
    if blame is not None:
        _attribute(model, blame, output, dry_run, limit, threads, loading, yes, json_)
        return
    if output is None:
        raise UsageError("say where the results go: -o DIRECTORY")
    longest = None if context is None else parse_tokens(context)
    request = Request(find_suite(suite), _stages(only), limit, longest, threads, thinking_budget)
    if dry_run:
        _describe(request, json_)
        return
    check_report_place(output)
    with ExitStack() as stack:
        opened, request = _open_model(model, request, loading, yes)
        answerer, subject = _open_answerer(stack, opened, request, output, endpoint, model_name)
        for notice in answerer.info.notices:
            warn(notice)
        with _saying_what_is_kept(output):
            directory = evaluate(answerer, subject, opened, request, output, draw_stage, restart=restart)
        figures = answerer.read_figures() if isinstance(answerer, LocalAnswerer) else None
    _publish(directory, output, figures, json_)


def _attribute(
    model: str | None,
    reference: Path,
    output: Path | None,
    dry_run: bool,
    limit: int | None,
    threads: int | None,
    loading: Loading,
    yes: bool,
    json_: bool,
) -> None:
    """`--blame`, which measures that and nothing else."""
    if model is None or output is not None or dry_run:
        raise UsageError("--blame holds a MODEL against a file and writes nothing: no --endpoint, -o or --dry-run")
    opened = obtain_model(model, ram=loading.ram, force=loading.force, yes=yes)
    # It opens both files and scores them; an evaluation needs none of that.
    importlib.import_module("dfqs.cli.blame").run_blame(opened, reference, limit, threads, loading, json_)


def _publish(directory: Path, output: Path, figures: StreamFigures | None, json_: bool) -> None:
    """Write the run's report, and say what is in it, and what streaming did."""
    for why in read_run(directory).began_anew:
        warn(f"began a new run in {directory.name}: {why}")
    paths = publish_report(report := build_report(directory), directory, output)

    def show() -> None:
        print_text(render_summary(report))
        note_streaming(figures)
        note(f"report: {', '.join(str(path) for path in paths)}")

    emit(report, json_, show)


@contextmanager
def _saying_what_is_kept(output: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not isinstance(error, UsageError) and has_results(output):
            note("what was measured is stored; the same command goes on with the rest")
        raise


def _check_subject(model: str | None, endpoint: str | None, ram: str | None, template: Path | None) -> None:
    if (model is None) == (endpoint is None):
        raise UsageError("give a MODEL file or --endpoint URL, one of the two")
    if ram is not None and model is None:
        raise UsageError("--ram is of a MODEL that is loaded here; a server behind --endpoint has its own")
    if template is not None and model is None:
        raise UsageError("a server behind --endpoint has its chat template; 'dfqs serve' takes --chat-template")


def _open_model(model: str | None, request: Request, loading: Loading, yes: bool) -> tuple[ModelFiles | None, Request]:
    """The local model and how it is going to be loaded; neither behind an endpoint."""
    if model is None:
        return None, request
    opened = obtain_model(model, ram=loading.ram, force=loading.force, yes=yes)
    return opened, _look_at_memory(opened, request, loading)


def _stages(only: str | None) -> tuple[str, ...]:
    if only is None:
        return STAGES
    if set(only.split(",")) - set(STAGES):
        raise UsageError(f"--only takes stages of {', '.join(STAGES)}, separated by commas; not '{only}'")
    return tuple(stage for stage in STAGES if stage in only.split(","))


def _open_answerer(
    stack: ExitStack,
    opened: ModelFiles | None,
    request: Request,
    output: Path,
    endpoint: str | None,
    model_name: str,
) -> tuple[Answerer, Subject]:
    """Who answers, open for as long as `stack` is, and what it is called in the results."""
    if opened is None:
        assert endpoint is not None
        remote = EndpointAnswerer(
            endpoint,
            model=model_name,
            api_key=os.environ.get(API_KEY_VARIABLE),
            max_context=request.longest,
            thinking_tokens=request.thinking_tokens,
            tell=warn,
        )
        answerer = stack.enter_context(remote)
        return answerer, Subject(kind="endpoint", name=answerer.info.name, location=remote.location)
    subject = identify(opened, output)
    with progress_bar(f"loading {subject.name}") as progress:
        local = LocalAnswerer(
            opened,
            threads=request.threads,
            max_context=request.longest,
            order=request.order,
            progress=progress,
            thinking_tokens=request.thinking_tokens,
        )
        return stack.enter_context(local), subject


def _look_at_memory(opened: ModelFiles, request: Request, loading: Loading) -> Request:
    """The request, with how the model is loaded within the memory that there is."""
    contexts = [*answer_contexts(opened, request.longest, request.thinking_tokens)]
    if SPEED in request.stages:
        contexts.append(speed_context(request.suite, opened.spec.context_tokens or request.longest))
    plan = loading.plan(opened, contexts, "a smaller --context", whole=CPU_ONLY)
    return replace(request, order=plan.order, memory_bytes=plan.limit_bytes)


def identify(model: Path | ModelFiles, output: Path) -> Subject:
    """The model's identity. It is hashed once; a run in `output` that knows the files keeps it."""
    opened = check_model(model)
    known = known_subject(opened, output)
    if known is not None:
        return known
    with progress_bar("hashing") as progress:
        return describe_subject(opened, opened.hashes(progress=progress))


@contextmanager
def draw_stage(stage: str) -> Iterator[Progress]:
    """A bar for one stage, with its items, rate and time left."""
    with progress_bar(stage, UNITS.get(stage, "items")) as progress:
        yield progress


def _describe(request: Request, json_: bool) -> None:
    plan = EvalPlan.of(request)
    generated, read = plan.generated_tokens_at_most, plan.read_tokens_about

    def show() -> None:
        for name, value in plan.model_dump(exclude={"schema_"}).items():
            print_plain(f"{name}: {', '.join(map(str, value)) if isinstance(value, tuple) else value}")
        note(
            f"at 1 token/s, generating takes at most {format_duration(generated)}, most models end their answers "
            f"sooner; at 10 tokens/s, reading takes about {format_duration(read / 10)}"
        )

    emit(plan, json_, show)
