"""llama-server, as the wheel carries it, in a worker process behind a front of ours: OpenAI-compatible endpoints and a
web page.

serve(Worker, ServerSettings(path, alias="my-model"), Listeners(print))   # until Ctrl-C
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfqs.runtime.loading import StreamFigures
from dfqs.runtime.worker import Worker
from dfqs.serving.addresses import is_loopback, listen, urls_of
from dfqs.serving.admission import make_admission
from dfqs.serving.api_key import make_key
from dfqs.serving.body_rules import BodyRules
from dfqs.serving.dispatch import Dispatch, DispatchLimits
from dfqs.serving.engine import EngineListening, ServerSettings
from dfqs.serving.engine_directory import engine_directory
from dfqs.serving.engine_state import EngineState
from dfqs.serving.front import Front, FrontLimits
from dfqs.serving.inspection import ChatInspection
from dfqs.serving.likelihood_door import LikelihoodDoor
from dfqs.serving.page import own_pages
from dfqs.serving.prompt_keeper import PromptKeeper
from dfqs.serving.prompt_store import PromptStore
from dfqs.serving.stream_metrics import format_metrics
from dfqs.serving.supervision import Restarting, Supervision

__all__ = ["Listeners", "Listening", "ServerSettings", "serve"]

_BYTES_PER_TOKEN = 16
"""Of a request's JSON, generously."""
_BOUNDED_BODY_BYTES = 1 << 20
_BODIES = 4


@dataclass(frozen=True, slots=True)
class Restored:
    """What was read of prompts that an earlier server kept."""

    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Listening:
    """A server that is ready."""

    url: str
    """That this machine's programs can open."""
    other_urls: tuple[str, ...]
    """That other machines may, where it listens beyond this one."""
    omp_wait_policy: str
    threads: int
    chat_refusal: str | None
    """Why conversations are not answered, if they are not."""
    restored: Restored | None = None
    """None where prompts are not kept."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told of what becomes of a server."""

    on_listening: Callable[[Listening], None]
    """Called once, when requests are answered."""
    on_restart: Callable[[Restarting], None] = lambda _: None
    """Called when a server died and another will be started."""
    on_stopping: Callable[[int], None] = lambda _: None
    """Called with the number of answers under way that the end waits for."""
    on_remark: Callable[[str], None] = lambda _: None
    """Told what a user should know meanwhile, in sentences."""


def serve(
    make_worker: Callable[[], Worker], settings: ServerSettings, listeners: Listeners, files: Sequence[Path] = ()
) -> None:
    """Load the model, serve it, and return when the server was asked to stop (KeyboardInterrupt goes on to the caller).

    Args:
        make_worker: a worker that was not entered yet; another one for each server that has to be started again.
        files: of the model.

    Raises:
        UsageError: a key that no client can show, names and pages that are none, or no place for kept prompts.
        NetworkError: the port is taken, or the host is not ours.
        TemplateExcess: the model's chat template takes more than a template needs.
        RuntimeFailure: llama.cpp refused the model or the settings.
        WorkerCrash: it died before it answered, or too often in a row.
    """
    given = settings.given_template
    inspection = (
        ChatInspection(settings.templates) if given is None else ChatInspection([given.text], whose=given.whose)
    )
    beyond = not is_loopback(settings.host)
    admission = make_admission(beyond, settings.allow_hosts, settings.allow_origins, settings.host)
    key = make_key(settings.api_key)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(settings.host, settings.port))
        stack.callback(inspection.close)
        inspection.probe()
        directory = stack.enter_context(engine_directory())
        door = LikelihoodDoor(settings, make_worker().threads)
        stack.callback(door.close)
        state = EngineState()
        dispatch = Dispatch(state, rules_of(settings), inspection, door, dispatch_limits_of(settings), not beyond)
        keeper = _open_keeper(stack, settings, dispatch, listeners.on_remark)
        front = Front(listener, admission, dispatch, key, limits_of(settings))
        stack.callback(front.stop)
        served = _Served(settings, front, keeper, inspection, listeners)
        Supervision(
            make_worker,
            settings,
            tuple(files),
            directory,
            state,
            keeper.restore if keeper is not None else lambda _: None,
            served.hear,
            listeners.on_restart,
            served.drain,
        ).run()


@dataclass(slots=True)
class _Served:
    """What a server does on what becomes of its engine."""

    settings: ServerSettings
    front: Front
    keeper: PromptKeeper | None
    inspection: ChatInspection
    listeners: Listeners

    def hear(self, event: Any) -> None:
        dispatch = self.front.dispatch
        if isinstance(event, StreamFigures):
            dispatch.more_metrics = format_metrics(event)
        elif isinstance(event, EngineListening) and dispatch.engine.epoch == 1:
            assert dispatch.engine.path is not None
            self.front.pages = own_pages(dispatch.engine.path)
            self.front.start()
            url, others = urls_of(self.settings.host, self.front.listener.getsockname()[1])
            restored = None
            if self.keeper is not None:
                restored = Restored(self.keeper.restored_tokens, self.keeper.restore_s)
                self.keeper.start()
            refusal = self.inspection.refusal
            self.listeners.on_listening(Listening(url, others, event.omp_wait_policy, event.threads, refusal, restored))

    def drain(self) -> None:
        if self.front.answering:
            self.listeners.on_stopping(self.front.answering)
        self.front.drain(self.settings.limits.stop_s)
        if self.keeper is not None:
            self.keeper.stop()


def _open_keeper(
    stack: contextlib.ExitStack, settings: ServerSettings, dispatch: Dispatch, on_remark: Callable[[str], None]
) -> PromptKeeper | None:
    """Raises UsageError where prompts cannot be kept."""
    prompts = settings.prompts
    if prompts is None:
        return None
    store = stack.enter_context(PromptStore(prompts.directory, prompts.owner, prompts.limit_bytes))
    keeper = PromptKeeper(store, settings, dispatch, on_remark, prompts.rolls_back)
    stack.callback(keeper.stop)
    return keeper


def rules_of(settings: ServerSettings) -> BodyRules:
    """What the body of a request may ask for."""
    rules = BodyRules(settings.parallel, deterministic=settings.deterministic)
    most = settings.limits.max_tokens
    return rules if most is None else replace(rules, max_tokens=most)


def dispatch_limits_of(settings: ServerSettings) -> DispatchLimits:
    """What requests may take of the model's server."""
    return DispatchLimits(settings.parallel, settings.limits.queue, answer_s=settings.limits.answer_s)


def limits_of(settings: ServerSettings) -> FrontLimits:
    """What clients may take: where memory is planned, requests are no larger than a context of text makes them."""
    asked, usual = settings.limits.body_bytes, FrontLimits()
    if not settings.bounded:
        body = usual.body_bytes if asked is None else asked
        return FrontLimits(body_bytes=body, bodies_bytes=max(usual.bodies_bytes, body))
    planned = min(_BOUNDED_BODY_BYTES + settings.context_tokens * _BYTES_PER_TOKEN, usual.body_bytes)
    body = planned if asked is None else min(planned, asked)
    return FrontLimits(body_bytes=body, bodies_bytes=_BODIES * planned)
