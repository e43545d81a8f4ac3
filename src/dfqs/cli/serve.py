"""`dfqs serve`: a model over HTTP on this machine."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.documents.running import ServeDocument
from dfqs.cli.loading import NOT_ASKED, Checking
from dfqs.cli.options import (
    ChatTemplate,
    Check,
    CheckManifest,
    Force,
    Json,
    NoTuning,
    ObtainedModel,
    Ram,
    Threads,
    Verbose,
    Yes,
)
from dfqs.cli.output import emit, note, print_plain, warn
from dfqs.cli.serve_options import (
    AllowHost,
    AllowOrigin,
    ApiKeyOption,
    ContextOption,
    DeterministicOption,
    Grace,
    MaxBody,
    MaxTokens,
    PromptCacheOption,
    PromptCacheSize,
    Queue,
    Restarts,
    StallLimit,
    TimeLimit,
    WithoutKey,
    read_body_limit,
    read_prompt_cache,
)
from dfqs.cli.source import obtain_model
from dfqs.errors import UsageError, printable
from dfqs.model.files import ModelFiles
from dfqs.planning.use import Start, choose_start
from dfqs.runtime.memory import measure_memory
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.template_file import read_template
from dfqs.runtime.worker import Worker
from dfqs.serving.addresses import DEFAULT_HOST, DEFAULT_PORT, is_loopback
from dfqs.serving.api_key import make_key
from dfqs.serving.client import Client
from dfqs.serving.engine import PromptCache, ServeLimits
from dfqs.serving.inspection import templates_of
from dfqs.serving.prompt_keeper import owner_of
from dfqs.serving.server import Listeners, Listening, ServerSettings, serve
from dfqs.serving.supervision import Restarting
from dfqs.streaming.budget import LoadPlan
from dfqs.units import format_bytes, format_number_of

DEFAULT_CONTEXT_TOKENS = 8192
SERVING_BYTES = 60_000_000
"""What serving takes beside a run: the front, its page, a process for templates, requests under way."""

_USUAL = ServeLimits()


def command(
    model: ObtainedModel,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = DEFAULT_HOST,
    port: Annotated[int, typer.Option("--port", help="0 takes any that is free.", min=0, max=65535)] = DEFAULT_PORT,
    ctx: ContextOption = None,
    parallel: Annotated[int, typer.Option("--parallel", help="Requests answered at once.", min=1, max=64)] = 1,
    threads: Threads = None,
    ram: Ram = None,
    force: Force = False,
    yes: Yes = False,
    deterministic: DeterministicOption = False,
    chat_template: ChatTemplate = None,
    api_key: ApiKeyOption = None,
    without_key: WithoutKey = False,
    allow_host: AllowHost = None,
    allow_origin: AllowOrigin = None,
    queue: Queue = _USUAL.queue,
    max_tokens: MaxTokens = None,
    max_body: MaxBody = None,
    time_limit: TimeLimit = None,
    grace: Grace = _USUAL.stop_s,
    prompt_cache: PromptCacheOption = None,
    prompt_cache_size: PromptCacheSize = "4GB",
    restarts: Restarts = _USUAL.restarts,
    stall_limit: StallLimit = _USUAL.stall_s,
    check: Check = None,
    manifest: CheckManifest = None,
    no_tuning: NoTuning = False,
    verbose: Verbose = False,
    json_: Json = False,
) -> None:
    """Serve a model over HTTP (OpenAI-compatible, with a web page), on this machine only unless told otherwise.

    Example: dfqs serve model.gguf --port 8080
    """
    _check_door(host, api_key, without_key)
    prompts, template = read_prompt_cache(prompt_cache, prompt_cache_size, deterministic), read_template(chat_template)
    limits = ServeLimits(queue, max_tokens, read_body_limit(max_body), time_limit, grace, restarts, stall_limit)
    checked = obtain_model(model, context_tokens=ctx or DEFAULT_CONTEXT_TOKENS, ram=ram, force=force, yes=yes)
    _say_beforehand(checked, host, api_key)
    settings = ServerSettings(
        path=checked.path,
        alias=checked.name,
        host=host,
        port=port,
        context_tokens=choose_context(checked, ctx),
        parallel=choose_slots(parallel, deterministic),
        api_key=api_key,
        templates=templates_of(checked.header.metadata),
        given_template=template,
        allow_hosts=tuple(allow_host or ()),
        allow_origins=tuple(allow_origin or ()),
        limits=limits,
        deterministic=deterministic,
    )
    settings, start, plan = plan_serving(
        checked, settings, threads, ram, force=force, checking=Checking(check, manifest), use_tuning=not no_tuning
    )
    _say_plan(settings, plan, start.reason if verbose else None)
    _serve_until_stopped(checked, with_prompt_cache(checked, settings, *prompts), start, plan, json_)


def with_prompt_cache(
    model: ModelFiles, settings: ServerSettings, directory: Path | None, limit_bytes: int
) -> ServerSettings:
    """The settings with a place for computed prompts, if there is one."""
    if directory is None:
        return settings
    speed = settings.speed or ContextSettings()
    need = measure_memory(
        model, settings.context_tokens, n_ubatch=speed.n_ubatch, type_k=speed.type_k, type_v=speed.type_v
    )
    prompts = PromptCache(directory.absolute(), limit_bytes, owner_of(model, settings), need.rolls_back)
    return replace(settings, prompts=prompts)


def _check_door(host: str, api_key: str | None, without_key: bool) -> None:
    """
    Raises:
        UsageError: whoever reaches this machine could use the model, and nobody said that they may.
    """
    make_key(api_key)
    if api_key is None and not without_key and not is_loopback(host):
        raise UsageError(
            f"{printable(host)} is reached from other machines, so a key is needed: --api-key KEY (or DFQS_API_KEY); "
            "--without-key serves whoever comes"
        )


def _say_beforehand(checked: ModelFiles, host: str, api_key: str | None) -> None:
    if checked.label is not None:
        note(f"note: {checked.label}")
    if not is_loopback(host):
        guard = "clients need the API key" if api_key else "nobody is asked for a key (--without-key)"
        warn(f"listening on {host}: whoever reaches this machine can use the model, and {guard}")


def _say_plan(settings: ServerSettings, plan: LoadPlan, reason: str | None) -> None:
    if reason is not None:
        note(reason)
    note(plan.describe() or f"all weights in memory: {format_bytes(plan.total_bytes)} in all")
    if settings.likelihood_bytes:
        more = format_bytes(settings.likelihood_bytes)
        note(f"likelihoods of prompts (echo with logprobs) take up to {more} more, once they are asked for")


def plan_serving(
    checked: ModelFiles,
    settings: ServerSettings,
    threads: int | None,
    ram: str | None,
    *,
    force: bool | None = None,
    checking: Checking = NOT_ASKED,
    use_tuning: bool,
) -> tuple[ServerSettings, Start, LoadPlan]:
    """How a model is loaded for its server, tuned or not, whole or streamed; the settings with that.

    Raises:
        As `choose_start`, and as `read_recorded`.
    """
    start, plan = choose_start(
        checked,
        ContextSettings(n_ctx=settings.context_tokens * settings.parallel),
        threads=threads,
        ram=ram,
        force=force,
        use_tuning=use_tuning,
        sequences=settings.parallel,
        beside_bytes=SERVING_BYTES,
    )
    plan = checking.applied(checked, plan)
    streams = plan.cache_bytes is not None
    planned = replace(
        settings,
        speed=start.context if streams or start.tuned is not None else None,
        order=plan.order,
        likelihood_bytes=0 if streams or ram is not None else plan.total_bytes - SERVING_BYTES,
        bounded=streams or ram is not None,
    )
    return planned, start, plan


def _serve_until_stopped(
    model: ModelFiles, settings: ServerSettings, start: Start, plan: LoadPlan, json_: bool
) -> None:
    note(f"loading {settings.alias}")
    ready = False

    def announce(listening: Listening) -> None:
        nonlocal ready
        with Client(listening.url, api_key=settings.api_key) as client:
            client.check_health()
        ready = True
        if listening.chat_refusal is not None:
            warn(listening.chat_refusal)
        emit(ServeDocument.of(listening, settings, plan.cache_bytes), json_, lambda: _show(listening, settings))

    def make_worker() -> Worker:
        worker = Worker(start.threads, start.wait_policy, start.environment)
        worker.watch(model.paths)
        return worker

    try:
        serve(make_worker, settings, Listeners(announce, _say_restart, _say_stopping, warn), model.paths)
    except KeyboardInterrupt:
        if not ready:
            raise
    note("stopped")


def _say_restart(event: Restarting) -> None:
    warn(f"{event.why}; it is started again in {event.wait_s:g} s")


def _say_stopping(answers: int) -> None:
    note(f"stopping when {format_number_of(answers, 'request')} under way {'is' if answers == 1 else 'are'} answered")


def _show(listening: Listening, settings: ServerSettings) -> None:
    print_plain(f"{settings.alias} is served at {listening.url} (web page), {listening.url}/v1 (OpenAI API)")
    if listening.other_urls:
        note(f"from other machines: {', '.join(listening.other_urls)}")
    note(
        f"context {settings.context_tokens:,} tokens, requests at once: {settings.parallel}, "
        f"threads: {listening.threads}; Ctrl-C stops it"
    )
    if settings.deterministic:
        note("deterministic: one request at a time, each from its beginning; the same request has the same answer")
    if listening.restored is not None and listening.restored.tokens:
        found = listening.restored
        note(f"{found.tokens:,} tokens of prompts that were kept are restored, in {found.seconds:.2f} s")


def choose_slots(parallel: int, deterministic: bool) -> int:
    """Requests computed at once."""
    if deterministic and parallel > 1:
        warn(f"--deterministic computes one request at a time: of --parallel {parallel}, {parallel - 1} wait")
    return 1 if deterministic else parallel


def choose_context(checked: ModelFiles, requested: int | None) -> int:
    """Context of a request, in tokens: as asked for, but no longer than the model was trained for."""
    trained = checked.spec.context_tokens
    if trained is None:
        return requested or DEFAULT_CONTEXT_TOKENS
    if requested is not None and requested > trained:
        warn(f"context capped at {trained:,} tokens, the length this model was trained for")
    return min(requested or DEFAULT_CONTEXT_TOKENS, trained)
