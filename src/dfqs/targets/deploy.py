"""A model into a system: the steps in their order, from looking to writing to proving."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dfqs.errors import EndpointError, UsageError
from dfqs.model.files import ModelFiles
from dfqs.progress import Progress, no_progress
from dfqs.serving.client import Client
from dfqs.targets.contract import Endpoint, LocalModel, Placed, Rendering, Site, Target, Way
from dfqs.targets.kept import Deployment, kept_at, read_deployment
from dfqs.targets.listing import why_blocked
from dfqs.targets.look import read_site
from dfqs.targets.plan import WritePlan, plan_write, require_room_for, stamp_of
from dfqs.targets.verify import Verification, verify_written
from dfqs.targets.write import Say, say_nothing, write_planned

DEFAULT_ENDPOINT = "http://127.0.0.1:8080/v1"
_ASKED_S = 5.0
Placing = Literal["link", "copy"]
_WAYS: dict[Placing, tuple[Way, ...]] = {"link": ("hard link", "symlink"), "copy": ("copy",)}


@dataclass(frozen=True, slots=True)
class Asked:
    """A server that a client is told of."""

    endpoint: Endpoint
    answered: bool
    """It was asked, and has the model."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A deployment that could be written."""

    target: Target
    site: Site
    model: LocalModel
    asked: Asked
    rendering: Rendering
    plan: WritePlan
    directory: Path
    """Of its record."""


def find_endpoint(url: str, model: LocalModel, *, api_key: str | None, context_tokens: int | None) -> Asked:
    """A server as clients are told of it: it is asked which models it has, and how long its context is.

    Args:
        url: with or without /v1.
        context_tokens: as the user says; None: as the server says, else the model's.

    Raises:
        UsageError: no address.
    """
    base = url.rstrip("/")
    base = base if base.endswith("/v1") else f"{base}/v1"
    endpoint = Endpoint(base, model.name, context_tokens or model.context_tokens, api_key)
    try:
        with Client(base, api_key=api_key, timeout_s=_ASKED_S, answer_s=_ASKED_S) as client:
            names, context = client.models(), client.context_tokens()
    except EndpointError:
        return Asked(endpoint, answered=False)
    if not names:
        return Asked(endpoint, answered=False)
    name = next((name for name in names if name in (model.name, model.identifier)), names[0])
    return Asked(replace(endpoint, model=name, context_tokens=context_tokens or context or model.context_tokens), True)


def prepare(
    target: Target,
    files: ModelFiles,
    model: LocalModel,
    asked: Asked,
    *,
    placing: Placing | None = None,
) -> Prepared:
    """Everything that can be found out, and refused, before anything is written.

    Raises:
        UsageError: the system cannot have this model here, or something is in the way.
        FormatError: a configuration does not parse.
        SpaceError: there is no room for a copy.
    """
    site = read_site((target,), probe=True)
    endpoint = asked.endpoint
    if (reason := why_blocked(target, site, _as_served(target, model, endpoint), files)) is not None:
        raise UsageError(f"{target.title} cannot have {model.path.name} here: {reason}")
    rendering = target.render(model, site, endpoint)
    if placing is not None and not any(isinstance(part, Placed) for part in rendering.parts):
        raise UsageError(
            f"--{placing} is for systems that have the file in a directory of theirs; {target.title} has not"
        )
    if target.takes == "copy":
        require_room_for(target.space(model, site))
    directory = kept_at(target.name, Path(model.path), _kept_name(target, model, endpoint))
    plan = plan_write(
        rendering,
        read_deployment(directory),
        Path(site.home),
        ways=_WAYS[placing] if placing is not None else None,
        secret=endpoint.api_key is not None,
    )
    return Prepared(target, site, model, asked, rendering, plan, directory)


def deploy(
    prepared: Prepared, *, progress: Progress = no_progress, say: Say = say_nothing
) -> tuple[Deployment | None, Verification]:
    """Write it, tell the system, and look at what came of it.

    Returns:
        The record of what was changed (None: there is nothing to take back), and what is proved.

    Raises:
        As `write_planned`.
    """
    rendering, target = prepared.rendering, prepared.target
    runnable = tuple(c for c in rendering.register if c.words[0] in prepared.site.programs)
    deployment = None
    if prepared.plan.is_needed or runnable or read_deployment(prepared.directory) is not None:
        fresh = Deployment(
            target=target.name,
            model=prepared.model.path,
            listed_as=rendering.listed_as or prepared.model.identifier,
            done=False,
            parts=(),
            directories=(),
            undone_by=tuple(command.undone_by for command in runnable if command.undone_by),
            model_stamp=stamp_of(Path(prepared.model.path)),
        )
        deployment = write_planned(
            prepared.plan, rendering, prepared.directory, fresh, register=runnable, progress=progress, say=say
        )
    return deployment, verify_written(rendering)


def _as_served(target: Target, model: LocalModel, endpoint: Endpoint) -> LocalModel:
    """To a client the context is the server's."""
    return replace(model, context_tokens=endpoint.context_tokens) if target.takes == "endpoint" else model


def _kept_name(target: Target, model: LocalModel, endpoint: Endpoint) -> str:
    return f"{endpoint.base_url}\n{endpoint.model}" if target.takes == "endpoint" else model.identifier


def model_path(path: Path) -> Path:
    """A path as records of deployments have it."""
    return Path(os.path.abspath(path))  # noqa: PTH100
