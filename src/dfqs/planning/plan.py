"""A plan: what a model takes, whether that is there, and with which settings. Reads headers, and asks the runtime."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from dfqs.errors import RuntimeFailure, UsageError
from dfqs.model.files import ModelFiles, open_model
from dfqs.planning.asking import Asker
from dfqs.planning.contexts import plan_context, unknown_context
from dfqs.planning.document import ContextPlan, DiskPlan, EnvelopeRow, GpuSplit, PlanDocument
from dfqs.planning.envelope import EnvelopeNeeds, check_envelope
from dfqs.planning.fit import Search
from dfqs.planning.loaders import LoaderVerdict, judge_loaders
from dfqs.planning.split import least_vram_bytes, split_model, weigh_layers
from dfqs.progress import Progress, no_progress
from dfqs.runtime.choice import runtime_and_release
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.worker import Worker
from dfqs.shards.translate import describe_translation
from dfqs.storage.space import free_bytes
from dfqs.streaming.budget import usable_memory_bytes
from dfqs.streaming.layout import StreamLayout, plan_layout

USUAL_CONTEXTS = (8192, 65_536)
"""Asked about beside the trained length."""
DISK_RATES = (500_000_000, 3_000_000_000, 7_000_000_000)
"""Bytes a second of a SATA disk, and of NVMe on PCIe 3 and 4."""
DETERMINISTIC_KV = ("f16", "f16")
"""With flash attention off: the numerics under which routing is compared and scores are measured (docs/routing.md)."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What is asked about."""

    contexts: tuple[int, ...] | None = None
    """Tokens; None: 8k, 64k and the trained length."""
    kv: tuple[tuple[str, str], ...] = (("f16", "f16"),)
    """Types of the K and the V cache, each pair planned for."""
    batch: int = 512
    ubatch: int = 512
    flash_attention: str = "auto"
    swa_full: bool = False
    memory_bytes: int | None = None
    """That may be taken; None: of this machine, now, with room left for others."""
    vram_bytes: int | None = None
    disk_rates: tuple[int, ...] = DISK_RATES
    directory: Path | None = None
    """Where the model would be kept; None: beside it, or here."""

    def settings(self, tokens: int, kv: tuple[str, str]) -> ContextSettings:
        return ContextSettings(
            n_ctx=tokens,
            n_batch=self.batch,
            n_ubatch=min(self.ubatch, self.batch),
            flash_attention=self.flash_attention,
            type_k=kv[0],
            type_v=kv[1],
            swa_full=self.swa_full,
        )

    def profiles(self, tokens: int) -> tuple[ContextSettings, ...]:
        """Settings that a context is planned for with: one for each pair of cache types, and deterministic numerics."""
        steady = replace(self.settings(tokens, DETERMINISTIC_KV), flash_attention="off")
        return (*(self.settings(tokens, kv) for kv in self.kv), steady)


@dataclass(eq=False)
class Subject:
    """A model as a plan needs it; what takes long is worked out when it is asked for."""

    model: ModelFiles
    memory_bytes: int
    disk_rates: tuple[int, ...]

    @cached_property
    def layout(self) -> StreamLayout:
        return plan_layout(self.model.headers)

    @property
    def used(self) -> int:
        """Experts that a token uses in a layer."""
        return self.model.spec.experts_used


def plan_model(
    source: Path | ModelFiles,
    request: PlanRequest | None = None,
    *,
    worker: Worker | None = None,
    progress: Progress = no_progress,
) -> PlanDocument:
    """Whether a model fits, and with which settings.

    Args:
        source: a file, the first shard of a set, or an opened model, whose headers may have come over the network.
        request: contexts, cache types, memory; the usual by default.
        worker: to use; None starts one.
        progress: counts contexts.

    Raises:
        UsageError: no such file, not a model, or contexts of no tokens.
        FormatError: a header lies.
    """
    request = request or PlanRequest()
    model = open_model(source)
    model.require_loadable()
    with Asker(model, worker) as asker:
        return _plan(model, request, asker, progress)


def judge_all(model: ModelFiles, worker: Worker | None = None) -> tuple[LoaderVerdict, ...]:
    """Which programs load a model: this program's runtime is asked, of the others is told what is known.

    Raises:
        UsageError: it is no model.
    """
    model.require_model()
    with Asker(model, worker) as asker:
        return (_own_verdict(_refusal(asker.require_loads), model), *judge_loaders(model.header, model.tensors))


def require_loads(model: ModelFiles) -> str:
    """Have this runtime load a model's header, of a file that may not be written yet; returns the runtime's name.

    Raises:
        RuntimeFailure: it does not load it; says why.
    """
    with Asker(model) as asker:
        asker.require_loads()
    return runtime_and_release()


