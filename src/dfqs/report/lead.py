"""A report in ten seconds: one sentence, and the five metrics in words that a stranger knows."""

from dataclasses import dataclass

from dfqs.report.facts import format_interval, was_busy
from dfqs.report.schema import Report, ScoreDetail
from dfqs.units import format_bytes, format_count


@dataclass(frozen=True, slots=True)
class Tile:
    """One metric."""

    label: str
    value: str
    beside: str
    key: str
    """Its name in the specification."""


def describe_lead(report: Report) -> str:
    """What it is, and how well it does, in two sentences."""
    artifact, model = report.artifact, report.artifact.model
    what = []
    if model is not None:
        what.append(
            f"{format_count(model.parameters)} parameters, {format_count(model.parameters_active)} used a token"
        )
    if artifact.file_bytes is not None:
        what.append(format_bytes(artifact.file_bytes))
    if model is not None and model.class_:
        what.append(f"class {model.class_}")
    words = f"{artifact.name} ({', '.join(what)})." if what else f"{artifact.name}."
    metrics, told, solved = report.metrics, [], []
    for stage, noun in (("reasoning", "reasoning questions"), ("code", "programming tasks")):
        detail: ScoreDetail | None = getattr(report.details, stage)
        if detail is not None:
            solved.append(f"{detail.right:,} of {detail.n:,} {noun}")
    if solved:
        told.append(f"solves {' and '.join(solved)}")
    if metrics.cpu_tokens_per_sec is not None:
        told.append(f"writes {metrics.cpu_tokens_per_sec:.1f} tokens a second on this processor alone")
    boundary = report.details.boundary
    if boundary is not None and metrics.failure_boundary_tokens is not None:
        tokens = metrics.failure_boundary_tokens
        if boundary.censored:
            told.append(f"was not seen to fail up to {tokens:,} tokens of context")
        elif tokens == 0:
            told.append("finds too little even in the shortest context for a boundary to be shown")
        else:
            told.append(f"fails from {tokens:,} tokens of context on")
    if not told:
        return f"{words} Nothing was measured."
    last = told.pop()
    return f"{words} It {', '.join(told)}{', and ' if told else ''}{last}."


def describe_tiles(report: Report) -> list[Tile]:
    """The five metrics."""
    metrics, details = report.metrics, report.details
    boundary = details.boundary
    why = boundary.reason if boundary is not None and metrics.failure_boundary_tokens is not None else None
    censored = boundary is not None and boundary.censored
    tokens = metrics.failure_boundary_tokens
    return [
        _score_tile(report, "Reasoning, share right", "reasoning_score", details.reasoning),
        _score_tile(report, "Code, share that passes its tests", "code_score", details.code),
        _curve_tile(report),
        _speed_tile(report),
        _tile(
            report,
            "Context at which it fails, tokens",
            "failure_boundary_tokens",
            None if tokens is None else f"{'at least ' if censored else ''}{tokens:,}",
            why or "",
        ),
    ]


def _score_tile(report: Report, label: str, key: str, detail: ScoreDetail | None) -> Tile:
    value: float | None = getattr(report.metrics, key)
    beside = ""
    if detail is not None:
        beside = f"{detail.right:,} of {detail.n:,}; 95 % interval {format_interval(detail.interval_95)}"
    return _tile(report, label, key, None if value is None else f"{value:.3f}", beside)


def _curve_tile(report: Report) -> Tile:
    curve, context = report.metrics.context_stability_curve, report.details.context
    value, beside = None, ""
    if curve:
        value = f"{curve[0]:.2f} to {curve[-1]:.2f}" if len(curve) > 1 else f"{curve[0]:.2f}"
        if context is not None and context.lengths_tokens:
            lengths = context.lengths_tokens
            beside = f"share right at {lengths[0]:,} and at {lengths[-1]:,} tokens"
    return _tile(report, "Facts found as the context grows", "context_stability_curve", value, beside)


def _speed_tile(report: Report) -> Tile:
    rate, speed = report.metrics.cpu_tokens_per_sec, report.details.speed
    beside = ""
    if speed is not None:
        low, high = speed.decode_spread
        beside = f"{low:.2f} to {high:.2f} over {speed.repeats:,} repeats"
        if was_busy(speed):
            beside += "; the machine was busy with something else"
    shown = None if rate is None else f"{rate:,.2f}"
    return _tile(report, "Tokens a second, CPU only", "cpu_tokens_per_sec", shown, beside)


def _tile(report: Report, label: str, key: str, value: str | None, beside: str) -> Tile:
    if value is None:
        reason = report.reasons.get(key, "")
        return Tile(label, "not measured", "" if reason == "not measured" else reason, key)
    return Tile(label, value, beside, key)
