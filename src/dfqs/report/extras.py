"""What other verbs found out about the model, as sections of a page: memory, routing, and its ladder of classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from dfqs.planning.document import PlanDocument
from dfqs.quantize.bootstrap import Estimate
from dfqs.quantize.ladder import LadderDocument
from dfqs.quantize.noise_floor import Resolution
from dfqs.quantize.perplexity import Summary
from dfqs.records import Document
from dfqs.report.facts import (
    FLOOR_HEADER,
    FLOOR_WORDS,
    LIKELIHOOD_WORDS,
    PROFILE_HEADER,
    PROFILE_WORDS,
    Row,
    floor_rows,
    likelihood_rows,
    profile_rows,
    tool_rows,
)
from dfqs.report.schema import Report
from dfqs.routing.determinism import RouteCheck
from dfqs.routing.stats import RouteStats
from dfqs.units import format_bytes

ROWS_LIMIT = 100
ORDER = ("likelihood", "floor", "tools", "profile", "memory", "determinism", "experts", "ladder")


@dataclass(frozen=True, slots=True)
class Extra:
    """One section."""

    id: str
    title: str
    words: str
    header: tuple[str, ...]
    rows: Sequence[Row]
    plots: Sequence[Any]
    """`dfqs.report.svg.Plot`s."""


def describe_extras(report: Report, companions: Sequence[Document], drawing: ModuleType | None) -> list[Extra]:
    """A section for each document, in the order of `ORDER`."""
    found = [*_likelihoods(report, drawing), *_own(report)]
    for document in companions:
        if isinstance(document, PlanDocument):
            found.append(_memory(document, drawing))
        elif isinstance(document, RouteCheck):
            found.append(_determinism(document, drawing))
        elif isinstance(document, RouteStats):
            found.append(_experts(document, drawing))
        elif isinstance(document, LadderDocument):
            found.append(_ladder(document, ladder_floor(document) or noise_floor(report), drawing))
    return sorted(found, key=lambda extra: ORDER.index(extra.id))


def _likelihoods(report: Report, drawing: ModuleType | None) -> list[Extra]:
    """Given answers, and the noise floor."""
    found: list[Extra] = []
    detail, floor = report.details.likelihood, report.details.noise_floor
    if detail is not None:
        found.append(Extra("likelihood", "Given answers", LIKELIHOOD_WORDS, ("", "", ""), likelihood_rows(detail), ()))
    if floor is not None:
        words = f"{FLOOR_WORDS} {floor.tokens:,} tokens; the reference: {floor.reference}."
        plots = [drawing.plot_floor(floor)] if drawing is not None else []
        found.append(Extra("floor", "Noise floor", words, FLOOR_HEADER, floor_rows(floor), plots))
    return found


def _own(report: Report) -> list[Extra]:
    """Tool calls and the capability profile, of the report itself."""
    found: list[Extra] = []
    tools, profile = report.details.tools, report.details.profile
    if tools is not None:
        words = "Whether it calls a tool where one is needed, and whether the call is valid by its schema."
        found.append(Extra("tools", "Tool calls", words, ("", "", ""), tool_rows(tools), ()))
    if profile is not None:
        found.append(Extra("profile", "Capability profile", PROFILE_WORDS, PROFILE_HEADER, profile_rows(profile), ()))
    return found


def ladder_floor(ladder: LadderDocument) -> float | None:
    """How far its models are from themselves, in nats a token: the largest; None: it does not tell."""
    floors = [rung.summary.floor.kl_nats for rung in ladder.rungs if rung.summary.floor is not None]
    return max((floor for floor in floors if floor is not None), default=None)


def noise_floor(report: Report) -> float | None:
    """How far the file is from itself under other numerics, in nats a token; None: the report does not tell."""
    floor = report.details.noise_floor
    return floor.kl_nats if floor is not None else None


def _memory(plan: PlanDocument, drawing: ModuleType | None) -> Extra:
    rows: list[Row] = [
        (
            f"{context.context_tokens:,} tokens, {context.profile}",
            context.verdict.value,
            format_bytes(context.total_bytes) if context.total_bytes is not None else "not known",
            ", ".join(f"{part.kind} {format_bytes(part.bytes)}" for part in context.parts),
        )
        for context in plan.contexts[:ROWS_LIMIT]
    ]
    for row in plan.envelope:
        holds = {True: "holds", False: "does not hold", None: "not known"}[row.holds]
        needed = format_bytes(row.needed_bytes) if row.needed_bytes is not None else "not known"
        given = f"the specification's {row.level} {row.component}, {format_bytes(row.given_bytes)}"
        rows.append((given, holds, needed, row.needed_for))
    words = (
        f"Computed by {plan.runtime} for {plan.source}, against {format_bytes(plan.memory_bytes)} of memory "
        f"({plan.memory_of}) and the specification's envelope (section 14)."
    )
    plots = [drawing.plot_memory(plan, plan.contexts)] if drawing is not None else []
    return Extra("memory", "Memory plan", words, ("for", "verdict", "memory needed", "what takes it"), rows, plots)


def _determinism(check: RouteCheck, drawing: ModuleType | None) -> Extra:
    rows: list[Row] = [
        (
            row.condition,
            f"refused: {row.refused}" if row.refused is not None else _share(row.same_set_share),
            _share(row.lowest_layer_share),
            {True: "yes", False: "no", None: "not compared"}[row.logits_identical],
        )
        for row in check.matrix[:ROWS_LIMIT]
    ]
    verdict = "holds" if check.holds else "does not hold"
    words = (
        f"Under the standard load ({len(check.load.requests)} requests, profile {check.load.profile}) the "
        f"specification's clause {verdict}: routing remains deterministic. Below, one sequence of "
        f"{check.matrix_tokens:,} tokens under other conditions."
    )
    header = ("condition", "same experts", "in the worst layer", "logits identical")
    plots = [drawing.plot_determinism(check)] if drawing is not None else []
    return Extra("determinism", "Determinism of routing", words, header, rows, plots)


def _experts(stats: RouteStats, drawing: ModuleType | None) -> Extra:
    rows: list[Row] = [
        (f"{layer.layer}", f"{layer.entropy_bits:.2f}", f"{layer.hot_experts:,}", f"{layer.unused_experts:,}")
        for layer in stats.layers[:ROWS_LIMIT]
    ]
    words = f"Which experts {stats.tokens:,} tokens of {stats.prompts:,} prompts chose."
    header = ("layer", "entropy of the load, bits", "experts that take half of it", "never chosen")
    plots = [drawing.plot_expert_load(stats)] if drawing is not None and stats.layers else []
    return Extra("experts", "Routing by expert", words, header, rows, plots)


def _ladder(ladder: LadderDocument, floor: float | None, drawing: ModuleType | None) -> Extra:
    rows: list[Row] = [
        (
            rung.name,
            format_bytes(rung.tensor_bytes),
            f"{rung.bits_per_weight:.2f}",
            _estimate(rung.summary.nll),
            "the reference" if rung.summary.kl is None else _estimate(rung.summary.kl),
            _from_itself(rung.summary),
        )
        for rung in ladder.rungs[:ROWS_LIMIT]
    ]
    words = "Classes of this model beside each other, on the same tokens. "
    if floor is None:
        words += "How far one file is from itself under other numerics (the noise floor) was not measured."
    else:
        words += f"Divergences below the noise floor of {floor:.4f} nats are not resolvable."
    header = ("class", "tensors", "bits a weight", "loss, nats a token", "divergence, nats a token", "from itself")
    plots = [drawing.plot_ladder(ladder, floor)] if drawing is not None else []
    return Extra("ladder", "Quality against size", words, header, rows, plots)


def _from_itself(summary: Summary) -> str:
    floor, said = summary.floor, summary.against_floor
    if floor is None or floor.kl_nats is None:
        return "not measured"
    below = said is not None and said.kl is Resolution.NOT_RESOLVABLE
    return f"up to {floor.kl_nats:.4f}" + ("; not resolvable" if below else "")


def _share(value: float | None) -> str:
    return "nothing compared" if value is None else f"{value:.4f}"


def _estimate(value: Estimate) -> str:
    interval = f" ({value.low:.4f} to {value.high:.4f})" if value.low is not None and value.high is not None else ""
    return f"{value.mean:.4f}{interval}"