def _plan(model: ModelFiles, request: PlanRequest, asker: Asker, progress: Progress) -> PlanDocument:
    described = model.description
    memory = usable_memory_bytes() if request.memory_bytes is None else request.memory_bytes
    subject = Subject(model, memory, request.disk_rates)
    lengths = _lengths(request, model.spec.context_tokens)
    unknown = _refusal(asker.open)
    if unknown is None:
        contexts, split = _ask_all(subject, request, asker, lengths, progress)
        unknown = _refusal(asker.require_loads)
    if unknown is not None:
        contexts, split = tuple(unknown_context(subject, tokens, request) for tokens in lengths), None
    disk = plan_disk(model, request.directory)
    return PlanDocument(
        source=model.shards[0].source,
        name=described.name,
        architecture=described.architecture,
        parameters=described.parameters,
        parameters_active=described.parameters_active,
        file_bytes=described.file_bytes,
        tensor_bytes=described.tensor_bytes,
        trained_context_tokens=described.context_tokens,
        runtime=runtime_and_release(),
        unknown=unknown,
        memory_bytes=memory,
        memory_of="this machine" if request.memory_bytes is None else "given",
        contexts=contexts,
        disk=disk,
        split=split[0] if split is not None else None,
        envelope=_envelope(contexts, split, disk),
        loaders=(_own_verdict(unknown, model), *judge_loaders(model.header, model.tensors)),
    )


def _ask_all(
    subject: Subject, request: PlanRequest, asker: Asker, lengths: tuple[int, ...], progress: Progress
) -> tuple[tuple[ContextPlan, ...], tuple[GpuSplit | None, int] | None]:
    """Plans of all contexts, and the split with the VRAM that a GPU needs."""
    search = Search(asker.ask, asker.expect)
    found: dict[tuple[int, int], ContextPlan] = {}
    # The longest first: what fits there fits at shorter ones, and need not be asked again.
    longest_first = sorted(lengths, reverse=True)
    progress(0, len(lengths), "")
    asker.expect(settings for tokens in longest_first for settings in request.profiles(tokens))
    for done, tokens in enumerate(longest_first):
        progress(done, len(lengths), f"{tokens:,} tokens")
        for order, settings in enumerate(request.profiles(tokens)):
            steady = order == len(request.kv)
            found[tokens, order] = plan_context(subject, search, settings, deterministic=steady)
    progress(len(lengths), len(lengths), "")
    contexts = tuple(found[key] for key in sorted(found))
    weights = weigh_layers(subject.model.tensors)
    split: tuple[GpuSplit | None, int] | None = None
    for row in contexts:
        if row.profile != "default" or not row.verdict.runs:
            continue
        need = search.need(row.settings.context(row.context_tokens))
        if need is None:
            continue
        made = None
        if request.vram_bytes is not None:
            made = split_model(weights, need, request.vram_bytes, subject.memory_bytes)
        if split is None or made is None or made.fits:
            split = (made, least_vram_bytes(weights, need))
    return contexts, split


def _lengths(request: PlanRequest, trained: int | None) -> tuple[int, ...]:
    """Contexts to plan for, each once, none longer than the model was trained for."""
    if request.contexts is not None:
        asked = request.contexts
    else:
        asked = USUAL_CONTEXTS if trained is None else (*USUAL_CONTEXTS, trained)
    if not asked or min(asked) < 1:
        raise UsageError("a context has at least one token; give --ctx lengths like 8k,64k")
    capped = [min(tokens, trained) if trained else tokens for tokens in asked]
    return tuple(dict.fromkeys(capped))


def _refusal(require: Callable[[], None]) -> str | None:
    """Why the runtime does not load the model; None: it does."""
    try:
        require()
    except RuntimeFailure as error:
        return str(error)
    return None


def _own_verdict(refusal: str | None, model: ModelFiles) -> LoaderVerdict:
    if refusal is not None and (advice := describe_translation(model.header, model.tensors)) is not None:
        refusal = f"{refusal} ({advice})"
    return LoaderVerdict(
        loader=runtime_and_release(),
        verdict="PASSED" if refusal is None else "FAILED",
        asked=True,
        evidence="it loads the header and makes a context of it" if refusal is None else refusal,
        source=None,
    )


def plan_disk(model: ModelFiles, directory: Path | None) -> DiskPlan:
    """What storage a model takes, and what is free."""
    local = all(shard.path.exists() for shard in model.shards)
    place = directory or (model.path.absolute().parent if local else Path.cwd())
    if not place.is_dir():
        raise UsageError(f"no such directory: {place}")
    several = len(model.shards) > 1
    return DiskPlan(
        file_bytes=model.file_bytes,
        fetch_bytes=0 if local else model.file_bytes,
        plain_merge_bytes=model.file_bytes * 2 if several else model.file_bytes,
        directory=str(place),
        free_bytes=free_bytes(place),
    )


def _envelope(
    contexts: tuple[ContextPlan, ...], split: tuple[GpuSplit | None, int] | None, disk: DiskPlan
) -> tuple[EnvelopeRow, ...]:
    """The longest context that is planned for, against the specification's table."""
    longest = max(
        (row for row in contexts if row.profile == "default" and row.total_bytes is not None),
        key=lambda row: row.context_tokens,
        default=None,
    )
    return check_envelope(
        EnvelopeNeeds(
            ram_bytes=longest.total_bytes if longest is not None else None,
            ram_for=f"all weights and {longest.context_tokens:,} tokens" if longest is not None else "all weights",
            vram_bytes=split[1] if split is not None else None,
            vram_for="all weights but the experts, with the context (computed, not run)",
            storage_bytes=disk.file_bytes,
            storage_for="the file",
        )
    )
