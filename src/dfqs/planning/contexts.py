"""One context of a plan: whether it fits whole, streamed, shorter or not at all, by the one decision that loads models.

The decision itself is `dfqs.streaming.budget.weigh_load`, which `dfqs run` takes too.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from dfqs.planning.document import ContextPlan, NeededSetting, PlanPart, PlanSettings, StreamedPlan, Verdict
from dfqs.planning.fit import Found, Lever, Search, levers_for
from dfqs.planning.streamed import describe_streaming
from dfqs.runtime.memory import MemoryNeed
from dfqs.runtime.requests import ContextSettings
from dfqs.streaming.budget import PROGRAM_BYTES, LoadPlan, Shortfall, weigh_load
from dfqs.units import format_bytes

if TYPE_CHECKING:
    from dfqs.planning.plan import PlanRequest, Subject

Binding = Literal["weights", "resident weights", "context"]


def plan_context(
    subject: "Subject", search: Search, asked: ContextSettings, *, deterministic: bool = False
) -> ContextPlan:
    """Search for settings with which a context fits, whole if that can be, else streamed, else shorter."""
    levers = levers_for(asked, deterministic=deterministic)
    profile: Literal["default", "deterministic"] = "deterministic" if deterministic else "default"

    def fits_whole(need: MemoryNeed) -> bool:
        return need.total_bytes + PROGRAM_BYTES <= subject.memory_bytes

    def fits_streamed(need: MemoryNeed) -> bool:
        return isinstance(_weigh(subject, need), LoadPlan)

    need = search.need(asked)
    found = search.find(asked, levers, fits_whole) if _may_fit(subject, need) else None
    if found is not None:
        verdict = Verdict.FITS_WITH if found.needed else Verdict.FITS
        return _row(subject, asked, profile, found, verdict)
    if need is None and not any(isinstance(_weigh(subject, n), LoadPlan) for n in _other(search, asked, levers)):
        return _refused(subject, search, asked, profile)
    whole = search.shorter(asked, levers, fits_whole) if _may_fit(subject, need) else None
    whole_tokens = whole[0].n_ctx if whole is not None else None
    streamed = search.find(asked, levers, fits_streamed)
    if streamed is not None:
        row = _row(subject, asked, profile, streamed, Verdict.STREAMED)
        return row.model_copy(update={"whole_context_tokens": whole_tokens})
    shorter, verdict = whole, Verdict.FITS_WITH
    if shorter is None:
        shorter, verdict = search.shorter(asked, levers, fits_streamed), Verdict.STREAMED
    if shorter is not None:
        return _shorter_row(subject, search, asked, profile, shorter, verdict)
    return _unfit_row(subject, search, asked, levers, profile)


def _other(search: Search, asked: ContextSettings, levers: tuple[Lever, ...]) -> list[MemoryNeed]:
    """Needs of the settings with one lever turned, where those asked for are refused."""
    return [need for lever in levers if (need := search.need(replace(asked, **lever.saving))) is not None]


def _weigh(subject: "Subject", need: MemoryNeed) -> LoadPlan | Shortfall:
    return weigh_load(need, subject.memory_bytes, subject.used, subject.model.paths, lambda: subject.layout)


def _may_fit(subject: "Subject", need: MemoryNeed | None) -> bool:
    """Whether the weights alone do; else no setting of the context helps, and none is asked about."""
    return need is None or need.weights_bytes + PROGRAM_BYTES <= subject.memory_bytes


def _row(
    subject: "Subject",
    asked: ContextSettings,
    profile: Literal["default", "deterministic"],
    found: Found,
    verdict: Verdict,
) -> ContextPlan:
    need, weighed = found.need, _weigh(subject, found.need)
    streamed: StreamedPlan | None = None
    if isinstance(weighed, LoadPlan) and weighed.cache_bytes is not None:
        streamed = describe_streaming(weighed, subject.layout, subject.used, subject.disk_rates)
    least = weighed.least_bytes if isinstance(weighed, Shortfall) else None
    return ContextPlan(
        asked_tokens=asked.n_ctx or need.context_tokens,
        context_tokens=need.context_tokens,
        profile=profile,
        settings=PlanSettings.of(found.settings, need.flash_attention),
        parts=_parts(need),
        total_bytes=need.total_bytes + PROGRAM_BYTES,
        verdict=verdict,
        needed=found.needed,
        streamed=streamed,
        whole_context_tokens=None,
        binding=None,
        least_bytes=least,
        advice=None,
        notices=need.notices,
    )


def _shorter_row(
    subject: "Subject",
    search: Search,
    asked: ContextSettings,
    profile: Literal["default", "deterministic"],
    shorter: tuple[ContextSettings, MemoryNeed],
    verdict: Verdict,
) -> ContextPlan:
    """A context that had to be shorter; its length is a setting like the others."""
    settings, need = shorter
    whole = search.need(replace(settings, n_ctx=asked.n_ctx))
    length = NeededSetting(
        name="context",
        value=str(need.context_tokens),
        changed=True,
        otherwise=str(asked.n_ctx),
        otherwise_bytes=None if whole is None else whole.total_bytes + PROGRAM_BYTES,
    )
    deterministic = profile == "deterministic"

    def fits(other: MemoryNeed) -> bool:
        weighed = _weigh(subject, other)
        return isinstance(weighed, LoadPlan) and (verdict is Verdict.STREAMED or weighed.cache_bytes is None)

    found = search.find(
        replace(asked, n_ctx=settings.n_ctx), levers_for(asked, deterministic=deterministic), fits
    ) or Found(settings, need, ())
    found = replace(found, needed=(length, *found.needed))
    return _row(subject, asked, profile, found, verdict)


def _unfit_row(
    subject: "Subject",
    search: Search,
    asked: ContextSettings,
    levers: tuple[Lever, ...],
    profile: Literal["default", "deterministic"],
) -> ContextPlan:
    """What does not fit, with every lever in use; says what binds, and what would change it."""
    settings = asked
    for lever in levers:
        settings = replace(settings, **lever.saving)
    need = search.need(settings) or search.need(asked)
    assert need is not None
    weighed = _weigh(subject, need)
    assert isinstance(weighed, Shortfall)
    row = _row(subject, asked, profile, Found(settings, need, ()), Verdict.DOES_NOT_FIT)
    least = weighed.whole_bytes if weighed.least_bytes is None else weighed.least_bytes
    binding: Binding = "weights" if weighed.least_bytes is None else "resident weights"
    if weighed.resident_bytes + PROGRAM_BYTES <= subject.memory_bytes and weighed.context_bytes > PROGRAM_BYTES:
        binding = "context"
    return row.model_copy(update={"binding": binding, "least_bytes": least, "advice": _advice(binding, least, weighed)})


def _advice(binding: Binding, least: int, short: Shortfall) -> str:
    what = {
        "context": "a shorter context",
        "weights": f"a smaller quantization ({short.no_stream_reason})",
        "resident weights": "smaller types for what every token uses (attention, embeddings, shared experts)",
    }[binding]
    return f"{format_bytes(least)} of memory, or {what}"


def _refused(
    subject: "Subject",
    search: Search,
    asked: ContextSettings,
    profile: Literal["default", "deterministic"],
) -> ContextPlan:
    """Settings that the runtime does not take for this model, and no lever mends."""
    row = _unknown(subject, asked, profile)
    said = search.refusals.get(asked, "the runtime refuses these settings")
    return row.model_copy(update={"advice": said})


def unknown_context(subject: "Subject", tokens: int, request: "PlanRequest") -> ContextPlan:
    """What can be said without the runtime: whether the weights alone are too much."""
    return _unknown(subject, request.settings(tokens, request.kv[0]), "default")


def _unknown(subject: "Subject", asked: ContextSettings, profile: Literal["default", "deterministic"]) -> ContextPlan:
    tokens = asked.n_ctx or 1
    bare = MemoryNeed(tokens, sum(tensor.length for tensor in subject.model.tensors), 0, 0, 0)
    weighed = _weigh(subject, bare)
    row = _row(subject, asked, profile, Found(asked, bare, ()), Verdict.UNKNOWN)
    changes: dict[str, object] = {"total_bytes": None, "advice": "the context comes on top of the weights; not known"}
    if isinstance(weighed, Shortfall):
        least = weighed.whole_bytes if weighed.least_bytes is None else weighed.least_bytes
        binding: Binding = "weights" if weighed.least_bytes is None else "resident weights"
        changes |= {
            "verdict": Verdict.DOES_NOT_FIT,
            "binding": binding,
            "least_bytes": least,
            "advice": f"the context not counted: {_advice(binding, least, weighed)}",
        }
    return row.model_copy(update=changes)


def _parts(need: MemoryNeed) -> tuple[PlanPart, ...]:
    weights = PlanPart(kind="weights", name="weights", bytes=need.weights_bytes, cells=None, layers=None)
    program = PlanPart(kind="program", name="both processes", bytes=PROGRAM_BYTES, cells=None, layers=None)
    context = (
        PlanPart(kind=part.kind, name=part.name, bytes=part.bytes, cells=part.cells, layers=part.layers)
        for part in need.parts
    )
    return (weights, *context, program)
