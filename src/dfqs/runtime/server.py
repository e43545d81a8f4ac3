"""llama-server, as the wheel carries it, in a worker process behind a front of ours: OpenAI-compatible endpoints and a
web page.

with Worker() as worker:
    serve(worker, ServerSettings(path, alias="my-model"), on_listening=print)   # until Ctrl-C
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dfqs.errors import RuntimeFailure, WorkerCrash
from dfqs.runtime.addresses import is_loopback, listen, urls_of
from dfqs.runtime.admission import make_admission
from dfqs.runtime.api_key import make_key
from dfqs.runtime.body_rules import BodyRules
from dfqs.runtime.engine import EngineFailed, EngineListening, ServerSettings, run_server
from dfqs.runtime.engine_directory import engine_directory
from dfqs.runtime.front import Front, FrontLimits
from dfqs.runtime.inspection import ChatInspection
from dfqs.runtime.likelihood_door import LikelihoodDoor
from dfqs.runtime.loading import StreamFigures
from dfqs.runtime.log_lines import server_errors
from dfqs.runtime.page import own_pages
from dfqs.runtime.stream_metrics import format_metrics
from dfqs.runtime.worker import Worker

__all__ = ["Listening", "ServerSettings", "serve"]

_BYTES_PER_TOKEN = 16
"""Of a request's JSON, generously."""
_BOUNDED_BODY_BYTES = 1 << 20
_BODIES = 4


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


def serve(worker: Worker, settings: ServerSettings, on_listening: Callable[[Listening], None]) -> None:
    """Load the model, serve it, and return when the server was asked to stop (KeyboardInterrupt goes on to the caller).

    Args:
        on_listening: called once, when requests are answered.

    Raises:
        UsageError: a key that no client can show, or names and pages that are none.
        NetworkError: the port is taken, or the host is not ours.
        TemplateExcess: the model's chat template takes more than a template needs.
        RuntimeFailure: llama.cpp refused the model or the settings.
        WorkerCrash: it died.
    """
    given = settings.given_template
    inspection = (
        ChatInspection(settings.templates) if given is None else ChatInspection([given.text], whose=given.whose)
    )
    beyond = not is_loopback(settings.host)
    admission = make_admission(beyond, settings.allow_hosts, settings.allow_origins, settings.host)
    key, rules = make_key(settings.api_key), BodyRules(settings.parallel)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(settings.host, settings.port))
        stack.callback(inspection.close)
        inspection.probe()
        engine = stack.enter_context(engine_directory()) / "engine.sock"
        door = LikelihoodDoor(settings, worker.threads)
        stack.callback(door.close)
        front = Front(listener, engine, admission, key, rules, inspection, limits_of(settings), own=door)
        stack.callback(front.stop)
        begun = False

        def begin(event: EngineListening) -> None:
            nonlocal begun
            begun = True
            front.pages = own_pages(engine)
            front.start()
            url, others = urls_of(settings.host, listener.getsockname()[1])
            on_listening(Listening(url, others, event.omp_wait_policy, event.threads, inspection.refusal))

        def hear(event: Any) -> None:
            if isinstance(event, EngineListening):
                begin(event)
            elif isinstance(event, StreamFigures):
                front.metrics = format_metrics(event)
            elif isinstance(event, EngineFailed):
                front.failure = event.sentence

        doing = f"serving {settings.path}"
        try:
            worker.reporting(hear, doing=doing).call(run_server, settings, engine)
        except WorkerCrash as error:
            front.failure = error.sentence
            raise
        except RuntimeFailure as error:
            # Its log is whole only then; requests under way end with it.
            worker.close()
            reasons = [] if begun else server_errors(worker.log_lines)
            if not reasons:
                raise
            raise RuntimeFailure(f"llama-server could not start: {reasons[0]}") from error


def limits_of(settings: ServerSettings) -> FrontLimits:
    """What clients may take: where memory is planned, requests are no larger than a context of text makes them."""
    if not settings.bounded:
        return FrontLimits()
    body = min(_BOUNDED_BODY_BYTES + settings.context_tokens * _BYTES_PER_TOKEN, FrontLimits().body_bytes)
    return FrontLimits(body_bytes=body, bodies_bytes=_BODIES * body)
